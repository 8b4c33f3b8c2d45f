"""Connections to the billing database, and what a transaction on one means."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import IsolationLevel, sql
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

Connection = psycopg.Connection[tuple[Any, ...]]
Found = TypeVar("Found")

#: Opens a new connection; the caller closes it.
Connect = Callable[[], Connection]

#: Concurrent REPEATABLE READ transactions on the same rows end in this error; the whole transaction is tried again.
retry_serialization = retry(
    retry=retry_if_exception_type((psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)),
    stop=stop_after_attempt(10),
    wait=wait_random_exponential(multiplier=0.05, max=2),
    reraise=True,
)


@contextmanager
def session(connect: Connect) -> Iterator[Connection]:
    """A connection for one stage: transactions are the `with connection.transaction()` blocks and nothing else, and no
    prepared statement outlives its query, so that a transaction-mode pooler may stand in between."""
    with connect() as connection:
        connection.autocommit = True
        connection.prepare_threshold = None
        yield connection


@contextmanager
def repeatable_read(connection: Connection) -> Iterator[None]:
    """A transaction that sees one snapshot of the database, taken at its first query."""
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            yield
    finally:
        connection.isolation_level = None


@contextmanager
def read_beside(connect: Connect, transaction: Connection, read: Callable[[Connection], Found]) -> Iterator[Future[Found]]:
    """Reads on a second connection while the block goes on with the first: on what the REPEATABLE READ transaction saw at its
    first query, without what it has written itself."""
    (snapshot,) = transaction.execute("SELECT pg_export_snapshot()").fetchone() or ()

    def read_snapshot() -> Found:
        with session(connect) as reader, repeatable_read(reader):
            reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
            reader.execute("SET LOCAL max_parallel_workers_per_gather = 0")  # one core is enough beside the block's own
            return read(reader)

    with ThreadPoolExecutor(max_workers=1) as thread:
        yield thread.submit(read_snapshot)


def storable(text: str) -> str:
    """Postgres keeps neither NUL nor half a surrogate pair; whatever answers for Stripe may send both."""
    # safeguard: whatever Stripe says can be written down
    return text.encode("utf-8", "replace").decode().replace("\0", " ")
