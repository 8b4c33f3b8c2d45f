"""Prorations: what a licensed item's change in mid-period gives back and costs. The month here is October 15 to November 15, 31 days."""

from __future__ import annotations

from datetime import timedelta

import pytest

DAY = 86_400


def invoices_of(raw, subscription) -> list[dict]:
    """Newest first."""
    data: list[dict] = raw.get("/v1/invoices", {"subscription": subscription["id"]}).body["data"]
    return data


def amounts(invoice) -> list[tuple[bool, int]]:
    """Of each line, whether it is a proration, and its amount."""
    return [(line["parent"]["subscription_item_details"]["proration"], line["amount"]) for line in invoice["lines"]["data"]]


@pytest.fixture
def solo(billing):
    return billing.price(unit_amount="3100")


@pytest.fixture
def team(billing):
    return billing.price(unit_amount="9300")


@pytest.fixture
def subscription(billing, meter, customer, solo):
    """Solo at $31.00 a month, and tokens at $0.00002."""
    return billing.subscription(customer, solo, **{"items[1][price]": billing.metered_price(meter)})


def item_of(subscription, price) -> str:
    return next(str(item["id"]) for item in subscription["items"]["data"] if item["price"]["id"] == price)


@pytest.mark.parametrize("way", ["same item", "by itself", "old removed, new added"])
def test_a_changed_plan_is_prorated_on_the_next_invoice(raw, billing, subscription, customer, solo, team, now, pass_time, way):
    """The unused time back and the remaining time charged, by the second, beside the metered lines and never among them."""
    billing.send(customer, 100_000, now)
    pass_time(days=10)
    item = item_of(subscription, solo)
    if way == "by itself":
        changed = raw.post(f"/v1/subscription_items/{item}", {"price": team})
    elif way == "same item":
        changed = raw.post(f"/v1/subscriptions/{subscription['id']}", {"items[0][id]": item, "items[0][price]": team})
    else:
        changes = {"items[0][id]": item, "items[0][deleted]": "true", "items[1][price]": team}
        changed = raw.post(f"/v1/subscriptions/{subscription['id']}", changes)
    assert changed.status == 200 and len(invoices_of(raw, subscription)) == 1
    pass_time(days=21, hours=1)
    cycle = invoices_of(raw, subscription)[0]
    assert sorted(amounts(cycle)) == [(False, 200), (False, 9300), (True, -2100), (True, 6300)]
    back, remaining = (line for line in cycle["lines"]["data"] if line["parent"]["subscription_item_details"]["proration"])
    changed_at = int((now + timedelta(days=10)).timestamp())
    assert back["period"] == remaining["period"] == {"start": changed_at, "end": changed_at + 21 * DAY}
    assert back["parent"]["subscription_item_details"]["subscription_item"] == item
    assert (back["pricing"]["price_details"]["price"], back["discountable"]) == (solo, False)
    assert back["description"].startswith("Unused time on 1 × ") and back["description"].endswith("after 25 Oct 2025")
    assert remaining["description"].startswith("Remaining time on 1 × ")
    invoice_item = raw.get(f"/v1/invoiceitems/{back['parent']['subscription_item_details']['invoice_item']}").body
    assert (invoice_item["proration"], invoice_item["amount"], invoice_item["invoice"]) == (True, -2100, cycle["id"])
    assert len(amounts(invoices_of(raw, subscription)[0])) == 4


def test_quantities_additions_and_removals_are_prorated(raw, billing, subscription, customer, solo, team, pass_time):
    """Each for its part of the month; a change of nothing that costs is none."""
    item = item_of(subscription, solo)
    pass_time(days=10)
    raw.post(f"/v1/subscription_items/{item}", {"quantity": 3})
    raw.post(f"/v1/subscription_items/{item}", {"metadata[a]": "b", "quantity": 3})
    raw.post("/v1/subscription_items", {"subscription": subscription["id"], "price": team})
    pass_time(days=11)
    raw.delete(f"/v1/subscription_items/{item}")
    pending = raw.get("/v1/invoiceitems", {"customer": customer, "pending": "true"}).body["data"]
    assert [(one["amount"], one["quantity"]) for one in pending] == [(-3000, 3), (6300, 1), (6300, 3), (-2100, 1)]
    pass_time(days=10, hours=1)
    assert invoices_of(raw, subscription)[0]["total"] == -2100 + 6300 + 6300 - 3000 + 9300


