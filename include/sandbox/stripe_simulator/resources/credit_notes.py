"""Credit notes: /v1/credit_notes, on open invoices (less is due) and paid ones (refunded, credited to the balance, or paid elsewhere).

Without taxes, discounts and shipping. A refund always succeeds.
Unverified: that a note of an `amount` alone has one custom line, the wording of all refusals but the one about the sum, and that an open
invoice whose whole rest is credited is paid, without a payment that succeeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.endpoint import get, get_list, post
from sandbox.stripe_simulator.expansion import Expander
from sandbox.stripe_simulator.pagination import DEFAULT_LIMIT, list_of, list_page
from sandbox.stripe_simulator.params import (
    BOUNDS,
    ArrayOf,
    FixedPoint,
    HashOf,
    Integer,
    OneOf,
    Params,
    Text,
    TextMap,
    is_within,
    merged_metadata,
)
from sandbox.stripe_simulator.resources import events, invoice_cycle, invoice_lines, invoice_rendering
from sandbox.stripe_simulator.state import JsonObject, State
from sandbox.stripe_simulator.tier_pricing import amount_of

#: How a note of a paid invoice reaches the customer; together they are its amount.
_WAYS = ("credit_amount", "out_of_band_amount", "refund_amount")


def create(state: State, params: Params) -> JsonObject:
    invoice = state.invoices.get(params["invoice"])
    if invoice is None or "deleted" in invoice:
        raise errors.no_such("invoice", params["invoice"], param="invoice")
    if invoice["status"] not in ("open", "paid"):
        raise errors.refused(f"You can only create credit notes for open or paid invoices. This invoice is {invoice['status']}.", "invoice")
    lines = _lines(state, invoice, params)
    total = sum(line["amount"] for line in lines)
    if total <= 0:
        raise errors.refused("The credit note amount must be positive.")
    before = invoice_rendering.rendered(state, invoice)
    is_open = invoice["status"] == "open"
    left = before["amount_remaining"] if is_open else before["total"] - before["post_payment_credit_notes_amount"]
    if total > left:
        raise errors.refused(f"The credit note amount ({total}) is greater than what is left of the invoice ({left}).", "amount")
    given = {name: params.get(name, 0) for name in _WAYS}
    if sum(given.values()) != (0 if is_open else total):
        shown, wanted = (_shown(amount, invoice) for amount in (sum(given.values()), 0 if is_open else total))
        raise errors.refused(
            f"The sum of refunds, credit amount, and out of band amount ({shown}) must equal the credit note "
            f"post_payment_amount ({wanted})."
        )
    note = _stored(state, invoice, params, lines, total, given)
    if given["credit_amount"]:
        _add_to_balance(state, invoice["customer"], -given["credit_amount"])
    events.emit(state, "credit_note.created", rendered(note))
    if is_open and total == left:
        invoice_cycle.paid(state, invoice, out_of_band=True)
    else:
        events.emit_update(state, "invoice.updated", before, invoice_rendering.rendered(state, invoice))
    return rendered(note)


def rendered(note: JsonObject) -> JsonObject:
    """The note as Stripe shows it, with the first page of its lines."""
    shown: list[JsonObject] = note["lines"]
    return {**note, "lines": list_of(shown[:DEFAULT_LIMIT], f"/v1/credit_notes/{note['id']}/lines", has_more=len(shown) > DEFAULT_LIMIT)}


def retrieve(state: State, params: Params, note_id: str) -> JsonObject:
    return rendered(_existing(state, note_id))


def lines(state: State, params: Params, note_id: str) -> JsonObject:
    shown = _existing(state, note_id)["lines"]
    return list_page(shown, params, url=f"/v1/credit_notes/{note_id}/lines", noun="credit note line item")


def list_(state: State, params: Params) -> JsonObject:
    of_invoice = params.get("invoice")
    return list_page(
        state.credit_notes.newest_first() if of_invoice is None else state.credit_notes.newest_first_of(of_invoice),
        params,
        url="/v1/credit_notes",
        noun="credit note",
        matches=lambda note: (
            ("customer" not in params or note["customer"] == params["customer"]) and is_within(note["created"], params.get("created"))
        ),
        render=rendered,
    )


def void(state: State, params: Params, note_id: str) -> JsonObject:
    """Stripe: only while the invoice is open."""
    note = _existing(state, note_id)
    invoice = state.invoices.get(note["invoice"])
    assert invoice is not None, "an invoice with a credit note is never deleted"
    if note["status"] != "issued" or invoice["status"] != "open":
        raise errors.refused("You can only void credit notes on open invoices.")
    before = invoice_rendering.rendered(state, invoice)
    note = {**note, "status": "void", "voided_at": state.clock.now_seconds()}
    state.put("credit_notes", note)
    events.emit(state, "credit_note.voided", rendered(note))
    events.emit_update(state, "invoice.updated", before, invoice_rendering.rendered(state, invoice))
    return rendered(note)


# --- Rules ------------------------------------------------------------------------------------------------------------------------


def _existing(state: State, note_id: str) -> JsonObject:
    note = state.credit_notes.get(note_id)
    if note is None:
        raise errors.no_such("credit note", note_id, in_path=True)
    return note


def _lines(state: State, invoice: JsonObject, params: Params) -> list[JsonObject]:
    """What is credited: lines of the invoice, lines of one's own, or one amount."""
    if "amount" in params and "lines" in params:
        raise errors.exclusive_parameters("amount", "lines")
    if not params.get("lines"):
        if "amount" not in params:
            raise errors.missing_parameter("amount")
        return [_line(state, "custom_line_item", params["amount"], None, None)]
    billed = {line["id"]: line for line in invoice_lines.lines_at(state, invoice, state.clock.now_ms())}
    return [_given_line(state, billed, given, f"lines[{index}]") for index, given in enumerate(params["lines"])]


