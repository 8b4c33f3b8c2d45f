"""A network that loses, repeats and delays requests.

It sits below the SDK and decides what becomes of a request; Stripe itself is the simulator's process."""

import asyncio
import gc
import json
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import aiohttp
import stripe
import tenacity.nap

from crash.workers import WORKER, Worker


class Request(NamedTuple):
    """As the SDK hands it to its transport."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Any = None

    @property
    def reports_usage(self) -> bool:
        return self.method == "post" and (self.path == "/v1/billing/meter_events" or self.path.endswith("/usage_records"))

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def customer(self) -> str:
        """The customer of a meter event, or the item of a usage record."""
        if self.path.endswith("/usage_records"):
            return self.path.split("/")[3]
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
            self.figures[f"fault: {trouble}" if request.reports_usage else "fault: failed read"] += 1
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


def synchronous_client(api_key: str, base_url: str, network: Network) -> stripe.StripeClient:
    """The SDK's client over this network, which tries nothing again."""
    addresses: Any = {"api": base_url, "meter_events": base_url}
    return stripe.StripeClient(api_key, base_addresses=addresses, http_client=SyncTransport(network), max_network_retries=0)


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
        return await sleep(0.01 if delay >= 1 else min(delay, 0.001), result)  # whoever waits for another's lease asks less often

    # A dead worker's tasks are nobody's to await, and trouble is what is looked for here.
    loggers = [logging.getLogger(name) for name in ("asyncio", "psycopg", "token_billing")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
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
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
