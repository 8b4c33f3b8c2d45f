"""Each fault does what its name says: to the caller, to the connection, and to what has been counted."""

from __future__ import annotations

import json
import socket
import time
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import urlencode

import pytest
import stripe

from sandbox.stripe_simulator.faults import Fault
from sandbox.stripe_simulator.process import StripeSimulator


class Wire:
    """Sends one meter event over a socket of its own, so that a test sees what becomes of the connection."""

    def __init__(self, simulator: StripeSimulator, customer: str, now) -> None:
        self._simulator = simulator
        self._customer = customer
        self._now = now

    @contextmanager
    def sent(self, identifier: str, timeout_seconds: float = 5):
        """A connection on which the event has been sent under the idempotency key `identifier`."""
        with socket.create_connection(("127.0.0.1", self._simulator.port), timeout=timeout_seconds) as connection:
            connection.sendall(self._request(identifier))
            yield connection

    def exchange(self, identifier: str) -> tuple[bytes, str]:
        """What was received, and how it ended: "reset", "closed" or "silence" (after a second)."""
        received = b""
        with self.sent(identifier, timeout_seconds=1) as connection:
            while True:
                try:
                    some = connection.recv(65536)
                except ConnectionResetError:
                    return received, "reset"
                except TimeoutError:
                    return received, "silence"
                if not some:
                    return received, "closed"
                received += some

    def _request(self, identifier: str) -> bytes:
        params = {
            "event_name": "tokens",
            "identifier": identifier,
            "payload[stripe_customer_id]": self._customer,
            "payload[value]": 5,
            "timestamp": int(self._now.timestamp()),
        }
        body = urlencode(params).encode()
        head = (
            "POST /v1/billing/meter_events HTTP/1.1\r\nHost: simulator\r\n"
            f"Authorization: Bearer {self._simulator.api_key}\r\nIdempotency-Key: {identifier}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@pytest.fixture
def wire(simulator, customer, now) -> Wire:
    return Wire(simulator, customer, now)


@pytest.fixture
def send(raw, customer, now):
    """Sends the event as `Wire` does, and hears the answer."""

    def send(identifier: str, key: str | None = None):
        params = {
            "event_name": "tokens",
            "identifier": identifier,
            "payload[stripe_customer_id]": customer,
            "payload[value]": 5,
            "timestamp": int(now.timestamp()),
        }
        return raw.post("/v1/billing/meter_events", params, key=key or identifier)

    return send


@pytest.fixture
def counted(billing, meter, customer, now):
    """What the summaries show for the customer."""
    return lambda: billing.total(meter, customer, now, now + timedelta(hours=1))


# --- No answer ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, ending, effect",
    [
        ("reset_before_effect", "reset", 0),
        ("hang_before_effect", "silence", 0),
        ("reset_after_effect", "reset", 5),
        ("close_after_effect", "closed", 5),
        ("hang_after_effect", "silence", 5),
    ],
)
def test_a_request_without_an_answer_has_counted_or_not(simulator, wire, send, counted, kind, ending, effect):
    """Not a byte comes back either way; only a later request tells: from memory where it has counted, as new where it has not."""
    simulator.script_faults([kind])
    assert wire.exchange("i") == (b"", ending)
    assert counted() == effect
    again = send("i")
    assert (again.status, again.headers.get("idempotent-replayed")) == (200, "true" if effect else None)
    assert counted() == 5
    assert send("i", key="another").status == 400


