"""The histories' Stripe account, over one connection that stays open: most of a history's requests are looks at the simulator.

An account is made by the same requests in the same order each time, so its ids are the same in every history."""

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO
from urllib.parse import urlencode, urlsplit

from sandbox.stripe_simulator import LEGACY_API_VERSION
from sandbox.stripe_simulator.process import StripeSimulator

#: A foreign reporter's identifiers begin so, and nobody else's.
FOREIGN = "foreign-"


@dataclass(frozen=True)
class Link:
    """What a tenant is linked to."""

    customer_id: str
    subscription_id: str
    usage_item_id: str
    event_name: str


class StripeAccount:
    """One simulator's account; threads may share it."""

    def __init__(self, simulator: StripeSimulator) -> None:
        base = urlsplit(simulator.base_url)
        self._address = base.hostname, base.port
        self._socket: socket.socket | None = None
        self._stream: BinaryIO | None = None
        self._headers = {"Authorization": f"Bearer {simulator.api_key}", "Content-Type": "application/x-www-form-urlencoded"}
        self._lock = threading.Lock()
        self._usage_records = False
        #: The two metered prices, and the event names of their meters.
        self.plans: list[tuple[str, str]] = []

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._socket is not None:
            self._socket.close()

    def reset(self, clock: datetime, customers: Sequence[str], usage_records: bool = False) -> dict[str, Link]:
        """An empty account with a customer and a subscription for each name, in turn to one of two metered prices, which are backed by
        meters or, for `usage_records`, by none."""
        self._control("POST", "/simulator/reset", {"clock": _text(clock)})
        self._usage_records = usage_records
        self.plans = [self._legacy_plan(name) if usage_records else self._plan(name) for name in ("bundled", "pure")]
        return {name: self._subscribe(name, *self.plans[number % 2]) for number, name in enumerate(customers)}

    def _plan(self, name: str) -> tuple[str, str]:
        """A metered price with a meter of its own; returns the price's id and the meter's event name."""
        event_name = f"managed_ai_tokens_{name}"
        meter = self._create(
            "billing/meters",
            {
                "display_name": name,
                "event_name": event_name,
                "default_aggregation[formula]": "sum",
                "customer_mapping[type]": "by_id",
                "customer_mapping[event_payload_key]": "stripe_customer_id",
                "value_settings[event_payload_key]": "value",
            },
        )
        price = self._create(
            "prices",
            {
                "currency": "usd",
                "product_data[name]": name,
                "recurring[interval]": "month",
                "recurring[usage_type]": "metered",
                "recurring[meter]": meter["id"],
                "unit_amount_decimal": "0.002",
            },
        )
        return price["id"], event_name

    def _legacy_plan(self, name: str) -> tuple[str, str]:
        """A metered price of the legacy metered billing system, with periods that outlast every history; it has no event name."""
        parameters = {
            "currency": "usd",
            "product_data[name]": name,
            "recurring[interval]": "year",
            "recurring[usage_type]": "metered",
            "unit_amount_decimal": "0.002",
        }
        headers = {**self._headers, "Stripe-Version": LEGACY_API_VERSION}
        return _checked(*self._exchange("POST", "/v1/prices", urlencode(parameters), headers))["id"], ""

    def _subscribe(self, name: str, price: str, event_name: str) -> Link:
        customer = self._create("customers", {"name": name})
        subscription = self._create("subscriptions", {"customer": customer["id"], "items[0][price]": price})
        return Link(customer["id"], subscription["id"], subscription["items"]["data"][0]["id"], event_name)

    @property
    def price_overrides(self) -> dict[str, str]:
        """The two metered prices by the catalogue's names."""
        return {f"managed_ai_{name}": price for name, (price, _) in zip(("bundled", "pure"), self.plans, strict=True)}

    def set_clock(self, now: datetime) -> None:
        self._control("POST", "/simulator/clock", {"now": _text(now)})

    def meter_events(self) -> list[dict[str, Any]]:
        """Every event received, in that order, with `status` accepted where it counts. Usage records, where those are in use, are told
        as events that all count, under the name of the report that set them last."""
        if self._usage_records:
            return [
                {
                    "identifier": str(record["idempotency_key"]).partition("#")[0],
                    "customer": record["customer"],
                    "event_name": "",
                    "timestamp": record["timestamp"],
                    "value": str(record["quantity"]),
                    "status": "accepted",
                }
                for record in self._control("GET", "/simulator/usage_records")["data"]
            ]
        return self._control("GET", "/simulator/meter_events")["data"]  # type: ignore[no-any-return]

    def disown(self, identifiers: Sequence[str]) -> None:
        self._control("POST", "/simulator/meter_events/disown", {"identifiers": list(identifiers)})

    def report_foreign(self, number: int, link: Link, at: datetime, tokens: int) -> None:
        """Another system's event for the customer."""
        self._create(
            "billing/meter_events",
            {
                "event_name": link.event_name,
                "identifier": f"{FOREIGN}{number}",
                "timestamp": int(at.timestamp()),
                "payload[stripe_customer_id]": link.customer_id,
                "payload[value]": tokens,
            },
        )

    def post(self, resource: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What customers, or the shop for them, do."""
        return self._create(resource, parameters)

    def get(self, resource: str) -> dict[str, Any]:
        return _checked(*self._exchange("GET", f"/v1/{resource}", "", self._headers))

    def cancel(self, subscription_id: str) -> None:
        """At once, with a last invoice."""
        _checked(*self._exchange("DELETE", f"/v1/subscriptions/{subscription_id}?invoice_now=true", "", self._headers))

    def delete_customer(self, customer_id: str) -> None:
        """With all its subscriptions, at once."""
        _checked(*self._exchange("DELETE", f"/v1/customers/{customer_id}", "", self._headers))

    def complete_checkout(self, session_id: str) -> dict[str, Any]:
        """The customer pays; returns the session."""
        return self._control("POST", "/simulator/checkout/complete", {"session": session_id})

    def change_settings(self, **settings: float) -> None:
        self._control("POST", "/simulator/settings", settings)

    def deliver(self, path: str, body: str, headers: Mapping[str, str]) -> None:
        """A request arrives whose answer nobody waits for."""
        self._exchange("POST", path, body, headers)

    def _create(self, resource: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return _checked(*self._exchange("POST", f"/v1/{resource}", urlencode(parameters), self._headers))

    def _control(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return _checked(*self._exchange(method, path, json.dumps(body or {}), {"Content-Type": "application/json"}))

    def _exchange(self, method: str, path: str, body: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        content = body.encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: simulator", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in ("host", "content-length")]
        request = "\r\n".join((*lines, "\r\n")).encode() + content
        with self._lock:
            with suppress(ConnectionError):  # the simulator closes a connection that was idle for some seconds
                return self._send(request)
            self._connect()
            return self._send(request)

    def _connect(self) -> None:
        self.close()
        self._socket = socket.create_connection(self._address, timeout=20)
        self._stream = self._socket.makefile("rb")

    def _send(self, request: bytes) -> tuple[int, bytes]:
        """By hand: the simulator's answers have a length, and reading their headers well would cost more than all the rest."""
        if self._socket is None or self._stream is None:
            raise ConnectionError
        self._socket.sendall(request)
        status, length = self._stream.readline(), 0
        while (line := self._stream.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        if not status or not line:
            raise ConnectionError
        return int(status.split()[1]), self._stream.read(length)


def _text(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"


def _checked(status: int, body: bytes) -> dict[str, Any]:
    if status != 200:
        raise RuntimeError(f"the simulator answered {status}: {body.decode(errors='replace')}")
    return json.loads(body)  # type: ignore[no-any-return]
