"""Subscriptions, their items, and the billing periods that follow from the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.stripe_simulator.billing_periods import first_anchor, period_containing


def seconds(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp())  # type: ignore[arg-type, misc]


def period(item) -> tuple[int, int]:
    return item["current_period_start"], item["current_period_end"]


def items_of(subscription) -> list:
    return subscription["items"]["data"]


# --- Periods -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment, expected",
    [
        (seconds(2025, 1, 31, 12), (seconds(2025, 1, 31, 12), seconds(2025, 2, 28, 12))),
        (seconds(2025, 2, 28, 11, 59, 59), (seconds(2025, 1, 31, 12), seconds(2025, 2, 28, 12))),
        (seconds(2025, 2, 28, 12), (seconds(2025, 2, 28, 12), seconds(2025, 3, 31, 12))),
        (seconds(2028, 2, 29, 12), (seconds(2028, 2, 29, 12), seconds(2028, 3, 31, 12))),
        (seconds(2025, 1, 1), (seconds(2024, 12, 31, 12), seconds(2025, 1, 31, 12))),
    ],
)
def test_a_month_keeps_its_anchors_day(moment, expected):
    """Anchored on the 31st at noon, shorter months begin on their last day."""
    assert period_containing(moment, anchor=seconds(2025, 1, 31, 12), interval="month", interval_count=1) == expected


@given(
    moment=st.integers(seconds(2000, 1, 1), seconds(2050, 1, 1)),
    anchor=st.integers(seconds(2000, 1, 1), seconds(2050, 1, 1)),
    interval=st.sampled_from(["day", "week", "month", "year"]),
    interval_count=st.integers(1, 6),
)
def test_periods_tile_time(moment, anchor, interval, interval_count):
    """Every moment lies in exactly one period, and the next begins where it ends."""

    def around(instant):
        return period_containing(instant, anchor=anchor, interval=interval, interval_count=interval_count)

    start, end = around(moment)
    assert start <= moment < end
    assert around(start) == around(end - 1) == (start, end)
    assert around(end)[0] == end
    assert around(anchor)[0] == anchor


def test_a_configured_anchor_is_the_next_such_day():
    """On or after the start, with the start's time of day unless given."""
    assert first_anchor(seconds(2025, 1, 15, 8), day_of_month=15) == seconds(2025, 1, 15, 8)
    assert first_anchor(seconds(2025, 1, 15, 8), day_of_month=15, hour=7) == seconds(2025, 2, 15, 7)
    assert first_anchor(seconds(2025, 2, 1), day_of_month=31, hour=0, minute=0, second=0) == seconds(2025, 2, 28)


def test_periods_live_on_items_and_roll_over_by_themselves(raw, billing, now, pass_time):
    """Monthly from the moment of creation; the subscription itself has none."""
    subscription = billing.subscription(billing.customer(), billing.price())
    assert "current_period_start" not in subscription
    assert period(items_of(subscription)[0]) == (int(now.timestamp()), seconds(2025, 11, 15, 12))
    pass_time(days=31)
    later = raw.get(f"/v1/subscriptions/{subscription['id']}").body
    assert period(items_of(later)[0]) == (seconds(2025, 11, 15, 12), seconds(2025, 12, 15, 12))


def test_an_anchor_ahead_makes_a_short_first_period(billing, now):
    """From the start to the anchor, then whole months; an anchor beyond a month, or in the past, is refused."""
    customer, price = billing.customer(), billing.price()
    subscription = billing.subscription(customer, price, billing_cycle_anchor=seconds(2025, 11, 1))
    assert period(items_of(subscription)[0]) == (int(now.timestamp()), seconds(2025, 11, 1))
    configured = billing.subscription(customer, price, **{"billing_cycle_anchor_config[day_of_month]": 1})
    assert configured["billing_cycle_anchor"] == seconds(2025, 11, 1, 12)
    assert configured["billing_cycle_anchor_config"]["day_of_month"] == 1


@pytest.mark.parametrize("anchor", [seconds(2025, 12, 1), seconds(2025, 10, 1)])
def test_an_anchor_is_at_most_one_period_ahead(raw, billing, anchor):
    """400 otherwise, and no subscription remains."""
    params = {"customer": billing.customer(), "items[0][price]": billing.price(), "billing_cycle_anchor": anchor}
    assert raw.post("/v1/subscriptions", params).status == 400
    assert raw.get("/v1/subscriptions").body["data"] == []


def test_a_trial_is_a_period_of_its_own(raw, billing, now, pass_time):
    """Trialing until its end, which then anchors the months."""
    subscription = billing.subscription(billing.customer(), billing.price(), trial_period_days=45)
    trial_end = int((now + timedelta(days=45)).timestamp())
    assert (subscription["status"], subscription["trial_end"]) == ("trialing", trial_end)
    assert period(items_of(subscription)[0]) == (int(now.timestamp()), trial_end)
    pass_time(days=45)
    later = raw.get(f"/v1/subscriptions/{subscription['id']}").body
    assert (later["status"], period(items_of(later)[0])[0]) == ("active", trial_end)