def test_a_reset_in_the_body_leaves_half_an_answer(simulator, wire, counted):
    """Status and headers arrive, the body breaks off in the middle, and the event counts."""
    simulator.script_faults(["reset_in_body"])
    received, ending = wire.exchange("i")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    [length] = [int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    assert len(body) == length // 2
    with pytest.raises(ValueError):
        json.loads(body)
    assert (ending, counted()) == ("reset", 5)


@pytest.mark.parametrize("kind", ["reset_before_effect", "reset_after_effect", "close_after_effect", "reset_in_body", "delayed_delivery"])
def test_the_sdk_reports_a_broken_connection_as_such(simulator, client, customer, now, kind):
    """APIConnectionError: unknown, not failed."""
    simulator.script_faults([kind])
    event = {"event_name": "tokens", "identifier": "i", "payload": {"stripe_customer_id": customer, "value": "5"}}
    with pytest.raises(stripe.APIConnectionError):
        client.v1.billing.meter_events.create(event)


def test_an_answer_that_nobody_heard_is_not_recorded(simulator, wire, recording):
    """The recording holds answered exchanges only, so that all of it can be validated."""
    for kind in ("reset_before_effect", "reset_after_effect", "close_after_effect", "reset_in_body", "delayed_delivery"):
        begun_at = recording.stat().st_size
        simulator.script_faults([kind])
        wire.exchange(kind)
        simulator.release_delayed()
        assert recording.stat().st_size == begun_at


def test_a_simulator_ends_while_a_client_hangs(now, wire):
    """Without an answer after all: the client sees its connection reset."""
    with StripeSimulator.start(clock=now) as simulator:
        simulator.script_faults(["hang_before_effect"])
        with Wire(simulator, "cus_x", now).sent("i") as connection:
            while not simulator.faults()["met"]:
                time.sleep(0.01)
            simulator.stop()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


# --- Refusals and Stripe's own errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, status, code, headers",
    [
        ("conflict", 409, "idempotency_key_in_use", {}),
        ("rate_limit", 429, "rate_limit", {"retry-after": None, "stripe-rate-limited-reason": "global-rate"}),
        (Fault("rate_limit_with_retry_after", retry_after_seconds=7), 429, "rate_limit", {"retry-after": "7"}),
        ("lock_timeout", 429, "lock_timeout", {"stripe-should-retry": "true", "retry-after": None}),
        ("error_before_effect", 500, None, {}),
    ],
)
def test_a_request_turned_away_has_no_effect_and_is_not_remembered(simulator, send, counted, kind, status, code, headers):
    """The same key succeeds the next time, as if for the first time."""
    simulator.script_faults([kind])
    refused = send("i")
    assert (refused.status, refused.error.get("code")) == (status, code)
    assert {name: refused.headers.get(name) for name in headers} == headers
    assert "idempotent-replayed" not in refused.headers
    assert counted() == 0
    again = send("i")
    assert (again.status, again.headers.get("idempotent-replayed"), counted()) == (200, None, 5)


def test_a_conflict_is_worded_as_a_request_in_progress(simulator, send):
    """As for two requests under one idempotency key at once."""
    simulator.script_faults(["conflict"])
    assert send("i").error["message"].startswith("There is currently another in-progress request using this Idempotent Key")


def test_an_error_after_the_effect_hides_a_success(simulator, send, counted):
    """500, and yet the event counts; the key remembers the success, another key meets the duplicate."""
    simulator.script_faults(["error_after_effect"])
    failed = send("i")
    assert (failed.status, failed.error["type"], counted()) == (500, "api_error", 5)
    again = send("i")
    assert (again.status, again.headers["idempotent-replayed"]) == (200, "true")
    assert send("i", key="another").error["message"] == "An event already exists with identifier i."


@pytest.mark.parametrize("kind, effect", [("kept_error_before_effect", 0), ("kept_error_after_effect", 5)])
def test_a_kept_error_is_replayed_under_its_key(simulator, send, counted, pass_time, kind, effect):
    """For 24 hours the key answers 500, whether or not the event counts; another key tells which it was."""
    simulator.script_faults([kind])
    first = send("i")
    assert (first.status, first.headers.get("idempotent-replayed"), counted()) == (500, None, effect)
    pass_time(hours=23, minutes=59)
    again = send("i")
    assert (again.status, again.headers["idempotent-replayed"], again.body) == (500, "true", first.body)
    assert counted() == effect
    assert send("i", key="another").status == (400 if effect else 200)


