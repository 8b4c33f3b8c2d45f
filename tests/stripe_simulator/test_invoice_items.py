"""Invoice items: what is charged by hand, and which invoice it gets on; invoices by hand."""

from __future__ import annotations

import pytest


@pytest.fixture
def subscription(billing, meter, customer):
    """Metered by the token at $0.00002, for a month from now."""
    return billing.subscription(customer, billing.metered_price(meter))


def charged(raw, customer, **params) -> dict:
    """Five dollars, unless something else is said."""
    amount = {} if "unit_amount_decimal" in params else {"amount": 500}
    made = raw.post("/v1/invoiceitems", {"customer": customer, "currency": "usd", **amount, **params})
    assert made.status == 200, made
    body: dict = made.body
    return body


def invoices_of(raw, subscription) -> list[dict]:
    """Newest first."""
    data: list[dict] = raw.get("/v1/invoices", {"subscription": subscription["id"]}).body["data"]
    return data


def manual_lines(invoice) -> list[tuple[str, int]]:
    """Item and amount of each line that is an invoice item's."""
    lines = [line for line in invoice["lines"]["data"] if line["parent"]["type"] == "invoice_item_details"]
    return [(line["parent"]["invoice_item_details"]["invoice_item"], line["amount"]) for line in lines]


@pytest.mark.parametrize("bound", [True, False])
def test_an_item_waits_for_the_subscriptions_next_invoice(raw, billing, subscription, customer, now, pass_time, bound):
    """As a line of its own behind the metered ones, with its metadata, billed once; bound to the subscription or to the customer only."""
    where = {"subscription": subscription["id"]} if bound else {}
    item = charged(raw, customer, description="carried", **{"metadata[proposal]": "7"}, **where)
    assert item["invoice"] is None and (item["parent"] is not None) == bound
    billing.send(customer, 50_000, now)
    pass_time(days=31, hours=2)
    cycle, first = invoices_of(raw, subscription)
    assert (cycle["total"], manual_lines(cycle), manual_lines(first)) == (600, [(item["id"], 500)], [])
    line = cycle["lines"]["data"][-1]
    assert (line["metadata"], line["description"], line["quantity"]) == ({"proposal": "7"}, "carried", 1)
    details = line["parent"]["invoice_item_details"]
    assert (details["proration"], details["subscription"]) == (False, subscription["id"] if bound else None)
    assert raw.get(f"/v1/invoiceitems/{item['id']}").body["invoice"] == cycle["id"]
    assert raw.get(f"/v1/prices/{line['pricing']['price_details']['price']}").body["active"] is False
    pass_time(days=31)
    assert manual_lines(invoices_of(raw, subscription)[0]) == []


def test_an_item_bound_to_another_subscription_is_not_taken(raw, billing, subscription, customer, pass_time):
    """It waits for its own."""
    pass_time(days=10)
    other = billing.subscription(customer, billing.price())
    item = charged(raw, customer, subscription=other["id"])
    pass_time(days=21, hours=2)
    assert manual_lines(invoices_of(raw, subscription)[0]) == []
    pass_time(days=10)
    assert manual_lines(invoices_of(raw, other)[0]) == [(item["id"], 500)]


def test_an_item_can_be_put_on_a_draft_at_once(raw, subscription, customer, pass_time):
    """While it is one; with an event, and free to be changed and taken off until the draft is final."""
    pass_time(days=31, minutes=1)
    draft = invoices_of(raw, subscription)[0]
    kept, dropped = (charged(raw, customer, invoice=draft["id"]) for _ in range(2))
    assert raw.post(f"/v1/invoiceitems/{kept['id']}", {"amount": 700}).body["amount"] == 700
    assert raw.delete(f"/v1/invoiceitems/{dropped['id']}").body["deleted"] is True
    shown = raw.get(f"/v1/invoices/{draft['id']}").body
    assert (shown["total"], manual_lines(shown)) == (700, [(kept["id"], 700)])
    types = [event["type"] for event in raw.get("/v1/events", {"limit": 5}).body["data"]]
    assert sorted(types) == ["invoice.updated", "invoice.updated", "invoice.updated", "invoiceitem.created", "invoiceitem.deleted"]
    pass_time(hours=1)
    assert raw.post(f"/v1/invoiceitems/{kept['id']}", {"amount": 1}).status == 400
    assert raw.delete(f"/v1/invoiceitems/{kept['id']}").status == 400
    assert raw.post("/v1/invoiceitems", {"customer": customer, "amount": 1, "currency": "usd", "invoice": draft["id"]}).status == 400
    assert raw.get(f"/v1/invoices/{draft['id']}").body["total"] == 700


def test_units_at_a_price_are_rounded_once(raw, customer):
    """Up on a tie, as lines are; the unit's price can be changed alone."""
    item = charged(raw, customer, unit_amount_decimal="0.05", quantity=30)
    assert (item["amount"], item["quantity_decimal"], item["pricing"]["unit_amount_decimal"]) == (2, "30", "0.05")
    changed = raw.post(f"/v1/invoiceitems/{item['id']}", {"unit_amount_decimal": "0.5"}).body
    assert (changed["amount"], changed["quantity"]) == (15, 30)