def test_a_trial_can_be_ended_now(raw, billing, now, pass_time):
    """And lengthened before that."""
    subscription = billing.subscription(billing.customer(), billing.price(), trial_period_days=10)["id"]
    longer = int((now + timedelta(days=20)).timestamp())
    assert raw.post(f"/v1/subscriptions/{subscription}", {"trial_end": longer}).body["trial_end"] == longer
    pass_time(days=1)
    ended = raw.post(f"/v1/subscriptions/{subscription}", {"trial_end": "now"}).body
    assert (ended["status"], ended["billing_cycle_anchor"]) == ("active", int((now + timedelta(days=1)).timestamp()))


# --- Life ---------------------------------------------------------------------------------------------------------------------------


def test_a_subscription_of_base_and_usage(client, billing):
    """A licensed item has a quantity, a metered one has none; both carry their price."""
    meter = billing.meter()
    subscription = client.v1.subscriptions.create(
        {
            "customer": billing.customer(),
            "items": [{"price": billing.price()}, {"price": billing.metered_price(meter), "metadata": {"kind": "usage"}}],
            "metadata": {"tenant": "t1"},
        }
    )
    base, usage = subscription["items"].data
    assert (base.quantity, base.price.recurring.usage_type) == (1, "licensed")
    assert not hasattr(usage, "quantity")
    assert (usage.price.recurring.meter, usage.metadata["kind"]) == (meter, "usage")
    assert (subscription.status, subscription.billing_mode.type) == ("active", "flexible")
    assert [one.id for one in client.v1.subscription_items.list({"subscription": subscription.id}).data] == [usage.id, base.id]
    assert client.v1.subscription_items.retrieve(usage.id).subscription == subscription.id


@pytest.mark.parametrize(
    "changes, param",
    [
        ({"items[0][price]": "price_x"}, "items[0][price]"),
        ({"items[1][quantity]": "1"}, "items[1][price]"),
        ({"customer": "cus_x"}, "customer"),
        ({"collection_method": "send_invoice"}, "days_until_due"),
        ({"backdate_start_date": seconds(2030, 1, 1)}, "backdate_start_date"),
        ({"cancel_at": seconds(2020, 1, 1)}, "cancel_at"),
        ({"trial_end": seconds(2020, 1, 1)}, "trial_end"),
        ({"trial_end": "now", "trial_period_days": 1}, "trial_end"),
        ({"currency": "eur"}, "items[0][price]"),
    ],
)
def test_a_subscription_that_cannot_be_is_refused(raw, billing, changes, param):
    """400 naming the parameter; nothing remains."""
    params = {"customer": billing.customer(), "items[0][price]": billing.price(), **changes}
    reply = raw.post("/v1/subscriptions", params)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert raw.get("/v1/subscriptions").body["data"] == []


def test_only_active_recurring_prices_can_be_subscribed_to_and_each_once(raw, billing):
    """Nor can a metered price have a quantity."""
    customer = billing.customer()
    once = raw.post("/v1/prices", {"currency": "usd", "product_data[name]": "x", "unit_amount": 1}).body["id"]
    retired = billing.price(active="false")
    metered = billing.metered_price(billing.meter())
    good = billing.price()
    for items in (
        {"items[0][price]": once},
        {"items[0][price]": retired},
        {"items[0][price]": metered, "items[0][quantity]": 2},
        {"items[0][price]": good, "items[1][price]": good},
    ):
        assert raw.post("/v1/subscriptions", {"customer": customer, **items}).status == 400


def test_subscriptions_are_listed_by_customer_price_and_status(raw, billing):
    """Canceled ones only when asked for."""
    first, second = billing.customer(), billing.customer()
    price, other = billing.price(), billing.price()
    running = billing.subscription(first, price)["id"]
    canceled = billing.subscription(first, other)["id"]
    elsewhere = billing.subscription(second, price, collection_method="send_invoice", days_until_due=30)["id"]
    raw.delete(f"/v1/subscriptions/{canceled}")

    def listed(**params):
        return [one["id"] for one in raw.get("/v1/subscriptions", params).body["data"]]

    assert listed() == [elsewhere, running]
    assert listed(customer=first) == [running]
    assert listed(customer=first, status="all") == [canceled, running]
    assert listed(status="canceled") == listed(status="ended") == [canceled]
    assert listed(price=price) == [elsewhere, running]
    assert listed(collection_method="send_invoice") == [elsewhere]
    assert listed(**{"current_period_end[gt]": seconds(2026, 1, 1)}) == []
    assert listed(**{"current_period_start[lte]": seconds(2026, 1, 1)}) == [elsewhere, running]


