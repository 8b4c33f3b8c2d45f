"""Meter events that were answered 200 and do not count after all, and the thin events that say so."""

from __future__ import annotations

from datetime import timedelta

import pytest
import stripe

from sandbox.stripe_simulator.process import SimulatorFailed, StripeSimulator

HOUR = timedelta(hours=1)
TYPE = "v1.billing.meter.error_report_triggered"


@pytest.fixture
def send(raw, customer, now):
    def send(identifier: str, key: str | None = None, event_name: str = "tokens", value: object = 5) -> int:
        params = {
            "event_name": event_name,
            "identifier": identifier,
            "payload[stripe_customer_id]": customer,
            "payload[value]": value,
            "timestamp": int(now.timestamp()),
        }
        return raw.post("/v1/billing/meter_events", params, key=key).status

    return send


def test_a_disowned_event_does_not_count_although_it_was_answered_200(simulator, billing, meter, customer, send, now):
    """It leaves the summaries, keeps its identifier, and carries the code of its error; its neighbours go on counting."""
    assert [send("i", value=5), send("j", value=7)] == [200, 200]
    assert billing.total(meter, customer, now, now + HOUR) == 12
    simulator.disown(["i"], "meter_event_invalid_value")
    assert billing.total(meter, customer, now, now + HOUR) == 7
    assert [(event["status"], event["error_code"]) for event in simulator.meter_events()] == [
        ("rejected", "meter_event_invalid_value"),
        ("accepted", None),
    ]
    assert send("i", value=5) == 400


