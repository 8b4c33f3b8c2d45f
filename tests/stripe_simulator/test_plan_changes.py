"""What is invoiced when a subscription changes, pauses or ends in the middle of a period."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

MONTH = timedelta(days=31)


def invoices_of(raw, subscription) -> list[dict]:
    """Newest first."""
    data: list[dict] = raw.get("/v1/invoices", {"subscription": subscription["id"]}).body["data"]
    return data


def billed(invoice) -> list[tuple[str, int, int, int]]:
    """Price, quantity and period of each line."""
    return [
        (line["pricing"]["price_details"]["price"], line["quantity"], line["period"]["start"], line["period"]["end"])
        for line in invoice["lines"]["data"]
    ]


def seconds(instant: datetime) -> int:
    return int(instant.timestamp())


@pytest.fixture
def plans(billing, meter):
    """Two metered prices, each with a meter of its own: Bundled counts `tokens`, Pure counts `pure`."""
    return billing.metered_price(meter), billing.metered_price(billing.meter("pure"))


@pytest.fixture
def subscription(billing, plans, customer):
    return billing.subscription(customer, plans[0])


@pytest.mark.parametrize("way", ["same item", "same item by itself", "old removed, new added"])
def test_usage_belongs_to_the_price_whose_tenure_holds_it(raw, billing, plans, subscription, customer, now, pass_time, way):
    """Both are on the invoice of the period's end, also what was reported after the change and dated before it; not what was used
    outside its price's time."""
    old, new = plans
    [item] = subscription["items"]["data"]
    billing.send(customer, 100, now)
    pass_time(days=10)
    changed_at = now + timedelta(days=10)
    if way == "same item by itself":
        raw.post(f"/v1/subscription_items/{item['id']}", {"price": new})
    else:
        changes = {"items[0][id]": item["id"], "items[0][price]": new}
        if way == "old removed, new added":
            changes = {"items[0][id]": item["id"], "items[0][deleted]": "true", "items[1][price]": new}
        assert raw.post(f"/v1/subscriptions/{subscription['id']}", changes).status == 200
    billing.send(customer, 5, changed_at - timedelta(seconds=1))
    billing.send(customer, 1000, changed_at)  # nobody bills this meter any more
    billing.send(customer, 2000, changed_at - timedelta(seconds=1), event_name="pure")  # nobody billed this one yet
    billing.send(customer, 7, changed_at, event_name="pure")
    pass_time(days=21, minutes=30)
    billing.send(customer, 1, changed_at - timedelta(seconds=1))
    pass_time(hours=1)
    cycle, first = invoices_of(raw, subscription)
    assert (first["billing_reason"], cycle["billing_reason"], cycle["status"]) == ("subscription_create", "subscription_cycle", "paid")
    assert billed(cycle) == [(old, 106, seconds(now), seconds(changed_at)), (new, 7, seconds(changed_at), seconds(now + MONTH))]
    assert cycle["period_start"] == seconds(now)
    pass_time(days=31)
    assert billed(invoices_of(raw, subscription)[0]) == [(new, 0, seconds(now + MONTH), seconds(now + MONTH + timedelta(days=30)))]


def test_a_price_left_and_taken_again_bills_each_of_its_times(raw, billing, plans, subscription, customer, now, pass_time):
    """Three tenures, three charges; together they are the period."""
    old, new = plans
    item = subscription["items"]["data"][0]["id"]
    for price in (new, old):
        pass_time(days=1)
        raw.post(f"/v1/subscription_items/{item}", {"price": price})
    for day in range(3):
        billing.send(customer, 1 + day, now + timedelta(days=day))
    billing.send(customer, 10, now + timedelta(days=1), event_name="pure")
    pass_time(days=29, hours=1)
    assert [line[:2] for line in billed(invoices_of(raw, subscription)[0])] == [(old, 1), (new, 10), (old, 3)]


@pytest.mark.parametrize("classic, behavior", [(True, "create_prorations"), (False, "none")])
def test_usage_of_a_price_that_goes_is_dropped_where_stripe_says_so(raw, billing, plans, customer, now, pass_time, classic, behavior):
    """Under classic billing, and with `proration_behavior=none`."""
    mode = {"billing_mode[type]": "classic"} if classic else {}
    subscription = billing.subscription(customer, plans[0], **mode)
    billing.send(customer, 100, now)
    pass_time(days=10)
    item = subscription["items"]["data"][0]["id"]
    changes = {"items[0][id]": item, "items[0][price]": plans[1], "proration_behavior": behavior}
    assert raw.post(f"/v1/subscriptions/{subscription['id']}", changes).status == 200
    pass_time(days=22)
    assert [line[:2] for line in billed(invoices_of(raw, subscription)[0])] == [(plans[1], 0)]


