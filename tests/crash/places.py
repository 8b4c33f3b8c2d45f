"""The places where a run meets the world outside: before and after each SQL statement, each end of a transaction and each request.
Also the connections that many runs of one test share."""

import os
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import psycopg
import stripe
from psycopg.pq import TransactionStatus

from sandbox.kept_in_files import KeptInFiles
from token_billing.adapters.database import Connection
from token_billing.adapters.queries import queries, sql_path

#: An id of Stripe's inside a path.
_ID = re.compile(r"/[a-z]+_[A-Za-z0-9]{8,}")


@contextmanager
def places(arrive: Callable[[str, Connection | None], None], arrive_at_request: Callable[[str], Awaitable[None]]) -> Iterator[None]:
    """Inside the block, whoever uses a database or Stripe calls one of these before and after each statement, end of a transaction,
    request and note outside the database, with what it is about to do or has done. They may wait, or never return."""
    execute, end, send = psycopg.Cursor.execute, psycopg.Transaction.__exit__, stripe.AIOHTTPClient.request_async
    keep = KeptInFiles.write

    def execute_between(cursor: psycopg.Cursor[Any], query: Any, *args: Any, **options: Any) -> Any:
        name = _name(query)
        arrive(f"before {name}", cursor.connection)
        result = execute(cursor, query, *args, **options)
        arrive(f"after {name}", cursor.connection)
        return result

    def end_between(transaction: psycopg.Transaction, *error: Any) -> Any:
        name = f"the end of a {'savepoint' if transaction.savepoint_name else 'transaction'}"
        arrive(f"before {name}", transaction.connection)
        result = end(transaction, *error)
        arrive(f"after {name}", transaction.connection)
        return result

    async def send_between(client: stripe.AIOHTTPClient, method: str, url: str, *args: Any, **options: Any) -> Any:
        name = f"{method} {_ID.sub('/…', urlsplit(url).path)}"
        await arrive_at_request(f"before {name}")
        result = await send(client, method, url, *args, **options)
        await arrive_at_request(f"after {name}")
        return result

    def keep_between(keeper: KeptInFiles, *args: Any) -> None:
        arrive("before keeping outside the database", None)
        keep(keeper, *args)
        arrive("after keeping outside the database", None)

    psycopg.Cursor.execute = execute_between  # type: ignore[method-assign, assignment]
    KeptInFiles.write = keep_between  # type: ignore[method-assign, assignment]
    psycopg.Transaction.__exit__ = end_between  # type: ignore[method-assign]
    stripe.AIOHTTPClient.request_async = send_between  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        KeptInFiles.write = keep  # type: ignore[method-assign]
        psycopg.Cursor.execute = execute  # type: ignore[method-assign]
        psycopg.Transaction.__exit__ = end  # type: ignore[method-assign]
        stripe.AIOHTTPClient.request_async = send  # type: ignore[method-assign]


def _name(query: Any) -> str:
    """A named query's name, else how the statement begins."""
    return _names().get(query) or " ".join(str(query).split()[:3]) if isinstance(query, str) else type(query).__name__


@cache
def _names() -> dict[str, str]:
    return {text: name for file in sql_path("").glob("*.sql") for name, text in queries(file.name).items()}


class KeptConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that outlives its `with` block: a new one costs more than the stage it serves."""

    kept: "KeptConnections | None" = None
    #: Who has it now, where that matters.
    user: object = None

    def close(self) -> None:
        if self.kept is None or not self.kept.take_back(self):
            super().close()


class KeptConnections:
    """Connections of one process; a forked one begins anew, as its parent's are not its own."""

    def __init__(self, dsn: str) -> None:
        self.dsn, self._idle = dsn, dict[int, list[KeptConnection]]()

    def connect(self) -> KeptConnection:
        idle = self._idle.setdefault(os.getpid(), [])
        if idle:
            return idle.pop()
        connection = KeptConnection.connect(self.dsn, application_name=f"process {os.getpid()}")
        connection.kept = self
        return connection

    def take_back(self, connection: KeptConnection) -> bool:
        if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        connection.autocommit, connection.user = False, None
        self._idle[os.getpid()].append(connection)
        return True

    def close(self) -> None:
        for connection in self._idle.pop(os.getpid(), []):
            connection.kept = None
            connection.close()