def test_a_disowned_event_is_reported_as_stripe_reports_it(simulator, raw, meter, send, now):
    """Counts by type, a sample by the request's idempotency key, and the meter as related object."""
    send("i", key="key-of-i")
    simulator.set_clock(now + timedelta(seconds=12))
    [event_id] = simulator.disown(["i"], "meter_event_no_customer_defined")
    assert raw.get(f"/v2/core/events/{event_id}").body == {
        "id": event_id,
        "object": "v2.core.event",
        "created": "2025-10-15T12:00:12Z",
        "data": {
            "developer_message_summary": "There is 1 invalid event",
            "reason": {
                "error_count": 1,
                "error_types": [
                    {
                        "code": "meter_event_no_customer_defined",
                        "error_count": 1,
                        "sample_errors": [
                            {
                                "error_message": "Customer mapping key stripe_customer_id not found in payload.",
                                "request": {"identifier": "key-of-i"},
                            }
                        ],
                    }
                ],
            },
            "validation_end": "2025-10-15T12:00:10Z",
            "validation_start": "2025-10-15T12:00:00Z",
        },
        "livemode": False,
        "related_object": {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"},
        "type": "v1.billing.meter.error_report_triggered",
    }


def test_a_report_counts_all_and_names_samples_only(simulator, raw, send):
    """Only totals prove delivery. An event sent without a key is named by its identifier."""
    for number in range(8):
        send(f"i{number}")
    [event_id] = simulator.disown([f"i{number}" for number in range(8)])
    data = raw.get(f"/v2/core/events/{event_id}").body["data"]
    [error_type] = data["reason"]["error_types"]
    assert (data["reason"]["error_count"], error_type["error_count"]) == (8, 8)
    assert [sample["request"]["identifier"] for sample in error_type["sample_errors"]] == ["i0", "i1", "i2", "i3", "i4"]
    assert data["developer_message_summary"] == "There are 8 invalid events"


def test_each_meter_has_its_own_report(simulator, raw, billing, meter, send):
    """And the list finds them by meter, type and time, newest first, without their data."""
    other = billing.meter("other")
    send("i")
    send("j", event_name="other")
    first, second = simulator.disown(["i", "j"])
    assert [event["id"] for event in raw.get("/v2/core/events").body["data"]] == [second, first]
    [listed] = raw.get("/v2/core/events", {"object_id": other}).body["data"]
    assert listed["id"] == second and "data" not in listed
    assert raw.get("/v2/core/events", {"object_id": "mtr_x"}).body["data"] == []
    assert raw.get("/v2/core/events", {"types[]": "v1.billing.meter.no_meter_found"}).body["data"] == []
    assert raw.get("/v2/core/events", {"created[gt]": "2025-10-15T12:00:00Z"}).body["data"] == []
    assert len(raw.get("/v2/core/events", {"created[gte]": "2025-10-15T12:00:00Z"}).body["data"]) == 2
    assert raw.get("/v2/core/events", {"created[gte]": "yesterday"}).status == 400
    assert raw.get("/v2/core/events", {"page": "evt_x"}).status == 400


def test_the_sdk_lists_pages_and_retrieves_reports(simulator, client, meter, send):
    """With the SDK's own class for this event, and its automatic paging."""
    for number in range(5):
        send(f"i{number}", key=f"k{number}")
        simulator.disown([f"i{number}"])
    listed = list(client.v2.core.events.list({"object_id": meter, "limit": 2, "types": [TYPE]}).auto_paging_iter())
    assert len({event.id for event in listed}) == 5
    event = client.v2.core.events.retrieve(listed[0].id)
    assert isinstance(event, stripe.events.V1BillingMeterErrorReportTriggeredEvent)
    assert event.data.reason.error_types[0].sample_errors[0].request.identifier == "k4"
    assert event.related_object.id == meter
    with pytest.raises(stripe.InvalidRequestError):
        client.v2.core.events.retrieve("evt_x")


def test_reports_are_forgotten_after_30_days(simulator, raw, send, pass_time):
    """In the list and by id."""
    send("i")
    [event_id] = simulator.disown(["i"])
    pass_time(days=30)
    assert raw.get("/v2/core/events").body["data"] == []
    missing = raw.get(f"/v2/core/events/{event_id}")
    assert (missing.status, missing.error["code"]) == (404, "not_found")


def test_a_disowned_event_stays_disowned_after_a_kill(tmp_path, raw, billing, now):
    """So does its report."""
    first = StripeSimulator.start(state_dir=tmp_path, clock=now)
    there = type(billing)(type(raw)(first.base_url, first.api_key))
    meter, customer = there.meter(), there.customer()
    there.send(customer, 5, now, "i")
    there.send(customer, 7, now, "j")
    reported = first.disown(["i"])
    events = first.meter_events()
    first.kill()
    with StripeSimulator.start(state_dir=tmp_path, clock=now) as second:
        second.settings(summary_delay_seconds=0)
        raw_there = type(raw)(second.base_url, second.api_key)
        assert second.meter_events() == events
        assert type(billing)(raw_there).total(meter, customer, now, now + HOUR) == 7
        assert [event["id"] for event in raw_there.get("/v2/core/events").body["data"]] == reported


def test_what_cannot_be_disowned_is_refused(simulator, send):
    """An unknown identifier or code: nothing is disowned then."""
    send("i")
    with pytest.raises(SimulatorFailed, match="no meter event was received under the identifier j"):
        simulator.disown(["i", "j"])
    with pytest.raises(SimulatorFailed, match="an error_code out of archived_meter"):
        simulator.disown(["i"], "bad_mood")
    with pytest.raises(SimulatorFailed, match="give identifiers"):
        simulator.disown([])
    assert [event["status"] for event in simulator.meter_events()] == ["accepted"]


def test_an_event_can_be_disowned_twice_without_harm(simulator, raw, billing, meter, customer, send, now):
    """And after it was cancelled."""
    send("i")
    send("j")
    cancel = {"event_name": "tokens", "type": "cancel", "cancel[identifier]": "j"}
    assert raw.post("/v1/billing/meter_event_adjustments", cancel).status == 200
    simulator.disown(["i"])
    assert len(simulator.disown(["i", "i", "j"])) == 1
    assert billing.total(meter, customer, now, now + HOUR) == 0


def test_what_is_invalid_at_receipt_is_reported_soon_after(simulator, raw, meter, customer, send, pass_time):
    """Answered 200, and within ten seconds in a report of its meter, with everything that went wrong in the same ten."""
    assert [send("i", key="k", value="five"), send("j", value="1.5"), send("l", value="9" * 16)] == [200] * 3
    assert raw.get("/v2/core/events").body["data"] == []
    pass_time(seconds=10)
    assert send("m", value="five") == 200
    [listed] = raw.get("/v2/core/events", {"object_id": meter}).body["data"]
    report = raw.get(f"/v2/core/events/{listed['id']}").body
    assert report["created"] == "2025-10-15T12:00:10Z"
    assert report["data"]["reason"]["error_count"] == 3
    assert [
        (one["code"], one["error_count"], [sample["request"]["identifier"] for sample in one["sample_errors"]])
        for one in report["data"]["reason"]["error_types"]
    ] == [("meter_event_invalid_value", 2, ["k", "j"]), ("meter_event_value_too_many_digits", 1, ["l"])]
    pass_time(seconds=10)
    assert len(raw.get("/v2/core/events").body["data"]) == 2
