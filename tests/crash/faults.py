"""What goes wrong in a history: a network that loses, repeats and delays requests, and workers that die where they stand.

A worker meets its doors: each SQL statement, each end of a transaction, each request. At one of them it may be killed. From then on
every door is shut to it and its connections are cut without a goodbye, so that Postgres and Stripe see a dead client, and no clean-up
of ours runs. The network sits below the SDK: it decides what becomes of a request, Stripe itself is the simulator's process."""

import asyncio
import gc
import json
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import SimpleNamespace, TracebackType
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

import aiohttp
import psycopg
import stripe
import tenacity.nap
from psycopg.pq import TransactionStatus

Door = Literal["statement", "commit", "request"]

#: What may become of a request that reports usage.
TROUBLES = (
    "answer lost",
    "request lost",
    "effect comes late",
    "500 without effect",
    "500 after effect",
    "stored 500 without effect",
    "stored 500 after effect",
    "429",
    "garbled answer",
    "no connection",
)

#: What a failing read looks like; whether it reached Stripe makes no difference.
READ_TROUBLES = ("request lost", "500 without effect", "429", "garbled answer", "no connection")

#: What all requests meet while Stripe is out. In the last kind Stripe goes on counting and only its answers are lost.
OUTAGES = ("no connection", "request lost", "500 without effect", "answer lost")

#: How long after the death of its worker a COMMIT that was under way may still arrive; recovery has begun by then.
LATE_COMMIT_S = 0.02


class Killed(BaseException):
    """The worker is dead: nothing in it may run on, and nobody in it may catch this."""


@dataclass(frozen=True)
class Kill:
    """Dies at the n-th door of a kind, before or after it. `late_commit`: the COMMIT it was about to send still arrives, later."""

    door: Door
    nth: int
    after: bool
    late_commit: bool = False


@dataclass(frozen=True)
class RunTroubles:
    """What the requests of one run meet: by customer and how many requests went to it before, so that the order in which
    customers are served makes no difference. "" is no trouble."""

    events: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    #: The customer's first trouble is also that of every further request of the run to it.
    persistent: bool = False

    def of_event(self, customer_number: int, nth: int) -> str:
        if not self.events:
            return ""
        return self.events[(customer_number + (0 if self.persistent else 5 * nth)) % len(self.events)]

    def of_read(self, nth: int) -> str:
        return self.reads[nth] if nth < len(self.reads) else ""


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
        self._figures[f"kills at a {self._kill.door}"] += 1
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
            worker.took(connection)
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


# --- the network --------------------------------------------------------------------------------------------------------


class Request(NamedTuple):
    """As the SDK hands it to its transport."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Any = None

    @property
    def reports_usage(self) -> bool:
        return self.method == "post" and urlsplit(self.url).path == "/v1/billing/meter_events"

    @property
    def customer(self) -> str:
        return parse_qs(str(self.body)).get("payload[stripe_customer_id]", [""])[0]


#: Body, status and headers, as the SDK's transports return them.
Response = tuple[Any, int, Mapping[str, str]]

#: Yields the requests that reach Stripe, gets its answers, returns what the client hears.
Exchange = Generator[Request, Response, Response]


@dataclass
class Network:
    """Between the workers and Stripe."""

    clock: Callable[[], datetime]
    figures: Counter[str]
    customer_numbers: dict[str, int] = field(default_factory=dict)
    outage: tuple[str, datetime] | None = None
    #: Requests that were sent and will take effect when their sender has given them up, and who sent them.
    under_way: list[tuple[Worker, Request]] = field(default_factory=list)
    _stored: dict[str, Response] = field(default_factory=dict)

    def exchange(self, worker: Worker, request: Request) -> Exchange:
        nth = worker.arrive("request")
        for late in self._arriving(worker):
            _ = yield late  # nobody waits for its answer any more
        trouble = self._trouble(worker, request)
        if trouble:
            self.figures[trouble if request.reports_usage else "failed reads"] += 1
        response = yield from self._meet(worker, request, trouble)
        worker.leave("request", nth)
        return response

    def _trouble(self, worker: Worker, request: Request) -> str:
        if request.reports_usage:
            number, before = self.customer_numbers.get(request.customer, 0), worker.events_of_customer[request.customer]
            worker.events_of_customer[request.customer] += 1
            trouble = worker.troubles.of_event(number, before)
        else:
            trouble = worker.troubles.of_read(worker.read_count)
            worker.read_count += 1
        if self.outage and self.clock() < self.outage[1]:
            return self.outage[0]
        return trouble

    def _meet(self, worker: Worker, request: Request, trouble: str) -> Exchange:
        key = next((value for name, value in request.headers.items() if name.lower() == "idempotency-key"), "")
        if trouble in ("no connection", "request lost", "429"):  # does not get as far as stored answers
            if trouble == "429":
                return _made_up(429, {"Retry-After": "1"}, "rate_limit")
            raise _no_answer(connected=trouble != "no connection")
        if trouble == "effect comes late":
            self.under_way.append((worker, request))
            raise _no_answer(connected=True)
        if request.reports_usage and key in self._stored:
            self.figures["stored errors replayed"] += 1
            body, status, headers = self._stored[key]
            return body, status, {**headers, "Idempotent-Replayed": "true"}
        if not trouble.endswith("without effect"):
            response = yield request
        match trouble:
            case "":
                return response
            case "answer lost":
                raise _no_answer(connected=True)
            case "garbled answer":
                return b"<html>gateway</html>", 200, response[2]
            case _:
                if trouble.startswith("stored"):
                    self._stored[key] = _made_up(500)
                return _made_up(500)

    def _arriving(self, worker: Worker) -> list[Request]:
        """What others have sent and given up arrives now, while this worker puts things right."""
        arriving = [(sender, request) for sender, request in self.under_way if sender is not worker]
        self.under_way = [pair for pair in self.under_way if pair not in arriving]
        self.figures["effects after recovery began"] += len(arriving)
        return [request for _, request in arriving]


def _made_up(status: int, headers: Mapping[str, str] | None = None, code: str | None = None) -> Response:
    error = {"type": "invalid_request_error" if code else "api_error", "message": f"made up {status}", "code": code}
    return json.dumps({"error": error}).encode(), status, headers or {}


def _no_answer(*, connected: bool) -> stripe.APIConnectionError:
    """What the SDK's transport raises when the connection breaks, or when there is none."""
    error = stripe.APIConnectionError("the network failed", should_retry=True)  # type: ignore[no-untyped-call]
    refused = aiohttp.client_reqrep.ConnectionKey("stripe", 443, True, True, None, None, None)
    error.__cause__ = TimeoutError() if connected else aiohttp.ClientConnectorError(refused, OSError("connection refused"))
    return error


