"""Meter events: what is refused at once, what is accepted and never counts, and how long an identifier is remembered."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import stripe


def test_an_accepted_event_is_answered_as_sent(raw, billing, now):
    """The payload and time are repeated; the identifier is the caller's."""
    billing.meter()
    customer = billing.customer()
    at = now - timedelta(hours=1)
    event = billing.send(customer, 25, at, "report-1").body
    assert event == {
        "object": "billing.meter_event",
        "created": int(now.timestamp()),
        "event_name": "tokens",
        "identifier": "report-1",
        "livemode": False,
        "payload": {"stripe_customer_id": customer, "value": "25"},
        "timestamp": int(at.timestamp()),
    }


def test_an_identifier_and_a_time_are_filled_in(raw, billing, now):
    """Without an identifier each event gets its own; without a time it is now."""
    billing.meter()
    params = {"event_name": "tokens", "payload[stripe_customer_id]": billing.customer(), "payload[value]": 1}
    events = [raw.post("/v1/billing/meter_events", params).body for _ in range(2)]
    assert events[0]["identifier"] != events[1]["identifier"]
    assert events[0]["timestamp"] == int(now.timestamp())


def test_a_repeated_identifier_is_refused_not_swallowed(billing, now, simulator):
    """400 without a code, with `stripe-should-retry: false`; the event counts once, whatever the second one said."""
    billing.meter()
    customer = billing.customer()
    billing.send(customer, 25, now, "report-1")
    again = billing.send(customer, 99, now, "report-1")
    assert again.status == 400
    assert again.error == {"message": "An event already exists with identifier report-1.", "type": "invalid_request_error"}
    assert again.headers["stripe-should-retry"] == "false"
    assert [event["value"] for event in simulator.meter_events()] == ["25"]


def test_two_identical_events_at_once_count_once(billing, now, simulator):
    """Exactly one of twenty simultaneous sends is accepted."""
    billing.meter()
    customer = billing.customer()
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(billing.send(customer, 1, now, "report-1").status)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [400] * 19
    assert len(simulator.meter_events()) == 1


def test_an_identifier_is_forgotten_after_24_hours_and_counts_again(billing, now, pass_time, simulator):
    """Counted from receipt, not from the event's time. This is what a blind resend after the window does: it bills twice."""
    meter, customer = billing.meter(), billing.customer()
    at = now - timedelta(days=20)
    assert billing.send(customer, 25, at, "report-1").status == 200
    pass_time(hours=23, minutes=59, seconds=59)
    assert billing.send(customer, 25, at, "report-1").status == 400
    pass_time(seconds=1)
    assert billing.send(customer, 25, at, "report-1").status == 200
    pass_time(minutes=5)
    assert billing.total(meter, customer, now - timedelta(days=21), now) == 50


def test_the_time_window_is_35_days_back_and_5_minutes_ahead(billing, now):
    """Both bounds included; the refusals name the bound that was missed, and carry no code."""
    billing.meter()
    customer = billing.customer()
    second, oldest, newest = timedelta(seconds=1), now - timedelta(days=35), now + timedelta(minutes=5)
    assert [billing.send(customer, 1, at).status for at in (oldest, newest)] == [200, 200]
    too_old, too_new = billing.send(customer, 1, oldest - second), billing.send(customer, 1, newest + second)
    assert too_old.error == {
        "message": "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal to "
        f"{int(oldest.timestamp())}.",
        "type": "invalid_request_error",
    }
    assert too_new.status == 400
    assert str(int(newest.timestamp())) in too_new.error["message"]


def test_an_event_without_an_active_meter_is_refused(raw, billing, now):
    """For an unknown name as for a deactivated meter; a reactivated one takes events again."""
    meter, customer = billing.meter(), billing.customer()
    assert billing.send(customer, 1, now, event_name="other").error["message"] == 'No active meter found for event name "other"'
    raw.post(f"/v1/billing/meters/{meter}/deactivate")
    assert billing.send(customer, 1, now).status == 400
    raw.post(f"/v1/billing/meters/{meter}/reactivate")
    assert billing.send(customer, 1, now).status == 200


@pytest.mark.parametrize(
    "value, error_code",
    [
        ("5", None),
        ("0", None),
        ("-5", None),  # a documented way to correct usage
        ("999999999999999", None),
        ("1000000000000000", "meter_event_value_too_many_digits"),
        ("1.5", "meter_event_invalid_value"),
        ("five", "meter_event_invalid_value"),
        ("1e3", "meter_event_invalid_value"),
    ],
)
def test_a_value_is_judged_later(billing, now, simulator, value, error_code):
    """A 200 does not mean counted: the answer is the same, and the event is kept with the code Stripe would report."""
    billing.meter()
    assert billing.send(billing.customer(), value, now).status == 200
    [event] = simulator.meter_events()
    assert (event["value"], event["error_code"]) == (value, error_code)
    assert event["status"] == ("accepted" if error_code is None else "rejected")


