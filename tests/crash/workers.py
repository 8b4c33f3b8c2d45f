"""Workers that die where they stand.

A worker meets its doors: each SQL statement, each end of a transaction, each request. At one of them it may be killed. From then on
every door is shut to it and its connections are cut without a goodbye, so that Postgres and Stripe see a dead client, and no clean-up
of ours runs."""

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from crash.faults import Door, Kill, RunTroubles

#: How long after the death of its worker a COMMIT that was under way may still arrive; recovery has begun by then.
LATE_COMMIT_S = 0.02


class Killed(BaseException):
    """The worker is dead: nothing in it may run on, and nobody in it may catch this."""


class Worker:
    """One run of the stages: a process of its own as far as kills are concerned."""

    def __init__(
        self,
        figures: Counter[str],
        kill: Kill | None = None,
        troubles: RunTroubles | None = None,
        looks: frozenset[int] = frozenset(),
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.dead = False
        self.troubles = troubles or RunTroubles()
        #: Who it was in the lease rows.
        self.holders: set[str] = set()
        self.events_of_customer: Counter[str] = Counter()
        self.read_count = 0
        self.late_commit: Connection | None = None
        #: Postgres' processes that served it when it died.
        self.cut_pids: list[int] = []
        self._connections: list[Connection] = []
        self._figures, self._kill, self._looks, self._look = figures, kill, looks, look
        self._passed: Counter[str] = Counter()
        self._lock = threading.RLock()

    def arrive(self, door: Door, committing: "Connection | None" = None) -> int:
        """Before the door; returns which of its kind it is."""
        with self._lock:
            self._live()
            self._passed[door] += 1
            nth = self._passed[door]
            if self._kill and (self._kill.door, self._kill.nth, self._kill.after) == (door, nth, False):
                self._die(committing if self._kill.late_commit else None)
        if door == "statement" and nth in self._looks:
            self._look()
        return nth

    def leave(self, door: Door, nth: int) -> None:
        """Behind the door."""
        with self._lock:
            self._live()
            if self._kill and (self._kill.door, self._kill.nth, self._kill.after) == (door, nth, True):
                self._die(None)

    def took(self, connection: "Connection") -> None:
        with self._lock:
            self._live()
            self._connections.append(connection)

    def bury(self) -> None:
        """Frees what the dead held, when none of its threads runs any more."""
        for connection in self._connections:
            if connection is not self.late_commit and connection.worker is self:
                connection.pgconn.finish()

    def _live(self) -> None:
        if self.dead:
            raise Killed

    def _die(self, committing: "Connection | None") -> None:
        assert self._kill
        self.dead = True
        self.late_commit = committing
        self._figures[f"kill: at a {self._kill.door}"] += 1
        for connection in self._connections:
            if connection is not committing and connection.worker is self:
                self.cut_pids.append(connection.pgconn.backend_pid)
                connection.cut()
        raise Killed


#: Whose requests these are; tasks and threads of a run inherit it.
WORKER: ContextVar[Worker | None] = ContextVar("worker", default=None)


# --- the database's doors ---------------------------------------------------------------------------------------------


class _Cursor(psycopg.Cursor[tuple[Any, ...]]):
    def execute(self, query: Any, params: Any = None, **options: Any) -> "_Cursor":
        worker = self.connection.worker  # type: ignore[attr-defined]
        if worker is None:
            return super().execute(query, params, **options)
        if isinstance(params, Mapping) and "holder" in params:
            worker.holders.add(str(params["holder"]))
        nth = worker.arrive("statement")
        super().execute(query, params, **options)
        worker.leave("statement", nth)
        return self


class _Transaction(psycopg.Transaction):
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        connection: Connection = self.connection  # type: ignore[assignment]
        worker = connection.worker
        if worker is None:
            return super().__exit__(kind, error, trace)
        if worker.dead:
            if error is None:
                raise Killed
            return False  # a dead client sends no ROLLBACK
        whole = error is None and not self.savepoint_name
        nth = worker.arrive("commit", connection if whole else None)
        result = super().__exit__(kind, error, trace)
        worker.leave("commit", nth)
        return result


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection with doors, which goes back to the pool instead of being closed: opening one costs more than a stage."""

    worker: Worker | None = None
    pool: "Pool"

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[psycopg.Transaction]:
        with _Transaction(self, savepoint_name, force_rollback) as transaction:
            yield transaction

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        worker = self.worker
        if worker is not None and worker.dead:
            return
        if error is not None:
            with suppress(psycopg.Error):
                self.rollback()
        elif self.pgconn.transaction_status == TransactionStatus.INTRANS:
            nth = worker.arrive("commit", self) if worker else 0
            self.commit()
            if worker:
                worker.leave("commit", nth)
        self.pool.give_back(self)

    def cut(self) -> None:
        """The client is gone: the server sees the end of the stream, in the middle of whatever it was."""
        with suppress(psycopg.Error, OSError), socket.socket(fileno=socket.dup(self.pgconn.socket)) as line:
            line.shutdown(socket.SHUT_RDWR)


class Pool:
    """Connections kept until a kill."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def connect(self, worker: Worker | None = None) -> Connection:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = Connection.connect(self._dsn, cursor_factory=_Cursor)
            connection.pool = self
        connection.worker = worker
        if worker is not None:
            try:
                worker.took(connection)
            except Killed:
                connection.close()
                raise
        return connection

    def give_back(self, connection: Connection) -> None:
        connection.worker = None
        if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
            return connection.close()
        connection.autocommit = False
        with self._lock:
            self._idle.append(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
