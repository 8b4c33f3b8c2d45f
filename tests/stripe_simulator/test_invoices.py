"""Invoices: drafts at the end of billing periods, their grace, and what is on them."""

from __future__ import annotations

from datetime import timedelta

import pytest

MONTH = timedelta(days=31)
BUNDLED = {
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "tiers[0][up_to]": 5_000_000,
    "tiers[0][unit_amount]": 0,
    "tiers[1][up_to]": "inf",
    "tiers[1][unit_amount_decimal]": "0.0005",
}


def invoices_of(raw, subscription, **filters) -> list[dict]:
    """Newest first."""
    listed = raw.get("/v1/invoices", {"subscription": subscription["id"], **filters})
    assert listed.status == 200, listed
    data: list[dict] = listed.body["data"]
    return data


def quantities(invoice) -> list[tuple[int, int]]:
    return [(line["quantity"], line["amount"]) for line in invoice["lines"]["data"]]


def tiered_price(raw, meter, tiers) -> str:
    recurring = {"recurring[interval]": "month", "recurring[usage_type]": "metered", "recurring[meter]": meter}
    made = raw.post("/v1/prices", {"currency": "usd", "product_data[name]": "Tokens", **recurring, **tiers})
    assert made.status == 200, made
    return str(made.body["id"])


@pytest.fixture
def subscription(raw, billing, meter, customer):
    """Metered by the token at $0.00002, for a month from now."""
    return billing.subscription(customer, billing.metered_price(meter))


def test_the_first_invoice_is_final_at_once(raw, subscription, now):
    """It bills no usage, even if the usage came first."""
    [first] = invoices_of(raw, subscription)
    assert (first["billing_reason"], first["status"], first["total"]) == ("subscription_create", "paid", 0)
    assert first["created"] == first["status_transitions"]["finalized_at"] == int(now.timestamp())
    assert first["parent"]["subscription_details"]["subscription"] == subscription["id"]


def test_an_ended_period_has_a_draft_for_an_hour_then_it_is_paid(raw, billing, customer, subscription, now, pass_time):
    """Usage that is received while it is a draft is on it; what comes later is on no invoice."""
    billing.send(customer, 1_000_000, now)
    pass_time(days=31, minutes=30)
    draft, _ = invoices_of(raw, subscription)
    assert (draft["status"], draft["billing_reason"], quantities(draft)) == ("draft", "subscription_cycle", [(1_000_000, 2000)])
    assert draft["automatically_finalizes_at"] == draft["created"] + 3600 == int((now + MONTH).timestamp()) + 3600
    assert draft["lines"]["data"][0]["period"] == {"start": int(now.timestamp()), "end": int((now + MONTH).timestamp())}
    billing.send(customer, 500_000, now + MONTH - timedelta(minutes=1))
    pass_time(minutes=31)
    billing.send(customer, 7, now + MONTH - timedelta(minutes=1))
    pass_time(minutes=31)
    paid = raw.get(f"/v1/invoices/{draft['id']}").body
    assert (paid["status"], paid["total"], quantities(paid)) == ("paid", 3000, [(1_500_000, 3000)])
    pass_time(days=31)
    assert [quantities(one) for one in invoices_of(raw, subscription)] == [[(0, 0)], [(1_500_000, 3000)], [(0, 0)]]


def test_what_was_final_before_anybody_looked_is_without_what_came_later(raw, billing, customer, subscription, now, pass_time):
    """Nobody has to be there when an invoice finalises."""
    billing.send(customer, 100_000, now)
    pass_time(days=31, hours=2)
    billing.send(customer, 7, now)
    pass_time(days=2)
    final = invoices_of(raw, subscription)[0]
    assert (final["status"], quantities(final)) == ("paid", [(100_000, 200)])
    assert final["status_transitions"]["finalized_at"] == int((now + MONTH + timedelta(hours=1)).timestamp())


def test_graduated_usage_has_a_line_per_tier_and_the_base_is_paid_in_advance(raw, billing, meter, customer, now, pass_time):
    """The product's Bundled plan: $50.00, five million tokens free, then $0.000005 each."""
    base = billing.price(unit_amount="5000")
    subscription = billing.subscription(customer, base, **{"items[1][price]": tiered_price(raw, meter, BUNDLED)})
    billing.send(customer, 5_300_000, now)
    pass_time(days=31, hours=1)
    cycle, first = invoices_of(raw, subscription)
    assert quantities(first) == [(1, 5000), (0, 0)]
    assert quantities(cycle) == [(1, 5000), (5_000_000, 0), (300_000, 150)]
    base_line, *usage = cycle["lines"]["data"]
    ended = int((now + MONTH).timestamp())
    assert base_line["period"]["start"] == ended and {line["period"]["end"] for line in usage} == {ended}
    assert cycle["total"] == cycle["amount_paid"] == 5150