def test_a_price_that_was_left_may_close_sooner(raw, billing, simulator, plans, subscription, customer, now, pass_time):
    """As a setting says: what is reported later than that after the change is on no invoice."""
    simulator.settings(left_price_seconds=3600)
    pass_time(days=10)
    raw.post(f"/v1/subscription_items/{subscription['items']['data'][0]['id']}", {"price": plans[1]})
    pass_time(hours=1)
    billing.send(customer, 1, now)
    pass_time(seconds=1)
    billing.send(customer, 10, now)
    pass_time(days=22)
    assert billed(invoices_of(raw, subscription)[0])[0][:2] == (plans[0], 1)


def test_an_item_added_in_mid_period_bills_from_then_on(raw, billing, plans, subscription, customer, now, pass_time):
    """What its meter had counted before is not its own."""
    billing.send(customer, 1000, now, event_name="pure")
    pass_time(days=10)
    raw.post("/v1/subscription_items", {"subscription": subscription["id"], "price": plans[1]})
    billing.send(customer, 7, now + timedelta(days=10), event_name="pure")
    pass_time(days=22)
    assert billed(invoices_of(raw, subscription)[0])[1] == (plans[1], 7, seconds(now + timedelta(days=10)), seconds(now + MONTH))


def test_an_item_with_shorter_periods_can_be_added_later(raw, billing, subscription, now, pass_time):
    """It is not billed for weeks before it was there, and each of its weeks has an invoice."""
    pass_time(days=10)
    weekly = billing.price(**{"recurring[interval]": "week"})
    added = raw.post("/v1/subscription_items", {"subscription": subscription["id"], "price": weekly}).body
    assert added["current_period_end"] == seconds(now + timedelta(days=14))
    assert len(invoices_of(raw, subscription)) == 1
    pass_time(days=12)
    assert [one["created"] - seconds(now) for one in invoices_of(raw, subscription)] == [21 * 86_400, 14 * 86_400, 0]


# --- Cancellation -------------------------------------------------------------------------------------------------------------------


def test_a_cancellation_with_invoice_now_bills_what_was_used(raw, billing, plans, subscription, customer, now, pass_time):
    """By a draft, which for an hour takes usage dated before the cancellation; of all the prices it had."""
    billing.send(customer, 100, now)
    pass_time(days=5)
    raw.post(f"/v1/subscription_items/{subscription['items']['data'][0]['id']}", {"price": plans[1]})
    pass_time(days=5)
    ended_at = now + timedelta(days=10)
    ended = raw.delete(f"/v1/subscriptions/{subscription['id']}", {"invoice_now": "true"}).body
    draft, _ = invoices_of(raw, subscription)
    assert ended["latest_invoice"] == draft["id"]
    assert (draft["status"], draft["billing_reason"]) == ("draft", "subscription_update")
    assert (draft["period_start"], draft["period_end"]) == (seconds(now), seconds(ended_at))
    pass_time(minutes=59)
    billing.send(customer, 7, ended_at - timedelta(seconds=1), event_name="pure")
    billing.send(customer, 1000, ended_at, event_name="pure")
    pass_time(minutes=1)
    billing.send(customer, 2000, ended_at - timedelta(seconds=1), event_name="pure")
    final = raw.get(f"/v1/invoices/{draft['id']}").body
    assert (final["status"], [line[:2] for line in billed(final)]) == ("paid", [(plans[0], 100), (plans[1], 7)])
    pass_time(days=60)
    assert len(invoices_of(raw, subscription)) == 2


def test_the_draft_of_a_cancellation_can_be_held(raw, billing, subscription, customer, now, pass_time):
    """As any other."""
    pass_time(days=5)
    raw.delete(f"/v1/subscriptions/{subscription['id']}", {"invoice_now": "true"})
    draft = invoices_of(raw, subscription)[0]
    raw.post(f"/v1/invoices/{draft['id']}", {"automatically_finalizes_at": draft["created"] + 50 * 3600})
    pass_time(hours=49)
    billing.send(customer, 100, now)
    pass_time(hours=1)
    assert billed(raw.get(f"/v1/invoices/{draft['id']}").body)[0][1] == 100


