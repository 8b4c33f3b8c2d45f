"""What kind of line each line is, in the shapes of today and of yesterday."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from token_billing.invoices import InvoiceLine, LineKind, read_invoice

NOW = datetime(2026, 4, 10, tzinfo=UTC)
ITEM = {"subscription_item": "si_1", "subscription": "sub_1", "proration": False}


def read(**line: Any) -> InvoiceLine:
    """The line of an invoice that has only this one."""
    shown = {"id": "in_1", "customer": "cus_1", "currency": "usd", "created": 0, "total": 5, "status": "open"}
    whole = {"id": "il_1", "amount": 5, "currency": "usd", "quantity": 7, "period": {"start": 0, "end": 3600}, **line}
    return read_invoice(shown, [whole], {"price_tokens"}, "our-ledger", NOW).lines[0]


def priced(price: str) -> dict[str, Any]:
    return {"type": "price_details", "unit_amount_decimal": "0.0005", "price_details": {"price": price, "product": "p"}}


@pytest.mark.parametrize(
    "price, parent, kind",
    [
        ("price_tokens", {"subscription_item_details": ITEM}, LineKind.USAGE),
        ("price_seats", {"subscription_item_details": ITEM}, LineKind.FLAT),
        ("price_seats", {"subscription_item_details": {**ITEM, "proration": True}}, LineKind.PRORATION),
        ("price_seats", {"invoice_item_details": {"invoice_item": "ii_1", "proration": True}}, LineKind.PRORATION),
        ("price_tokens", {"invoice_item_details": {"invoice_item": "ii_1", "proration": False}}, LineKind.MANUAL),
    ],
)
def test_a_line_says_what_made_it(price: str, parent: dict[str, Any], kind: LineKind) -> None:
    line = read(parent=parent, pricing=priced(price))
    assert (line.kind, line.price_id, line.unit_cents, line.quantity) == (kind, price, Decimal("0.0005"), 7)


@pytest.mark.parametrize(
    "old, kind, item",
    [
        (
            {"type": "subscription", "subscription_item": "si_1", "proration": False, "price": {"id": "price_tokens"}},
            LineKind.USAGE,
            "si_1",
        ),
        ({"type": "invoiceitem", "invoice_item": "ii_1", "proration": False, "price": None}, LineKind.MANUAL, None),
        (
            {"type": "invoiceitem", "subscription_item": "si_1", "proration": True, "price": {"id": "price_seats"}},
            LineKind.PRORATION,
            "si_1",
        ),
    ],
)
def test_lines_of_older_api_versions_are_understood(old: dict[str, Any], kind: LineKind, item: str | None) -> None:
    line = read(**old)
    assert (line.kind, line.usage_item_id) == (kind, item)


@pytest.mark.parametrize(
    "metadata, proposal", [({"proposal": "12", "ledger": "our-ledger"}, 12), ({"proposal": "12", "ledger": "another"}, None), ({}, None)]
)
def test_only_proposals_of_this_ledger_are_ours(metadata: dict[str, str], proposal: int | None) -> None:
    details = {"invoice_item": "ii_1", "proration": False}
    line = read(parent={"invoice_item_details": details}, pricing=None, metadata=metadata, quantity=1)
    assert (line.kind, line.invoice_item_id, line.proposal_id, line.unit_cents) == (LineKind.MANUAL, "ii_1", proposal, None)


def test_quantities_beyond_32_bits_stay_whole() -> None:
    usage = {"parent": {"subscription_item_details": ITEM}, "pricing": priced("price_tokens")}
    assert read(**usage, quantity=2**53 + 1).quantity == 2**53 + 1
    assert read(**usage, quantity=None, quantity_decimal="900719925474099.0").quantity == 900_719_925_474_099
    with pytest.raises(ValueError, match="tokens are whole"):
        read(**usage, quantity=None, quantity_decimal="0.5")