def _given_line(state: State, billed: Mapping[str, JsonObject], given: Params, name: str) -> JsonObject:
    quantity, unit = given.get("quantity"), given.get("unit_amount_decimal", given.get("unit_amount"))
    amount = given.get("amount")
    if given["type"] == "custom_line_item":
        if amount is None:
            if unit is None or quantity is None:
                raise errors.missing_parameter(f"{name}[amount]")
            amount = amount_of(quantity, Decimal(unit))
        return {**_line(state, given["type"], amount, given.get("description"), given.get("metadata"), quantity, unit)}
    if "invoice_line_item" not in given:
        raise errors.missing_parameter(f"{name}[invoice_line_item]")
    line = billed.get(given["invoice_line_item"])
    if line is None:
        raise errors.no_such("invoice line item", given["invoice_line_item"], param=f"{name}[invoice_line_item]")
    if amount is None:
        if not quantity or not line["quantity"]:
            raise errors.missing_parameter(f"{name}[amount]")
        unit = line["pricing"]["unit_amount_decimal"] or 0
        amount = amount_of(quantity, Decimal(unit))
    if amount > line["amount"]:
        raise errors.refused("You cannot credit more than the amount of the invoice line item.", f"{name}[amount]")
    described = given.get("description", line["description"])
    made = _line(state, given["type"], amount, described, given.get("metadata"), quantity, unit)
    return {**made, "invoice_line_item": line["id"]}


def _line(
    state: State,
    kind: str,
    amount: int,
    description: str | None,
    metadata: dict[str, str] | None,
    quantity: int | None = None,
    unit: Decimal | int | None = None,
) -> JsonObject:
    return {
        "id": state.new_id("credit_note_line"),
        "object": "credit_note_line_item",
        "amount": amount,
        "description": description,
        "discount_amount": 0,
        "discount_amounts": [],
        "livemode": False,
        "metadata": metadata or {},
        "pretax_credit_amounts": [],
        "quantity": quantity,
        "tax_rates": [],
        "taxes": [],
        "type": kind,
        "unit_amount": None if unit is None or Decimal(unit) != int(Decimal(unit)) else int(Decimal(unit)),
        "unit_amount_decimal": None if unit is None else f"{Decimal(unit):f}",
    }


