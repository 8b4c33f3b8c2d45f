"""One simulator process for all tests here, reset before each; everything it answered is held to Stripe's description after each."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import stripe

from sandbox.stripe_simulator.process import StripeSimulator
from stripe_description import assert_exchanges_valid

#: Where the simulator's time stands at the beginning of every test.
NOW = datetime(2025, 10, 15, 12, 0, tzinfo=UTC)

Params = Mapping[str, Any] | Sequence[tuple[str, Any]] | str


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: status, headers (lower-cased names), decoded JSON."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.body["error"]
        return error


class RawHttp:
    """Calls the simulator without the SDK, so that a test decides every header and byte."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._address = urlsplit(base_url).netloc
        self._api_key = api_key

    def call(self, method: str, path: str, params: Params = "", headers: Mapping[str, str | None] | None = None) -> Reply:
        """GET sends the parameters in the query, others as a form. A header of None is left out."""
        encoded = params if isinstance(params, str) else urlencode(params)
        sent: dict[str, str | None] = {"Authorization": f"Bearer {self._api_key}"}
        target, content = path, None
        if method == "GET":
            target = f"{path}?{encoded}" if encoded else path
        else:
            content = encoded
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        sent |= headers or {}
        connection = http.client.HTTPConnection(self._address, timeout=10)
        try:
            connection.request(method, target, content, {name: value for name, value in sent.items() if value is not None})
            response = connection.getresponse()
            body = json.loads(response.read())
            return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
        finally:
            connection.close()

    def get(self, path: str, params: Params = "", **headers: str) -> Reply:
        return self.call("GET", path, params, headers)

    def post(self, path: str, params: Params = "", *, key: str | None = None) -> Reply:
        return self.call("POST", path, params, {"Idempotency-Key": key})

    def delete(self, path: str, params: Params = "") -> Reply:
        return self.call("DELETE", path, params)


class Billing:
    """Makes what most tests need, and sends usage."""

    def __init__(self, raw: RawHttp) -> None:
        self._raw = raw

    def meter(self, event_name: str = "tokens", formula: str = "sum", **more: str) -> str:
        params = {"display_name": "Tokens", "event_name": event_name, "default_aggregation[formula]": formula, **more}
        return self._made("/v1/billing/meters", params)

    def customer(self, **params: str) -> str:
        return self._made("/v1/customers", params)

    def price(self, **params: Any) -> str:
        standard = {"currency": "usd", "product_data[name]": "Solo", "unit_amount": "1900", "recurring[interval]": "month"}
        return self._made("/v1/prices", {**standard, **params})

    def metered_price(self, meter: str, **params: Any) -> str:
        metered = {"recurring[usage_type]": "metered", "recurring[meter]": meter, "unit_amount_decimal": "0.002"}
        standard = {"currency": "usd", "product_data[name]": "Pure", "recurring[interval]": "month", **metered}
        return self._made("/v1/prices", {**standard, **params})

    def subscription(self, customer: str, price: str, **params: Any) -> dict[str, Any]:
        reply = self._raw.post("/v1/subscriptions", {"customer": customer, "items[0][price]": price, **params})
        assert reply.status == 200, reply
        made: dict[str, Any] = reply.body
        return made

    def send(self, customer: str, value: object, at: datetime, identifier: str | None = None, event_name: str = "tokens") -> Reply:
        params = {
            "event_name": event_name,
            "payload[stripe_customer_id]": customer,
            "payload[value]": value,
            "timestamp": int(at.timestamp()),
        }
        return self._raw.post("/v1/billing/meter_events", params if identifier is None else {**params, "identifier": identifier})

    def summaries(self, meter: str, customer: str, start: datetime, end: datetime, **params: Any) -> Reply:
        bounds = {"customer": customer, "start_time": int(start.timestamp()), "end_time": int(end.timestamp())}
        return self._raw.get(f"/v1/billing/meters/{meter}/event_summaries", {**bounds, **params})

    def total(self, meter: str, customer: str, start: datetime, end: datetime) -> float:
        reply = self.summaries(meter, customer, start, end)
        assert reply.status == 200, reply
        value: float = reply.body["data"][0]["aggregated_value"]
        return value

    def _made(self, path: str, params: Params) -> str:
        reply = self._raw.post(path, params)
        assert reply.status == 200, reply
        return str(reply.body["id"])


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stripe") / "exchanges.jsonl"


@pytest.fixture(scope="session")
def process(recording: Path) -> Iterator[StripeSimulator]:
    with StripeSimulator.start(clock=NOW, record=recording) as simulator:
        yield simulator


@pytest.fixture
def simulator(process: StripeSimulator, recording: Path) -> Iterator[StripeSimulator]:
    """The simulator with nothing in it, at NOW. Afterwards all that the test exchanged with it is validated."""
    process.reset()
    begun_at = recording.stat().st_size
    yield process
    with recording.open(encoding="utf-8") as exchanges:
        exchanges.seek(begun_at)
        assert_exchanges_valid(exchanges)


@pytest.fixture
def raw(simulator: StripeSimulator) -> RawHttp:
    return RawHttp(simulator.base_url, simulator.api_key)


@pytest.fixture
def billing(raw: RawHttp) -> Billing:
    return Billing(raw)


@pytest.fixture
def client(simulator: StripeSimulator) -> stripe.StripeClient:
    """The real SDK, without retries."""
    addresses: stripe.BaseAddresses = {"api": simulator.base_url, "meter_events": simulator.base_url}
    return stripe.StripeClient(simulator.api_key, base_addresses=addresses, max_network_retries=0)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def pass_time(simulator: StripeSimulator) -> Any:
    """Moves the simulator's clock on by `timedelta(**given)`."""

    def forward(**given: float) -> None:
        simulator.set_clock(simulator.now() + timedelta(**given))

    return forward


@pytest.fixture
def meter(billing: Billing, simulator: StripeSimulator) -> str:
    """A meter whose summaries show events at once."""
    simulator.settings(summary_delay_seconds=0)
    return billing.meter()


@pytest.fixture
def customer(billing: Billing, meter: str) -> str:
    """Somebody to send events of, once there is a meter."""
    return billing.customer()
