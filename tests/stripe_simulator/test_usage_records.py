"""Usage records of the legacy metered billing system: only under their API version, and only for prices without a meter."""

from datetime import timedelta

import pytest

from sandbox.stripe_simulator import LEGACY_API_VERSION
from sandbox.stripe_simulator.faults import Fault

LEGACY = {"Stripe-Version": LEGACY_API_VERSION}


@pytest.fixture
def second(now) -> int:
    """The one with which the item's period begins."""
    return int(now.timestamp())


@pytest.fixture
def item(billing, raw) -> str:
    """A subscription item at a legacy price, whose period begins now."""
    price = raw.call(
        "POST",
        "/v1/prices",
        {
            "currency": "usd",
            "product_data[name]": "Legacy",
            "recurring[interval]": "month",
            "recurring[usage_type]": "metered",
            "unit_amount_decimal": "0.002",
        },
        LEGACY,
    )
    assert price.status == 200, price
    return billing.subscription(billing.customer(), price.body["id"])["items"]["data"][0]["id"]


@pytest.fixture
def record(raw, item):
    """Records usage of the item."""

    def record(quantity: int, at: int, key: str | None = None, **more: str):
        params = {"quantity": quantity, "timestamp": at, "action": "set", **more}
        return raw.call("POST", f"/v1/subscription_items/{item}/usage_records", params, {**LEGACY, "Idempotency-Key": key})

    return record


@pytest.fixture
def totals(raw, item):
    """What the item's periods come to, the current one first."""

    def totals() -> list[int]:
        reply = raw.call("GET", f"/v1/subscription_items/{item}/usage_record_summaries", "", LEGACY)
        assert reply.status == 200, reply
        return [one["total_usage"] for one in reply.body["data"]]

    return totals


def test_usage_at_a_second_is_set_or_added_to(record, totals, simulator, now, second):
    simulator.set_clock(now + timedelta(hours=1))
    assert record(5, second + 60).body["quantity"] == 5
    assert record(7, second + 60).body["quantity"] == 7
    assert record(2, second + 60, action="increment").body["quantity"] == 9
    assert record(1, second + 61).body["quantity"] == 1
    assert totals() == [10]


@pytest.mark.parametrize("offset", [-1, 3601])
def test_usage_outside_the_current_period_or_in_the_future_is_refused(record, totals, simulator, offset, now, second):
    simulator.set_clock(now + timedelta(hours=1))
    reply = record(5, second + offset)
    assert (reply.status, reply.error["param"]) == (400, "timestamp")
    assert totals() == [0]


def test_a_period_that_is_over_takes_nothing_more_and_is_invoiced(record, totals, raw, item, simulator, now, second):
    simulator.set_clock(now + timedelta(hours=1))
    record(5000, second + 60)
    simulator.set_clock(now + timedelta(days=40))
    assert record(5, second + 61).status == 400
    assert totals() == [0, 5000]
    (closing,) = [one for one in raw.get("/v1/invoices").body["data"] if one["billing_reason"] == "subscription_cycle"]
    assert [line["quantity"] for line in closing["lines"]["data"]] == [5000]


def test_an_item_backed_by_a_meter_is_refused_in_stripes_words(billing, raw):
    item = billing.subscription(billing.customer(), billing.metered_price(billing.meter()))["items"]["data"][0]["id"]
    for method, what, params in (("POST", "usage_records", {"quantity": 1}), ("GET", "usage_record_summaries", "")):
        reply = raw.call(method, f"/v1/subscription_items/{item}/{what}", params, LEGACY)
        assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
        assert "is not on the legacy metered billing system. Call /v1/billing/meter_events instead." in reply.error["message"]


def test_later_versions_have_neither_usage_records_nor_prices_without_a_meter(billing, raw, item):
    assert raw.post(f"/v1/subscription_items/{item}/usage_records", {"quantity": 1}).status == 404
    price = {"currency": "usd", "product_data[name]": "x", "recurring[interval]": "month", "recurring[usage_type]": "metered"}
    assert "must be backed by meters" in raw.post("/v1/prices", {**price, "unit_amount": 1}).error["message"]


def test_an_idempotency_key_answers_as_before_and_faults_apply(record, totals, simulator, now, second):
    simulator.set_clock(now + timedelta(hours=1))
    simulator.script_faults([Fault("error_after_effect", path="/v1/subscription_items")])
    assert record(5, second + 60, "key").status == 500
    again = record(5, second + 60, "key")
    assert (again.status, again.headers["idempotent-replayed"]) == (200, "true")
    assert record(6, second + 60, "key").error["type"] == "idempotency_error"
    assert totals() == [5]


def test_what_was_recorded_is_shown_with_the_key_that_set_it(record, simulator, now, second):
    simulator.set_clock(now + timedelta(hours=1))
    record(5, second + 60, "key")
    (seen,) = simulator.usage_records()
    assert (seen["quantity"], seen["idempotency_key"]) == (5, "key")
