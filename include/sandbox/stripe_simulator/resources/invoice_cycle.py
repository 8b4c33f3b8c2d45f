"""What time does to invoices: drafts at the end of billing periods, and their finalisation after the grace. No routes here.

Nothing happens at those moments. Whoever is about to read invoices, or to change what they would show, brings them up to date first,
as of the instants at which it should have happened: what was received after an invoice's finalisation is not on it.
"""

from __future__ import annotations

from sandbox.stripe_simulator.resources import meter_event_summaries, prices, subscription_items
from sandbox.stripe_simulator.state import JsonObject, State, derived_id, scrambled
from sandbox.stripe_simulator.tier_pricing import priced


def bring_up_to_date(state: State, subscription: JsonObject) -> None:
    """Make the invoices that are due by now, and finalise those whose time has come."""
    if next(state.invoices.newest_first_of(subscription["id"]), None) is None:
        _create(state, subscription, "subscription_create", subscription["created"])
    while (boundary := _next_boundary(state, subscription)) is not None:
        _create(state, subscription, "subscription_cycle", boundary)
    now = state.clock.now_seconds()
    for invoice in list(state.invoices.newest_first_of(subscription["id"])):
        due = invoice["automatically_finalizes_at"]
        if invoice["status"] == "draft" and due is not None and due <= now:
            finalized(state, invoice, due * 1000, pays=True)


def finalized(state: State, invoice: JsonObject, at_ms: int, *, pays: bool) -> JsonObject:
    """Fix a draft's lines as they are at an instant. What costs nothing is paid at once, and so is what is charged automatically, if
    it `pays`: no payment ever fails here."""
    lines = lines_at(state, invoice, at_ms)
    instant = at_ms // 1000
    total = sum(line["amount"] for line in lines)
    is_paid = total <= 0 or (pays and invoice["collection_method"] == "charge_automatically")
    number = sum(1 for one in state.invoices.newest_first_of(invoice["subscription"]) if one["number"] is not None) + 1
    changed = {
        **invoice,
        "automatically_finalizes_at": None,
        "finalized_at": instant,
        "lines": lines,
        "number": f"{scrambled(invoice['subscription'], 8).upper()}-{number:04}",
        "paid_at": instant if is_paid else None,
        "status": "paid" if is_paid else "open",
    }
    state.put("invoices", changed)
    return changed


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
            lines.append(_line(line_id, invoice, charge, price, part.quantity, f"{part.unit_amount:f}", amount, part.tier))
    return lines


# --- Drafts -----------------------------------------------------------------------------------------------------------------------


def _next_boundary(state: State, subscription: JsonObject) -> int | None:
    """The first end of an item's period that has passed without an invoice; none after the subscription's own end."""
    latest = next(state.invoices.newest_first_of(subscription["id"]))["created"]
    now = state.clock.now_seconds()
    last = min([now, *(end for end in (subscription["ended_at"], subscription["cancel_at"]) if end is not None)])
    ends = [_period(state, subscription, item, latest)[1] for item in subscription_items.of(state, subscription)]
    boundary = min(ends, default=None)
    return boundary if boundary is not None and latest < boundary <= last else None


def _create(state: State, subscription: JsonObject, billing_reason: str, instant: int) -> None:
    """A new draft with a charge for each item: usage of the period that ends at the instant, and what is paid in advance for the one
    that begins. The first invoice is finalised at once and shows usage of zero (its being there at all is unverified)."""
    is_first = billing_reason == "subscription_create"
    ended_at = subscription["ended_at"] or subscription["cancel_at"]
    invoice_id = derived_id("invoice", f"{subscription['id']}:{instant}:{billing_reason}")
    charges = []
    for item in subscription_items.of(state, subscription):
        price = prices.rendered(state, item["price"])
        is_metered = price["recurring"]["usage_type"] == "metered"
        ended = None if is_first else _period(state, subscription, item, instant - 1)
        if ended is not None and ended[1] != instant:
            continue  # another item's period ends here
        if is_metered:
            start, end = ended or _period(state, subscription, item, instant)
            charges.append(_charge(subscription, item, 0 if is_first else None, max(start, _billed_until(state, item, start)), end))
        elif ended_at is None or ended_at > instant:
            charges.append(_charge(subscription, item, item["quantity"], *_period(state, subscription, item, instant)))
    invoice: JsonObject = {
        "id": invoice_id,
        "auto_advance": True,
        "automatically_finalizes_at": instant + round(state.settings.invoice_grace_seconds),
        "billing_reason": billing_reason,
        "charges": charges,
        "collection_method": subscription["collection_method"],
        "created": instant,
        "currency": subscription["currency"],
        "customer": subscription["customer"],
        "days_until_due": subscription["days_until_due"],
        "description": None,
        "finalized_at": None,
        "lines": None,
        "metadata": {},
        "number": None,
        "paid_at": None,
        "period_end": instant,
        "period_start": min((charge["start"] for charge in charges if charge["end"] == instant), default=instant),
        "status": "draft",
        "subscription": subscription["id"],
        "voided_at": None,
    }
    state.put("invoices", invoice)
    if is_first:
        finalized(state, invoice, instant * 1000, pays=True)


def _charge(subscription: JsonObject, item: JsonObject, quantity: int | None, start: int, end: int) -> JsonObject:
    """What an invoice bills of an item; a quantity of None is the usage of the period. A trial costs nothing."""
    is_free = subscription["trial_end"] is not None and start < subscription["trial_end"]
    return {"item": item["id"], "price": item["price"], "quantity": quantity, "start": start, "end": end, "is_free": is_free}


def _period(state: State, subscription: JsonObject, item: JsonObject, moment: int) -> tuple[int, int]:
    return subscription_items.current_period(subscription, prices.rendered(state, item["price"]), moment)


def _billed_until(state: State, item: JsonObject, default: int) -> int:
    """Until when an item's usage is on earlier invoices: a moved anchor makes periods that overlap the one before."""
    ends = [
        charge["end"]
        for invoice in state.invoices.newest_first_of(item["subscription"])
        for charge in invoice["charges"]
        if charge["item"] == item["id"] and charge["quantity"] is None
    ]
    return max(ends, default=default)


# --- Lines ------------------------------------------------------------------------------------------------------------------------


def _usage(state: State, invoice: JsonObject, charge: JsonObject, price: JsonObject, at_ms: int) -> int:
    """What the price's meter has received by the instant for the customer and the charge's period."""
    meter = state.meters.get(price["recurring"]["meter"])
    assert meter is not None, "meters are never deleted"
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
                "proration": False,
                "proration_details": None,
                "subscription": invoice["subscription"],
                "subscription_item": charge["item"],
            },
            "type": "subscription_item_details",
        },
        "period": {"end": charge["end"], "start": charge["start"]},
        "pretax_credit_amounts": [],
        "pricing": {
            "price_details": {"price": price["id"], "product": price["product"]},
            "type": "price_details",
            "unit_amount_decimal": unit,
        },
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "subscription": invoice["subscription"],
        "subtotal": amount,
        "taxes": [],
    }
