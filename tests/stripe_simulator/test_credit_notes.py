"""Credit notes: what is given back of an invoice that is final."""

from __future__ import annotations

import pytest


@pytest.fixture
def invoice(raw, billing, meter, customer, now, pass_time):
    """A function that makes an invoice of $20.00, open or paid."""

    def made(status: str) -> dict:
        terms = {"collection_method": "send_invoice", "days_until_due": 3} if status == "open" else {}
        subscription = billing.subscription(customer, billing.metered_price(meter), **terms)
        billing.send(customer, 1_000_000, now)
        pass_time(days=31, hours=2)
        found: dict = raw.get("/v1/invoices", {"subscription": subscription["id"]}).body["data"][0]
        assert (found["status"], found["total"]) == (status, 2000)
        return found

    return made


def test_a_note_on_an_open_invoice_reduces_what_is_due(raw, invoice):
    """Down to nothing, when it is paid; voided, it is due again. Each step tells."""
    billed = invoice("open")
    note = raw.post("/v1/credit_notes", {"invoice": billed["id"], "amount": 500, "metadata[proposal]": "7"}).body
    assert (note["total"], note["type"], note["status"], note["metadata"]) == (500, "pre_payment", "issued", {"proposal": "7"})
    path = f"/v1/invoices/{billed['id']}"
    after = raw.get(path).body
    assert (after["total"], after["amount_due"], after["pre_payment_credit_notes_amount"]) == (2000, 1500, 500)
    assert raw.post(f"/v1/credit_notes/{note['id']}/void").body["status"] == "void"
    assert raw.get(path).body["amount_due"] == 2000
    assert raw.post("/v1/credit_notes", {"invoice": billed["id"], "amount": 2001}).status == 400
    raw.post("/v1/credit_notes", {"invoice": billed["id"], "amount": 2000})
    assert (raw.get(path).body["status"], raw.get(path).body["amount_remaining"]) == ("paid", 0)
    types = [event["type"] for event in raw.get("/v1/events", {"limit": 6}).body["data"]]
    assert types[::-1] == [
        "credit_note.created",
        "invoice.updated",
        "credit_note.voided",
        "invoice.updated",
        "credit_note.created",
        "invoice.paid",
    ]


def test_a_note_on_a_paid_invoice_says_how_the_money_goes_back(raw, invoice, customer):
    """The ways add up to its total, or it is refused; what is credited to the balance is the customer's."""
    billed = invoice("paid")
    line = billed["lines"]["data"][0]["id"]
    what = {
        "invoice": billed["id"],
        "lines[0][type]": "invoice_line_item",
        "lines[0][invoice_line_item]": line,
        "lines[0][amount]": 400,
        "lines[1][type]": "custom_line_item",
        "lines[1][unit_amount]": 50,
        "lines[1][quantity]": 2,
    }
    refused = raw.post("/v1/credit_notes", {**what, "refund_amount": 100})
    assert "($1.00) must equal the credit note post_payment_amount ($5.00)" in refused.error["message"]
    note = raw.post("/v1/credit_notes", {**what, "refund_amount": 100, "credit_amount": 150, "out_of_band_amount": 250}).body
    assert (note["total"], note["type"], note["post_payment_amount"], note["out_of_band_amount"]) == (500, "post_payment", 500, 250)
    assert [one["amount_refunded"] for one in note["refunds"]] == [100]
    assert [(one["type"], one["amount"]) for one in note["lines"]["data"]] == [("invoice_line_item", 400), ("custom_line_item", 100)]
    assert note["lines"]["data"][0]["invoice_line_item"] == line
    assert raw.get(f"/v1/customers/{customer}").body["balance"] == -150
    shown = raw.get(f"/v1/invoices/{billed['id']}").body
    assert (shown["status"], shown["amount_paid"], shown["post_payment_credit_notes_amount"]) == ("paid", 2000, 500)
    assert raw.post("/v1/credit_notes", {"invoice": billed["id"], "amount": 1501, "credit_amount": 1501}).status == 400
    assert raw.post(f"/v1/credit_notes/{note['id']}/void").status == 400


def test_notes_are_listed_and_made_once(raw, billing, invoice, customer):
    """By invoice and by customer; an idempotency key makes one."""
    billed = invoice("paid")
    sent = {"invoice": billed["id"], "amount": 5, "credit_amount": 5}
    first, again = (raw.post("/v1/credit_notes", sent, key="k") for _ in range(2))
    assert first.body == again.body
    other = raw.post("/v1/credit_notes", sent).body
    assert (first.body["number"], other["number"]) == (f"{billed['number']}-CN-01", f"{billed['number']}-CN-02")
    for wanted in ({"invoice": billed["id"]}, {"customer": customer}):
        assert [one["id"] for one in raw.get("/v1/credit_notes", wanted).body["data"]] == [other["id"], first.body["id"]]
    assert raw.get("/v1/credit_notes", {"customer": billing.customer()}).body["data"] == []
    assert raw.get(f"/v1/credit_notes/{other['id']}/lines").body["data"][0]["amount"] == 5
    assert raw.get("/v1/credit_notes/cn_nothing").status == 404


def test_drafts_and_unknown_invoices_take_no_notes(raw, subscription_draft):
    """Nor do lines that are not the invoice's."""
    assert raw.post("/v1/credit_notes", {"invoice": subscription_draft, "amount": 1}).status == 400
    assert raw.post("/v1/credit_notes", {"invoice": "in_nothing", "amount": 1}).status == 400
    foreign = {"invoice": subscription_draft, "lines[0][type]": "invoice_line_item", "lines[0][invoice_line_item]": "il_nothing"}
    raw.post(f"/v1/invoices/{subscription_draft}/finalize", {"auto_advance": "false"})
    assert raw.post("/v1/credit_notes", foreign).error["param"] == "lines[0][invoice_line_item]"


@pytest.fixture
def subscription_draft(raw, billing, meter, customer, now, pass_time) -> str:
    subscription = billing.subscription(customer, billing.metered_price(meter))
    billing.send(customer, 1_000_000, now)
    pass_time(days=31)
    return str(raw.get("/v1/invoices", {"subscription": subscription["id"]}).body["data"][0]["id"])
