"""The routes beside Stripe's: the clock, resets, and what was received."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sandbox.stripe_simulator.process import SimulatorFailed, StripeSimulator


def test_frozen_time_moves_only_when_told(raw, simulator, now):
    """Forwards to the millisecond; created objects carry it."""
    assert simulator.now() == now
    later = now + timedelta(hours=1, milliseconds=250)
    simulator.set_clock(later)
    assert simulator.now() == later
    assert raw.post("/v1/customers").body["created"] == int(later.timestamp())
    assert raw.get("/simulator/clock").body == {"now": "2025-10-15T13:00:00.250Z", "mode": "frozen"}


def test_time_never_moves_backwards(simulator, now):
    """Except by a reset, which forgets everything that happened."""
    with pytest.raises(SimulatorFailed, match="never moves backwards"):
        simulator.set_clock(now - timedelta(seconds=1))
    assert simulator.now() == now
    simulator.reset(clock=now - timedelta(days=100))
    assert simulator.now() == now - timedelta(days=100)


def test_time_can_follow_the_system(raw, simulator):
    """Real from a reset on, and frozen again where it stands."""
    simulator.reset(clock="real")
    assert abs(simulator.now() - datetime.now(UTC)) < timedelta(seconds=5)
    frozen = raw.call("POST", "/simulator/clock", '{"mode": "frozen"}').body
    assert frozen["mode"] == "frozen"
    assert raw.get("/simulator/clock").body == frozen
    assert raw.call("POST", "/simulator/clock", '{"mode": "real"}').body["mode"] == "real"


def test_a_reset_forgets_everything(raw, billing, simulator, now):
    """Objects, events, identifiers, idempotency keys, settings, and the count of ids."""
    simulator.settings(summary_delay_seconds=5)
    first = raw.post("/v1/customers", {"name": "a"}, key="k").body["id"]
    billing.meter()
    billing.send(first, 1, now, "report-1")
    simulator.reset()
    assert raw.get("/v1/customers").body["data"] == []
    assert simulator.meter_events() == []
    assert simulator.settings()["summary_delay_seconds"] == 90
    assert raw.post("/v1/customers", {"name": "b"}, key="k").body["id"] == first
    billing.meter()
    assert billing.send(first, 1, now, "report-1").status == 200


def test_the_same_calls_give_the_same_ids(raw, billing, simulator):
    """Ids depend only on how many came before, so that a history can be repeated."""

    def history() -> list[str]:
        customer, meter = billing.customer(), billing.meter()
        subscription = billing.subscription(customer, billing.metered_price(meter))
        return [customer, meter, subscription["id"], subscription["items"]["data"][0]["id"]]

    first = history()
    simulator.reset()
    assert history() == first
    assert [one.split("_")[0] for one in first] == ["cus", "mtr", "sub", "si"]


def test_received_events_can_be_read_page_by_page(raw, billing, simulator, now):
    """All of them, in order of receipt, whatever their fate."""
    billing.meter()
    customer = billing.customer()
    for number in range(5):
        billing.send(customer, number, now, f"i{number}")
    page = raw.get("/simulator/meter_events", {"after": 1, "limit": 2}).body
    assert [event["identifier"] for event in page["data"]] == ["i1", "i2"]
    assert (page["has_more"], page["next_after"]) == (True, 3)
    assert [event["identifier"] for event in simulator.meter_events()] == [f"i{number}" for number in range(5)]
    assert simulator.meter_events()[0] == {
        "number": 1,
        "identifier": "i0",
        "event_name": "tokens",
        "meter": simulator.meter_events()[0]["meter"],
        "customer": customer,
        "value": "0",
        "timestamp": int(now.timestamp()),
        "received_at": now.timestamp(),
        "status": "accepted",
        "error_code": None,
    }


@pytest.mark.parametrize(
    "path, body",
    [
        ("/simulator/clock", "{"),
        ("/simulator/clock", "[]"),
        ("/simulator/clock", "{}"),
        ("/simulator/clock", '{"now": "2025-10-15T12:00:00+00:00"}'),
        ("/simulator/clock", '{"now": "tomorrow Z"}'),
        ("/simulator/reset", '{"clock": "yesterday"}'),
        ("/simulator/settings", '{"summary_delay": 1}'),
        ("/simulator/settings", '{"summary_delay_seconds": "1"}'),
        ("/simulator/settings", '{"summary_delay_seconds": -1}'),
    ],
)
def test_a_control_request_that_makes_no_sense_is_refused(raw, path, body):
    """400 with a reason."""
    reply = raw.call("POST", path, body)
    assert reply.status == 400
    assert reply.body["error"]


def test_an_unknown_control_route_is_404(raw):
    """With a plain answer, not Stripe's."""
    assert raw.get("/simulator/nothing").body == {"error": "there is no GET /simulator/nothing"}


def test_health_needs_no_key(raw, simulator: StripeSimulator):
    """It says which process answers, and for which API version."""
    assert raw.call("GET", "/simulator/health", headers={"Authorization": None}).body == {
        "status": "ok",
        "api_version": "2026-10-28.endive",
        "pid": simulator.pid,
        "meter_events": 0,
    }