def test_a_held_draft_finalises_when_it_is_told_to(raw, billing, customer, subscription, now, pass_time):
    """`automatically_finalizes_at` moves it, without `auto_advance` it stays; a finalised one moves no more."""
    pass_time(days=31, minutes=10)
    draft = invoices_of(raw, subscription)[0]
    path = f"/v1/invoices/{draft['id']}"
    later = draft["created"] + 48 * 3600
    assert raw.post(path, {"automatically_finalizes_at": later}).body["automatically_finalizes_at"] == later
    pass_time(hours=40)
    billing.send(customer, 50_000, now)
    assert quantities(raw.get(path).body) == [(50_000, 100)]
    assert raw.post(path, {"auto_advance": "false"}).body["automatically_finalizes_at"] is None
    pass_time(days=9)
    assert raw.get(path).body["status"] == "draft"
    assert raw.post(path + "/finalize", {"auto_advance": "false"}).body["status"] == "open"
    assert raw.post(path + "/finalize").status == raw.post(path, {"automatically_finalizes_at": later * 2}).status == 400
    assert raw.post(path + "/pay").body["status"] == "paid"
    assert raw.post(path + "/pay").status == raw.post(path + "/void").status == 400


def test_a_cancelled_subscription_has_no_more_drafts(raw, billing, meter, customer, now, pass_time):
    """Cancelled at once, its usage is on no invoice; at the end of its period, the usage is billed and nothing in advance."""
    at_once = billing.subscription(customer, billing.metered_price(meter))
    other = billing.customer()
    at_the_end = billing.subscription(other, billing.price(), **{"items[1][price]": billing.metered_price(meter)})
    billing.send(customer, 50_000, now)
    billing.send(other, 50_000, now)
    pass_time(days=3)
    raw.delete(f"/v1/subscriptions/{at_once['id']}")
    raw.post(f"/v1/subscriptions/{at_the_end['id']}", {"cancel_at_period_end": "true"})
    pass_time(days=90)
    assert [one["billing_reason"] for one in invoices_of(raw, at_once)] == ["subscription_create"]
    assert [quantities(one) for one in invoices_of(raw, at_the_end)] == [[(50_000, 100)], [(1, 1900), (0, 0)]]


def test_a_changed_price_leaves_what_was_invoiced(raw, billing, meter, customer, now, pass_time):
    """Periods that have ended are billed at the price they ended with."""
    subscription = billing.subscription(customer, billing.metered_price(meter))
    billing.send(customer, 50_000, now)
    pass_time(days=31, minutes=90)
    item = subscription["items"]["data"][0]["id"]
    raw.post(f"/v1/subscription_items/{item}", {"price": billing.metered_price(meter, unit_amount_decimal="1")})
    assert invoices_of(raw, subscription)[0]["total"] == 100


def test_invoices_are_listed_by_customer_status_and_time(raw, billing, subscription, customer, now, pass_time):
    """Newest first, page by page."""
    billing.subscription(billing.customer(), billing.price())
    pass_time(days=63)
    assert len(raw.get("/v1/invoices").body["data"]) == 6
    mine = raw.get("/v1/invoices", {"customer": customer, "limit": 2}).body
    assert mine["has_more"] and [one["created"] for one in mine["data"]] == sorted((one["created"] for one in mine["data"]), reverse=True)
    rest = raw.get("/v1/invoices", {"customer": customer, "starting_after": mine["data"][-1]["id"]}).body["data"]
    assert [one["billing_reason"] for one in rest] == ["subscription_create"]
    assert invoices_of(raw, subscription, status="draft") == []
    assert len(invoices_of(raw, subscription, **{"created[gt]": int(now.timestamp())})) == 2
    assert raw.get("/v1/invoices", {"subscription": "sub_nobody"}).body["data"] == []
    assert raw.get("/v1/invoices/in_nobody").status == 404