def test_nothing_is_prorated_where_none_is_asked_for(raw, subscription, customer, solo, team, pass_time):
    """`proration_behavior=none`, and for a metered item never."""
    pass_time(days=10)
    changes = {"items[0][id]": item_of(subscription, solo), "items[0][price]": team, "proration_behavior": "none"}
    assert raw.post(f"/v1/subscriptions/{subscription['id']}", changes).status == 200
    metered = next(item for item in subscription["items"]["data"] if item["price"]["id"] != solo)
    raw.delete(f"/v1/subscription_items/{metered['id']}")
    assert raw.get("/v1/invoiceitems", {"customer": customer}).body["data"] == []


def test_a_change_can_be_invoiced_at_once(raw, billing, subscription, customer, solo, team, now, pass_time):
    """By an invoice of its own, which is final; the metered usage stays for the period's end."""
    billing.send(customer, 100_000, now)
    pass_time(days=10)
    path = f"/v1/subscriptions/{subscription['id']}"
    for price in (team, solo, team):
        item = item_of(raw.get(path).body, solo if price == team else team)
        shown = raw.post(path, {"items[0][id]": item, "items[0][price]": price, "proration_behavior": "always_invoice"}).body
        latest = invoices_of(raw, subscription)[0]
        assert shown["latest_invoice"] == latest["id"]
    *_, first = made = invoices_of(raw, subscription)
    assert len(made) == 4 and first["billing_reason"] == "subscription_create"
    assert (latest["status"], latest["billing_reason"]) == ("paid", "subscription_update")
    assert [one["total"] for one in made] == [4200, -4200, 4200, 3100]
    assert amounts(latest) == [(True, -2100), (True, 6300)]
    pass_time(days=21, hours=1)
    assert amounts(invoices_of(raw, subscription)[0]) == [(False, 9300), (False, 200)]


def test_a_proration_can_be_dated(raw, subscription, customer, solo, team, now, pass_time):
    """Within the period."""
    pass_time(days=10)
    item, path = item_of(subscription, solo), f"/v1/subscriptions/{subscription['id']}"
    change = {"items[0][id]": item, "items[0][price]": team}
    outside = int((now - timedelta(days=1)).timestamp())
    assert raw.post(path, {**change, "proration_date": outside}).error["param"] == "proration_date"
    raw.post(path, {**change, "proration_date": int((now + timedelta(days=9)).timestamp())})
    pending = raw.get("/v1/invoiceitems", {"customer": customer}).body["data"]
    assert [one["amount"] for one in pending] == [6600, -2200]


@pytest.mark.parametrize("behavior, first_lines", [("create_prorations", [(True, 1000), (False, 0)]), ("none", [(False, 0)])])
def test_what_comes_before_the_first_anchor_is_paid_in_part(raw, billing, meter, customer, solo, now, pass_time, behavior, first_lines):
    """Ten of 31 days, or nothing; from the anchor on, all."""
    anchor = int((now + timedelta(days=10)).timestamp())  # October 25: the period before it has 30 days
    monthly = billing.price(unit_amount="3000")
    terms = {"billing_cycle_anchor": anchor, "items[1][price]": billing.metered_price(meter), "proration_behavior": behavior}
    subscription = billing.subscription(customer, monthly, **terms)
    assert amounts(invoices_of(raw, subscription)[0]) == first_lines
    pass_time(days=10, hours=1)
    assert amounts(invoices_of(raw, subscription)[0]) == [(False, 3000), (False, 0)]


def test_a_cancellation_gives_back_what_it_is_asked_to(raw, subscription, pass_time):
    """With `prorate`; on the last invoice with `invoice_now`."""
    pass_time(days=10)
    raw.delete(f"/v1/subscriptions/{subscription['id']}", {"prorate": "true", "invoice_now": "true"})
    last = invoices_of(raw, subscription)[0]
    assert (last["status"], amounts(last)) == ("draft", [(False, 0), (True, -2100)])


def test_a_moved_anchor_gives_back_the_rest_of_its_period(raw, subscription, pass_time):
    """On the invoice that begins the next one."""
    pass_time(days=10)
    raw.post(f"/v1/subscriptions/{subscription['id']}", {"billing_cycle_anchor": "now"})
    assert sorted(amounts(invoices_of(raw, subscription)[0])) == [(False, 0), (False, 3100), (True, -2100)]


def test_a_trial_is_not_prorated(raw, billing, customer, solo, team, pass_time):
    """Nothing was paid, nothing is given back."""
    subscription = billing.subscription(customer, solo, trial_period_days=20)
    pass_time(days=10)
    item = subscription["items"]["data"][0]["id"]
    raw.post(f"/v1/subscription_items/{item}", {"price": team})
    assert raw.get("/v1/invoiceitems", {"customer": customer}).body["data"] == []