def test_a_kept_error_survives_a_kill(tmp_path, now, raw, billing):
    """With its effect: both are in the journal."""
    params = {"event_name": "tokens", "identifier": "i", "payload[value]": 1}
    first = StripeSimulator.start(state_dir=tmp_path, clock=now)
    first.script_faults(["kept_error_after_effect"])
    there = type(raw)(first.base_url, first.api_key)
    type(billing)(there).meter()
    assert there.post("/v1/billing/meter_events", params, key="k").status == 500
    first.kill()
    with StripeSimulator.start(state_dir=tmp_path, clock=now) as second:
        again = type(raw)(second.base_url, second.api_key).post("/v1/billing/meter_events", params, key="k")
        assert (again.status, again.headers["idempotent-replayed"]) == (500, "true")
        assert [event["identifier"] for event in second.meter_events()] == ["i"]


# --- Delayed delivery ---------------------------------------------------------------------------------------------------------------


def test_a_delayed_request_takes_effect_when_it_is_released(simulator, wire, counted):
    """The connection breaks at once; nothing counts until the release, in order of sending."""
    simulator.script_faults(["delayed_delivery", "delayed_delivery"])
    assert wire.exchange("i") == (b"", "reset")
    assert wire.exchange("j") == (b"", "reset")
    assert (counted(), simulator.faults()["delayed"]) == (0, 2)
    assert simulator.release_delayed() == [200, 200]
    assert (counted(), simulator.faults()["delayed"]) == (10, 0)
    assert [event["identifier"] for event in simulator.meter_events()] == ["i", "j"]
    assert simulator.release_delayed() == []


def test_a_delayed_request_may_come_after_its_repetition(simulator, wire, send, counted):
    """Delivered only after recovery has sent it again: the key answers from memory, another key's event is a duplicate."""
    simulator.script_faults(["delayed_delivery", "delayed_delivery"])
    wire.exchange("i")
    wire.exchange("j")
    assert send("i").status == 200
    assert send("j", key="another").status == 200
    assert simulator.release_delayed() == [200, 400]
    assert counted() == 10


def test_a_delayed_request_is_delivered_at_its_time(simulator, wire, counted, now, pass_time):
    """By the simulator's clock, and at that very instant even when the clock is moved far beyond it."""
    simulator.script_faults([Fault("delayed_delivery", deliver_after_seconds=seconds) for seconds in (7200, 3600)])
    wire.exchange("later")
    wire.exchange("sooner")
    pass_time(minutes=59)
    assert counted() == 0
    pass_time(days=2)
    assert counted() == 10
    assert [(event["identifier"], event["received_at"]) for event in simulator.meter_events()] == [
        ("sooner", (now + timedelta(hours=1)).timestamp()),
        ("later", (now + timedelta(hours=2)).timestamp()),
    ]
    assert simulator.now() == now + timedelta(days=2, minutes=59)


def test_a_delayed_request_is_delivered_in_real_time_too(simulator, raw, billing):
    """Without any other request that would remind the simulator."""
    simulator.reset(clock="real")
    billing.meter()
    customer = billing.customer()
    simulator.script_faults([Fault("delayed_delivery", deliver_after_seconds=0.3)])
    assert Wire(simulator, customer, simulator.now()).exchange("i") == (b"", "reset")
    assert simulator.meter_events() == []
    deadline = time.monotonic() + 5
    while not simulator.meter_events() and time.monotonic() < deadline:
        time.sleep(0.05)
    [event] = simulator.meter_events()
    assert event["identifier"] == "i"


def test_a_delayed_request_that_is_too_old_by_then_is_refused(simulator, wire, now, pass_time):
    """Nobody hears it."""
    simulator.script_faults(["delayed_delivery"])
    wire.exchange("i")
    pass_time(days=36)
    assert simulator.release_delayed() == [400]
    assert simulator.meter_events() == []