@pytest.mark.parametrize(
    "terms, quantity, amounts",
    [
        ({"transform_quantity[divide_by]": 1000, "transform_quantity[round]": "up", "unit_amount_decimal": "3"}, 1001, [6]),
        ({"transform_quantity[divide_by]": 1000, "transform_quantity[round]": "down", "unit_amount_decimal": "3"}, 1999, [3]),
        ({"unit_amount_decimal": "0.05"}, 30, [2]),
    ],
)
def test_prices_without_tiers(raw, billing, meter, customer, now, pass_time, terms, quantity, amounts):
    """By the unit, rounded per line, or by the package."""
    subscription = billing.subscription(customer, billing.metered_price(meter, **terms))
    billing.send(customer, quantity, now)
    pass_time(days=31, hours=1)
    assert [amount for _, amount in quantities(invoices_of(raw, subscription)[0])] == amounts


def test_volume_puts_all_units_into_one_tier(raw, billing, meter, customer, now, pass_time):
    """With that tier's flat fee on a line of its own."""
    tiers = {
        "billing_scheme": "tiered",
        "tiers_mode": "volume",
        "tiers[0][up_to]": 10,
        "tiers[0][unit_amount]": 5,
        "tiers[1][up_to]": "inf",
        "tiers[1][unit_amount]": 3,
        "tiers[1][flat_amount]": 70,
    }
    subscription = billing.subscription(customer, tiered_price(raw, meter, tiers))
    billing.send(customer, 11, now)
    pass_time(days=31, hours=1)
    assert quantities(invoices_of(raw, subscription)[0]) == [(11, 33), (0, 70)]


def test_an_account_may_keep_its_drafts_longer(raw, simulator, subscription, pass_time):
    """Of those that are made from then on."""
    simulator.settings(invoice_grace_seconds=72 * 3600)
    pass_time(days=33)
    draft = invoices_of(raw, subscription)[0]
    assert (draft["status"], draft["automatically_finalizes_at"]) == ("draft", draft["created"] + 72 * 3600)


@pytest.mark.parametrize("final", [False, True])
def test_an_invoice_of_many_lines_is_read_page_by_page(raw, client, billing, meter, customer, now, pass_time, final):
    """It shows the first ten itself; its total is that of all."""
    tiers = {"billing_scheme": "tiered", "tiers_mode": "graduated"}
    for number in range(25):
        tiers |= {f"tiers[{number}][up_to]": number * 10 + 10 if number < 24 else "inf", f"tiers[{number}][unit_amount]": number}
        tiers[f"tiers[{number}][flat_amount]"] = 1
    subscription = billing.subscription(customer, tiered_price(raw, meter, tiers))
    billing.send(customer, 245, now)
    pass_time(days=31, hours=2 if final else 0)
    invoice = invoices_of(raw, subscription)[0]
    assert (len(invoice["lines"]["data"]), invoice["lines"]["has_more"], invoice["status"]) == (10, True, "paid" if final else "draft")
    lines = list(client.v1.invoices.line_items.list(invoice["id"], {"limit": 7}).auto_paging_iter())
    assert [line.id for line in lines[:10]] == [line["id"] for line in invoice["lines"]["data"]]
    assert len({line.id for line in lines}) == 50
    assert sum(line.quantity for line in lines) == 245
    assert sum(line.amount for line in lines) == invoice["total"] == sum(10 * number for number in range(24)) + 5 * 24 + 25


def test_each_step_of_an_invoice_is_told(raw, subscription, billing, customer, now, pass_time):
    """In the second in which it happens, with the invoice as it is then; what is held finalises when it was told to."""
    billing.send(customer, 100_000, now)
    pass_time(days=31)
    draft = invoices_of(raw, subscription)[0]
    finalizes_at = draft["created"] + 50 * 3600
    raw.post(f"/v1/invoices/{draft['id']}", {"automatically_finalizes_at": finalizes_at})
    pass_time(days=3)
    told = [
        (event["type"], event["created"] - draft["created"], event["data"]["object"]["status"])
        for event in raw.get("/v1/events", {"type": "invoice.*", "created[gte]": draft["created"]}).body["data"]
    ]
    held_until = 50 * 3600
    assert told[::-1] == [
        ("invoice.created", 0, "draft"),
        ("invoice.updated", 0, "draft"),
        ("invoice.finalized", held_until, "open"),
        ("invoice.paid", held_until, "paid"),
        ("invoice.payment_succeeded", held_until, "paid"),
    ]