class SyncTransport(stripe.RequestsClient):
    """The same network for a job that uses the SDK's synchronous client."""

    def __init__(self, network: Network) -> None:
        super().__init__(timeout=5)
        self._network = network

    def request(self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any = None, **_: Any) -> Response:
        worker = WORKER.get()
        assert worker is not None
        exchange = self._network.exchange(worker, Request(method, url, headers or {}, post_data))
        try:
            request = next(exchange)
            while True:
                request = exchange.send(super().request(*request))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


@contextmanager
def doors(network: Callable[[], Network]) -> Iterator[None]:
    """Inside the block the SDK's asynchronous transport goes through the network. Waiting takes no time, since time is the
    history's own, and the certificates that no request here needs are read once, not for every push."""
    transport_request, sleep, make_context = stripe.AIOHTTPClient.request_async, asyncio.sleep, ssl.create_default_context

    async def request_async(
        client: stripe.AIOHTTPClient, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> Response:
        worker = WORKER.get()
        if worker is None:
            return await transport_request(client, method, url, headers, post_data)
        exchange = network().exchange(worker, Request(method, url, headers, post_data))
        try:
            request = next(exchange)
            while True:
                request = exchange.send(await transport_request(client, *request))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def nap(seconds: float) -> None:
        time.sleep(min(seconds, 0.005))

    async def short_sleep(delay: float, result: Any = None) -> Any:
        return await sleep(min(delay, 0.001), result)

    asyncio_log, psycopg_log = logging.getLogger("asyncio"), logging.getLogger("psycopg")
    levels = asyncio_log.level, psycopg_log.level
    asyncio_log.setLevel(logging.CRITICAL)  # a dead worker's tasks are nobody's to await
    psycopg_log.setLevel(logging.ERROR)
    stripe.AIOHTTPClient.request_async = request_async  # type: ignore[method-assign, assignment]
    asyncio.sleep = short_sleep
    nap_clock, tenacity.nap.time = tenacity.nap.time, SimpleNamespace(sleep=nap)  # type: ignore[attr-defined, assignment]
    ssl.create_default_context = lru_cache(make_context)  # type: ignore[assignment]
    try:
        yield
    finally:
        gc.collect()  # tasks that nobody awaits tell of it when they are collected: now, into the closed log
        stripe.AIOHTTPClient.request_async = transport_request  # type: ignore[method-assign]
        asyncio.sleep = sleep
        tenacity.nap.time = nap_clock  # type: ignore[attr-defined]
        ssl.create_default_context = make_context
        asyncio_log.setLevel(levels[0])
        psycopg_log.setLevel(levels[1])