def _stored(state: State, invoice: JsonObject, params: Params, lines: list[JsonObject], total: int, given: Mapping[str, int]) -> JsonObject:
    now = state.clock.now_seconds()
    is_open = invoice["status"] == "open"
    number = sum(1 for _ in state.credit_notes.newest_first_of(invoice["id"])) + 1
    note_id = state.new_id("credit_note")
    note: JsonObject = {
        "id": note_id,
        "object": "credit_note",
        "amount": total,
        "amount_shipping": 0,
        "created": now,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "customer_account": None,
        "customer_balance_transaction": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "effective_at": now,
        "invoice": invoice["id"],
        "lines": lines,
        "livemode": False,
        "memo": params.get("memo"),
        "metadata": merged_metadata({}, params.get("metadata", {})),
        "number": f"{invoice['number']}-CN-{number:02}",
        "out_of_band_amount": given["out_of_band_amount"] or None,
        "pdf": f"https://pay.stripe.com/credit_notes/{note_id}/pdf",
        "post_payment_amount": 0 if is_open else total,
        "pre_payment_amount": total if is_open else 0,
        "pretax_credit_amounts": [],
        "reason": params.get("reason"),
        "refunds": _refunds(state, given["refund_amount"]),
        "shipping_cost": None,
        "status": "issued",
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "total": total,
        "total_excluding_tax": total,
        "total_taxes": [],
        "type": "pre_payment" if is_open else "post_payment",
        "voided_at": None,
    }
    state.put("credit_notes", note)
    return note


def _refunds(state: State, amount: int) -> list[JsonObject]:
    if not amount:
        return []
    return [{"amount_refunded": amount, "payment_record_refund": None, "refund": state.new_id("refund"), "type": "refund"}]


def _add_to_balance(state: State, customer_id: str, amount: int) -> None:
    """A negative balance is a credit, which the next final invoice uses up."""
    customer = state.customers.get(customer_id)
    if customer is not None and "deleted" not in customer:
        changed = {**customer, "balance": customer["balance"] + amount}
        state.put("customers", changed)
        events.emit_update(state, "customer.updated", customer, changed)


def _shown(amount: int, invoice: JsonObject) -> str:
    return f"${Decimal(amount) / 100:.2f}" if invoice["currency"] == "usd" else f"{amount} {invoice['currency']}"


def _invoice(state: State, note: JsonObject) -> Any:
    invoice = state.invoices.get(note["invoice"])
    return None if invoice is None else invoice_rendering.rendered(state, invoice)


EXPANDERS: Mapping[str, Mapping[str, Expander]] = {"credit_note": {"invoice": _invoice}}

ENDPOINTS = [
    post(
        "/v1/credit_notes",
        create,
        {
            "amount": Integer(minimum=0),
            "credit_amount": Integer(minimum=0),
            "invoice": Text(required=True),
            "lines": ArrayOf(
                element=HashOf(
                    fields={
                        "amount": Integer(minimum=0),
                        "description": Text(),
                        "invoice_line_item": Text(),
                        "metadata": TextMap(),
                        "quantity": Integer(minimum=0),
                        "type": OneOf(words=("custom_line_item", "invoice_line_item"), required=True),
                        "unit_amount": Integer(minimum=0),
                        "unit_amount_decimal": FixedPoint(),
                    }
                )
            ),
            "memo": Text(),
            "metadata": TextMap(),
            "out_of_band_amount": Integer(minimum=0),
            "reason": OneOf(words=("duplicate", "fraudulent", "order_change", "product_unsatisfactory")),
            "refund_amount": Integer(minimum=0),
        },
    ),
    get_list("/v1/credit_notes", list_, created=BOUNDS, customer=Text(), invoice=Text()),
    get("/v1/credit_notes/{id}", retrieve),
    get_list("/v1/credit_notes/{credit_note}/lines", lines),
    post("/v1/credit_notes/{id}/void", void, {}),
]