def test_a_cancellation_at_once_ends_the_subscription(raw, billing, now):
    """Its item keeps the period in which it ended; it can no longer be changed or canceled."""
    subscription = billing.subscription(billing.customer(), billing.price())
    path = f"/v1/subscriptions/{subscription['id']}"
    ended = raw.delete(path, {"cancellation_details[feedback]": "unused"}).body
    assert (ended["status"], ended["ended_at"], ended["canceled_at"]) == ("canceled", int(now.timestamp()), int(now.timestamp()))
    assert ended["cancellation_details"] == {"comment": None, "feedback": "unused", "reason": "cancellation_requested"}
    assert period(items_of(ended)[0]) == period(items_of(subscription)[0])
    assert raw.delete(path).status == 404
    assert raw.post(path, {"description": "x"}).status == 400
    assert raw.post(path, {"metadata[a]": "1"}).status == 200


def test_a_cancellation_at_period_end_happens_by_itself(raw, billing, now, pass_time):
    """Active until then, canceled from then on; it can be taken back before."""
    subscription = billing.subscription(billing.customer(), billing.price())["id"]
    path = f"/v1/subscriptions/{subscription}"
    end = seconds(2025, 11, 15, 12)
    asked = raw.post(path, {"cancel_at_period_end": "true"}).body
    assert (asked["status"], asked["cancel_at"], asked["cancel_at_period_end"]) == ("active", end, True)
    back = raw.post(path, {"cancel_at_period_end": "false"}).body
    assert (back["cancel_at"], back["canceled_at"]) == (None, None)
    raw.post(path, {"cancel_at_period_end": "true"})
    pass_time(days=40)
    ended = raw.get(path).body
    assert (ended["status"], ended["ended_at"]) == ("canceled", end)
    assert period(items_of(ended)[0]) == (int(now.timestamp()), end)


def test_a_cancellation_can_have_a_date(raw, billing):
    """cancel_at, set and unset."""
    path = f"/v1/subscriptions/{billing.subscription(billing.customer(), billing.price())['id']}"
    assert raw.post(path, {"cancel_at": seconds(2025, 12, 24)}).body["cancel_at"] == seconds(2025, 12, 24)
    assert raw.post(path, {"cancel_at": ""}).body["cancel_at"] is None
    assert raw.post(path, {"cancel_at": seconds(2025, 12, 24), "cancel_at_period_end": "true"}).status == 400


def test_a_change_of_plan_replaces_an_item(raw, billing):
    """By items: one removed, one changed, one added; the others stay."""
    old, kept, new = billing.price(), billing.metered_price(billing.meter()), billing.price()
    subscription = billing.subscription(billing.customer(), old, **{"items[1][price]": kept})
    base, usage = items_of(subscription)
    path = f"/v1/subscriptions/{subscription['id']}"
    changes = {
        "items[0][id]": base["id"],
        "items[0][deleted]": "true",
        "items[1][price]": new,
        "items[1][quantity]": 3,
        "items[2][id]": usage["id"],
        "items[2][metadata][a]": "1",
        "proration_behavior": "none",
    }
    after = items_of(raw.post(path, changes).body)
    assert [(one["price"]["id"], one.get("quantity")) for one in after] == [(kept, None), (new, 3)]
    assert after[0]["metadata"] == {"a": "1"}
    assert raw.get(f"/v1/subscription_items/{base['id']}").status == 404


def test_a_subscription_keeps_at_least_one_item(raw, billing):
    """Removing the last one is refused, both ways, and changes nothing."""
    subscription = billing.subscription(billing.customer(), billing.price())
    item = items_of(subscription)[0]["id"]
    removal = {"items[0][id]": item, "items[0][deleted]": "true"}
    assert raw.post(f"/v1/subscriptions/{subscription['id']}", removal).status == 400
    assert raw.delete(f"/v1/subscription_items/{item}").status == 400
    assert raw.get(f"/v1/subscription_items/{item}").status == 200


def test_items_can_be_added_changed_and_removed(client, billing):
    """Through /v1/subscription_items, with the real SDK."""
    subscription = billing.subscription(billing.customer(), billing.price())["id"]
    items = client.v1.subscription_items
    added = items.create({"subscription": subscription, "price": billing.price(), "quantity": 2})
    assert items.update(added.id, {"quantity": 5, "metadata": {"a": "1"}}).quantity == 5
    assert items.delete(added.id).deleted is True
    assert len(items.list({"subscription": subscription}).data) == 1


def test_terms_can_be_changed(raw, billing, now, pass_time):
    """Collection, description, pause, anchor."""
    path = f"/v1/subscriptions/{billing.subscription(billing.customer(), billing.price())['id']}"
    pass_time(days=3)
    changed = raw.post(
        path,
        {
            "collection_method": "send_invoice",
            "days_until_due": 14,
            "description": "VIP",
            "pause_collection[behavior]": "keep_as_draft",
            "billing_cycle_anchor": "now",
        },
    ).body
    assert (changed["collection_method"], changed["days_until_due"], changed["description"]) == ("send_invoice", 14, "VIP")
    assert changed["pause_collection"] == {"behavior": "keep_as_draft", "resumes_at": None}
    assert period(items_of(changed)[0])[0] == int((now + timedelta(days=3)).timestamp())
    assert raw.post(path, {"pause_collection": "", "description": ""}).body["pause_collection"] is None