def test_an_idempotency_key_makes_one_item(raw, customer):
    """However often it is sent."""
    sent = {"customer": customer, "amount": -5, "currency": "usd"}
    first, second = (raw.post("/v1/invoiceitems", sent, key="k") for _ in range(2))
    assert first.body == second.body and second.headers["idempotent-replayed"] == "true"
    assert len(raw.get("/v1/invoiceitems", {"customer": customer}).body["data"]) == 1


def test_items_are_listed_by_customer_invoice_and_whether_they_wait(raw, billing, subscription, customer, pass_time):
    """Newest first, page by page; a deleted one is gone."""
    items = [charged(raw, customer)["id"] for _ in range(3)]
    charged(raw, billing.customer())
    gone = charged(raw, customer)["id"]
    raw.delete(f"/v1/invoiceitems/{gone}")
    assert raw.get(f"/v1/invoiceitems/{gone}").status == 404
    page = raw.get("/v1/invoiceitems", {"customer": customer, "limit": 2}).body
    assert [one["id"] for one in page["data"]] == items[:0:-1] and page["has_more"]
    pass_time(days=31, hours=2)
    charged(raw, customer)
    invoice = invoices_of(raw, subscription)[0]["id"]
    assert len(raw.get("/v1/invoiceitems", {"invoice": invoice}).body["data"]) == 3
    assert len(raw.get("/v1/invoiceitems", {"customer": customer, "pending": "true"}).body["data"]) == 1
    assert len(raw.get("/v1/invoiceitems", {"customer": customer, "pending": "false"}).body["data"]) == 3


@pytest.mark.parametrize(
    "wrong, param",
    [
        ({"customer": "cus_nobody"}, "customer"),
        ({"invoice": "in_nothing"}, "invoice"),
        ({"subscription": "sub_nothing"}, "subscription"),
        ({"quantity": "2"}, "amount"),
    ],
)
def test_an_item_that_makes_no_sense_is_refused(raw, customer, wrong, param):
    """Naming the parameter."""
    refused = raw.post("/v1/invoiceitems", {"customer": customer, "amount": 1, "currency": "usd", **wrong})
    assert (refused.status, refused.error["param"]) == (400, param)


def test_a_cancelled_subscription_takes_no_more_items(raw, subscription, customer):
    """What waited for it can be put on an invoice by hand."""
    item = charged(raw, customer, subscription=subscription["id"])
    raw.delete(f"/v1/subscriptions/{subscription['id']}")
    late = {"customer": customer, "amount": 1, "currency": "usd", "subscription": subscription["id"]}
    assert raw.post("/v1/invoiceitems", late).status == 400
    made = raw.post("/v1/invoices", {"customer": customer, "subscription": subscription["id"]}).body
    assert (made["status"], made["billing_reason"], manual_lines(made)) == ("draft", "manual", [(item["id"], 500)])
    assert raw.post("/v1/invoices", {"customer": customer, "subscription": subscription["id"]}).status == 400


def test_an_invoice_by_hand_has_what_it_is_told_to_have(raw, customer, pass_time):
    """It waits to be finalised, or to be deleted, when its items wait again."""
    first = charged(raw, customer)
    empty = raw.post("/v1/invoices", {"customer": customer, "currency": "usd"}).body
    taken = raw.post("/v1/invoices", {"customer": customer, "currency": "usd", "pending_invoice_items_behavior": "include"}).body
    assert (empty["total"], taken["total"], taken["parent"]) == (0, 500, None)
    pass_time(days=2)
    assert raw.get(f"/v1/invoices/{taken['id']}").body["status"] == "draft"
    assert raw.delete(f"/v1/invoices/{taken['id']}").body["deleted"] is True
    assert raw.get(f"/v1/invoices/{taken['id']}").status == 404
    assert raw.get(f"/v1/invoiceitems/{first['id']}").body["invoice"] is None
    again = {"customer": customer, "currency": "usd", "pending_invoice_items_behavior": "include", "auto_advance": "true"}
    made = raw.post("/v1/invoices", again).body
    pass_time(hours=1)
    paid = raw.get(f"/v1/invoices/{made['id']}").body
    assert (paid["status"], paid["amount_paid"], [one["id"] for one in raw.get("/v1/invoices").body["data"]]) == (
        "paid",
        500,
        [made["id"], empty["id"]],
    )
    assert raw.delete(f"/v1/invoices/{made['id']}").status == 400


def test_what_an_invoice_of_less_than_nothing_gives_back_is_used_by_the_next(raw, customer, subscription, pass_time):
    """By way of the customer's balance."""
    charged(raw, customer, amount=-300)
    pass_time(days=31, hours=2)
    less = invoices_of(raw, subscription)[0]
    assert (less["status"], less["total"], less["amount_due"], less["ending_balance"]) == ("paid", -300, 0, -300)
    assert raw.get(f"/v1/customers/{customer}").body["balance"] == -300
    charged(raw, customer, amount=500)
    pass_time(days=31)
    more = invoices_of(raw, subscription)[0]
    assert (more["total"], more["amount_paid"], more["starting_balance"], more["ending_balance"]) == (500, 200, -300, 0)
    assert raw.get(f"/v1/customers/{customer}").body["balance"] == 0
