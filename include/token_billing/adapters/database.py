"""Connections to the billing database, and what a transaction on one means."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import IsolationLevel
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

Connection = psycopg.Connection[tuple[Any, ...]]

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