def test_an_unknown_or_absent_customer_is_found_out_later(raw, billing, now, simulator):
    """200 for both; and for a customer that was deleted."""
    billing.meter()
    gone = billing.customer()
    raw.delete(f"/v1/customers/{gone}")
    for customer in ("cus_x", gone):
        assert billing.send(customer, 1, now).status == 200
    assert raw.post("/v1/billing/meter_events", {"event_name": "tokens", "payload[value]": 1}).status == 200
    assert [event["error_code"] for event in simulator.meter_events()] == [
        "meter_event_customer_not_found",
        "meter_event_customer_not_found",
        "meter_event_no_customer_defined",
    ]


def test_a_meter_may_name_its_own_payload_keys(raw, billing, now, simulator):
    """customer_mapping and value_settings decide where customer and value are found."""
    keys = {"customer_mapping[type]": "by_id", "customer_mapping[event_payload_key]": "who", "value_settings[event_payload_key]": "n"}
    billing.meter(**keys)
    customer = billing.customer()
    raw.post("/v1/billing/meter_events", {"event_name": "tokens", "payload[who]": customer, "payload[n]": 7, "payload[model]": "m"})
    [event] = simulator.meter_events()
    assert (event["customer"], event["value"], event["status"]) == (customer, "7", "accepted")


def test_a_cancelled_event_no_longer_counts(raw, billing, now, pass_time, simulator):
    """It leaves the summaries with the same delay as it came; its identifier stays taken."""
    meter, customer = billing.meter(), billing.customer()
    billing.send(customer, 25, now, "report-1")
    pass_time(minutes=5)
    cancel = {"event_name": "tokens", "type": "cancel", "cancel[identifier]": "report-1"}
    assert raw.post("/v1/billing/meter_event_adjustments", cancel).body["status"] == "pending"
    later = now + timedelta(minutes=1)
    assert billing.total(meter, customer, now, later) == 25
    pass_time(minutes=2)
    assert billing.total(meter, customer, now, later) == 0
    assert [event["status"] for event in simulator.meter_events()] == ["cancelled"]
    assert billing.send(customer, 25, now, "report-1").status == 400
    assert raw.post("/v1/billing/meter_event_adjustments", cancel).status == 400


def test_an_event_can_be_cancelled_for_24_hours(raw, billing, now, pass_time):
    """Afterwards, and for an unknown identifier or another event name, the adjustment is refused."""
    billing.meter()
    billing.meter("other")
    billing.send(billing.customer(), 25, now, "report-1")
    cancel = {"event_name": "tokens", "type": "cancel", "cancel[identifier]": "report-1"}
    for wrong in ({"cancel[identifier]": "report-2"}, {"event_name": "other"}):
        assert raw.post("/v1/billing/meter_event_adjustments", {**cancel, **wrong}).status == 400
    pass_time(hours=24)
    assert raw.post("/v1/billing/meter_event_adjustments", cancel).status == 400


@pytest.mark.parametrize("params", [{"identifier": "i" * 101}, {"payload[value]": "1" * 101}, {"timestamp": "today"}, {"payload": "5"}])
def test_a_malformed_event_is_refused_at_once(raw, billing, params):
    """Lengths, types and shapes are checked before the meter is looked for."""
    billing.meter()
    event = {"event_name": "tokens", "payload[stripe_customer_id]": "c", "payload[value]": 1}
    if "payload" in params:
        event = {"event_name": "tokens"}
    assert raw.post("/v1/billing/meter_events", {**event, **params}).status == 400


def test_a_refused_expansion_leaves_no_event_behind(raw, billing, simulator):
    """A 400 that no key keeps must not have counted."""
    billing.meter()
    event = {"event_name": "tokens", "identifier": "i", "payload[stripe_customer_id]": billing.customer(), "payload[value]": 1}
    assert raw.post("/v1/billing/meter_events", {**event, "expand[]": "meter"}).status == 400
    assert simulator.meter_events() == []
    assert raw.post("/v1/billing/meter_events", event).status == 200


def test_the_sdk_sends_and_recognizes_a_duplicate(client, billing, now):
    """InvalidRequestError without a code; its header says not to retry."""
    billing.meter()
    event = {
        "event_name": "tokens",
        "identifier": "report-1",
        "payload": {"stripe_customer_id": billing.customer(), "value": "25"},
        "timestamp": int(now.timestamp()),
    }
    sent = client.v1.billing.meter_events.create(event, {"idempotency_key": "first"})
    assert sent.identifier == "report-1"
    with pytest.raises(stripe.InvalidRequestError) as duplicate:
        client.v1.billing.meter_events.create(event, {"idempotency_key": "second"})
    assert duplicate.value.code is None
    assert duplicate.value.headers["stripe-should-retry"] == "false"
