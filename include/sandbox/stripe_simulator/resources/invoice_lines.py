"""What is on an invoice: its charges, rated, then its invoice items. The quantities of a draft's usage are those of the moment."""

from __future__ import annotations

from sandbox.stripe_simulator.resources import meter_event_summaries, pending_items, planted_lines, prices, usage_records
from sandbox.stripe_simulator.state import JsonObject, State, scrambled
from sandbox.stripe_simulator.tier_pricing import priced, share_of


def lines_at(state: State, invoice: JsonObject, at_ms: int) -> list[JsonObject]:
    """An invoice's lines: as fixed by its finalisation, or, of a draft, as they are at an instant (milliseconds since 1970)."""
    if invoice["lines"] is not None:
        fixed: list[JsonObject] = invoice["lines"]
        return fixed
    lines: list[JsonObject] = []
    for charge in invoice["charges"]:
        price = state.prices.get(charge["price"])
        assert price is not None, "prices are never deleted"
        quantity = _usage(state, invoice, charge, price, at_ms) if charge["quantity"] is None else charge["quantity"]
        for part in priced(price, quantity):
            line_id = "il_1" + scrambled(f"{invoice['id']}:{len(lines)}", 23)
            amount = 0 if charge["is_free"] else part.amount
            if "share" in charge:
                amount = share_of(amount, *charge["share"])
            lines.append(_line(line_id, invoice, charge, price, part.quantity, f"{part.unit_amount:f}", amount, part.tier))
    lines += [pending_items.line(item) for item in pending_items.on_invoice(state, invoice)]
    for edit in invoice["edits"]:
        lines = planted_lines.edited(state, lines, edit)
    return lines


def _usage(state: State, invoice: JsonObject, charge: JsonObject, price: JsonObject, at_ms: int) -> int:
    """What the price's meter has received by the instant for the customer and the charge's period, or the item's usage records."""
    if price["recurring"]["meter"] is None:
        return usage_records.total(state, charge["item"], charge["start"], charge["end"])
    meter = state.meters.get(price["recurring"]["meter"])
    assert meter is not None, "meters are never deleted"
    at_ms = min(at_ms, charge.get("closes_at_ms", at_ms))
    events = meter_event_summaries.visible_events(
        state, meter, invoice["customer"], charge["start"], charge["end"], at_ms=at_ms, delay_ms=0
    )
    return max(0, meter_event_summaries.aggregated(meter["default_aggregation"]["formula"], events))


def _line(
    line_id: str, invoice: JsonObject, charge: JsonObject, price: JsonObject, quantity: int, unit: str, amount: int, tier: str
) -> JsonObject:
    return {
        "id": line_id,
        "object": "line_item",
        "amount": amount,
        "currency": invoice["currency"],
        "description": f"{quantity} × {price['nickname'] or price['product']}" + (f" ({tier})" if tier else ""),
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": invoice["id"],
        "livemode": False,
        "metadata": {},
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": "share" in charge,
                "proration_details": None,
                "subscription": invoice["subscription"],
                "subscription_item": charge["item"],
            },
            "type": "subscription_item_details",
        },
        "period": {"end": charge["end"], "start": charge["start"]},
        "pretax_credit_amounts": [],
        "pricing": prices.pricing(price, unit),
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "subscription": invoice["subscription"],
        "subtotal": amount,
        "taxes": [],
    }