@pytest.mark.parametrize("way", ["at once", "with its customer", "by a date"])
def test_a_cancellation_without_it_drops_the_usage(raw, billing, subscription, customer, now, pass_time, way):
    """No other invoice is made."""
    billing.send(customer, 100, now)
    pass_time(days=10)
    if way == "at once":
        raw.delete(f"/v1/subscriptions/{subscription['id']}")
    elif way == "with its customer":
        raw.delete(f"/v1/customers/{customer}")
    else:
        raw.post(f"/v1/subscriptions/{subscription['id']}", {"cancel_at": seconds(now + timedelta(days=20))})
    pass_time(days=60)
    assert [one["billing_reason"] for one in invoices_of(raw, subscription)] == ["subscription_create"]
    assert raw.get(f"/v1/subscriptions/{subscription['id']}").body["status"] == "canceled"


# --- Trials and pauses --------------------------------------------------------------------------------------------------------------


def test_usage_inside_a_trial_costs_nothing(raw, billing, plans, customer, now, pass_time):
    """It is shown on the invoice of the trial's end; what follows is paid."""
    subscription = billing.subscription(customer, plans[0], trial_period_days=10)
    billing.send(customer, 100_000, now)
    billing.send(customer, 50_000, now)
    pass_time(days=11)
    billing.send(customer, 50_000, now + timedelta(days=10))
    pass_time(days=31)
    cycle, trial, _ = invoices_of(raw, subscription)
    assert (trial["total"], trial["lines"]["data"][0]["quantity"]) == (0, 150_000)
    assert (cycle["total"], cycle["lines"]["data"][0]["quantity"]) == (100, 50_000)


@pytest.mark.parametrize(
    "behavior, draft, after_the_grace",
    [
        ("keep_as_draft", ("draft", False), ("draft", "invoice.created")),
        ("void", ("draft", True), ("void", "invoice.voided")),
        ("mark_uncollectible", ("draft", True), ("uncollectible", "invoice.marked_uncollectible")),
    ],
)
def test_an_invoice_of_a_paused_subscription_ends_as_the_pause_says(
    raw, billing, subscription, customer, now, pass_time, behavior, draft, after_the_grace
):
    """Until it is taken up again, when the next one is paid as ever."""
    billing.send(customer, 100_000, now)
    raw.post(f"/v1/subscriptions/{subscription['id']}", {"pause_collection[behavior]": behavior})
    pass_time(days=31)
    made = invoices_of(raw, subscription)[0]
    assert (made["status"], made["auto_advance"]) == draft
    pass_time(hours=2)
    made = raw.get(f"/v1/invoices/{made['id']}").body
    last_event = raw.get("/v1/events", {"type": "invoice.*"}).body["data"][0]
    assert (made["status"], last_event["type"]) == after_the_grace
    assert (made["amount_paid"], made["amount_remaining"]) == (0, 200)
    raw.post(f"/v1/subscriptions/{subscription['id']}", {"pause_collection": ""})
    pass_time(days=31)
    assert invoices_of(raw, subscription)[0]["status"] == "paid"


def test_a_trial_given_to_a_running_subscription_frees_only_what_follows(raw, billing, plans, subscription, customer, now, pass_time):
    """What was used before is on the invoice of the trial's end, and costs."""
    billing.send(customer, 50_000, now)
    pass_time(days=10)
    trial_end = seconds(now + timedelta(days=20))
    path = f"/v1/subscriptions/{subscription['id']}"
    assert raw.post(path, {"trial_end": trial_end}).body["trial_start"] == seconds(now + timedelta(days=10))
    billing.send(customer, 7_000_000, now + timedelta(days=10))
    pass_time(days=11)
    invoice = invoices_of(raw, subscription)[0]
    assert [(line["quantity"], line["amount"]) for line in invoice["lines"]["data"]] == [(50_000, 100), (7_000_000, 0)]


def test_an_anchor_moved_to_now_bills_the_period_that_it_ends(raw, billing, plans, subscription, customer, now, pass_time):
    """At once, by a draft; the next period begins."""
    billing.send(customer, 50_000, now)
    pass_time(days=10)
    raw.post(f"/v1/subscriptions/{subscription['id']}", {"billing_cycle_anchor": "now"})
    ended_at = seconds(now + timedelta(days=10))
    draft, _ = invoices_of(raw, subscription)
    assert (draft["status"], billed(draft)) == ("draft", [(plans[0], 50_000, seconds(now), ended_at)])
    pass_time(days=31)
    assert billed(invoices_of(raw, subscription)[0]) == [(plans[0], 0, ended_at, seconds(now + timedelta(days=10) + MONTH))]
