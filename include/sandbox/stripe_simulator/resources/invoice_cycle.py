"""The life of an invoice: made when a subscription begins, renews or is cancelled, or by hand; finalised, paid, voided; each step with its
events.

No routes here. Every step is taken at the clock's present, which is the instant that was due where time alone takes it (see
`passing_time`): what was received after an invoice's finalisation is not on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.stripe_simulator.params import Params
from sandbox.stripe_simulator.resources import events, pending_items, prices, subscribed_items
from sandbox.stripe_simulator.resources.invoice_lines import lines_at
from sandbox.stripe_simulator.resources.invoice_rendering import rendered
from sandbox.stripe_simulator.resources.item_times import charge, period_of, usage_charge, whole_period_seconds
from sandbox.stripe_simulator.state import JsonObject, State, derived_id, scrambled


def open_with_subscription(state: State, subscription: JsonObject, *, prorates: bool) -> None:
    """The first invoice: what is paid in advance, and usage of zero (its being there at all is unverified). Final at once.

    Before a first anchor, only the part of a period that is left until then is paid; nothing where nothing is prorated.
    """
    now = state.clock.now_seconds()
    charges = []
    for item in subscribed_items.of(state, subscription):
        start, end = period_of(state, subscription, item, now)
        if prices.is_metered(state, item["price"]):
            charges.append(charge(subscription, item, 0, start, end))
            continue
        paid_ahead = charge(subscription, item, item["quantity"], start, end)
        whole = whole_period_seconds(subscription, prices.named(state, item["price"], "price"), now)
        if end - start < whole and not paid_ahead["is_free"]:
            if not prorates:
                continue
            paid_ahead["share"] = [end - start, whole]
        charges.append(paid_ahead)
    finalized(state, _made(state, subscription, "subscription_create", charges, now), pays=True)


def renew(state: State, subscription: JsonObject) -> None:
    """The draft of a period's end, which is now: the usage of that period, what items that lost their price had used, what is paid in
    advance for the period that begins, and invoice items that wait. Without any of that there is none."""
    now = state.clock.now_seconds()
    ended_at = subscription["ended_at"] or subscription["cancel_at"]
    charges = list(subscription["left_charges"])
    starts = []
    for item in subscribed_items.of(state, subscription):
        start, end = period_of(state, subscription, item, now - 1)
        if end != now:
            continue  # another item's period ends here
        if prices.is_metered(state, item["price"]):
            starts.append(start)
            used = usage_charge(state, subscription, item, now)
            charges += [] if used is None else [used]
        elif ended_at is None or ended_at > now:
            charges.append(charge(subscription, item, item["quantity"], *period_of(state, subscription, item, now)))
    if charges or _waiting(state, subscription):
        _made(state, subscription, "subscription_cycle", charges, min(starts, default=now))


def settle_cancellation(state: State, subscription: JsonObject) -> None:
    """The draft of a subscription that ends now by request: all its usage so far. It stays open to usage from before this instant for
    the grace of every draft. Its `billing_reason` and its being a draft are unverified; of what is offered, "a subscription was
    updated" fits best."""
    now = state.clock.now_seconds()
    used = [usage_charge(state, subscription, item, now) for item in subscribed_items.of(state, subscription)]
    charges = [*subscription["left_charges"], *(one for one in used if one is not None)]
    if charges or _waiting(state, subscription):
        _made(state, subscription, "subscription_update", charges, min((one["start"] for one in charges), default=now))


def invoice_change(state: State, subscription_id: str, params: Params) -> None:
    """With `proration_behavior=always_invoice`, invoice at once what waits for the subscription, its prorations above all. What metered
    items used at a price that they lost is left to the invoice of the period's end (unverified)."""
    subscription = state.subscriptions.get(subscription_id)
    assert subscription is not None, "it has just been changed"
    if params.get("proration_behavior") == "always_invoice" and _waiting(state, subscription):
        draft = _made(state, subscription, "subscription_update", [], state.clock.now_seconds(), takes_left_charges=False)
        if draft["auto_advance"]:
            finalized(state, draft, pays=True)


def finalized(state: State, invoice: JsonObject, *, pays: bool) -> JsonObject:
    """Fix a draft's lines as they are now. What costs nothing is paid at once, and so is what is charged automatically, if it `pays`:
    no payment ever fails here. One that was made while collection was paused ends as the pause says."""
    lines = lines_at(state, invoice, state.clock.now_ms())
    total = sum(line["amount"] for line in lines)
    owner = invoice["subscription"] or invoice["customer"]
    number = sum(1 for one in state.invoices.newest_first_of(invoice["subscription"]) if one["number"] is not None) + 1
    invoice = changed(
        state,
        invoice,
        {
            "automatically_finalizes_at": None,
            "finalized_at": state.clock.now_seconds(),
            "lines": lines,
            "number": f"{scrambled(owner, 8).upper()}-{number:04}",
            "starting_balance": _used_balance(state, invoice["customer"], total),
            "status": "open",
        },
    )
    _emit(state, "invoice.finalized", invoice)
    if invoice["pause_behavior"] == "void":
        return voided(state, invoice)
    if invoice["pause_behavior"] == "mark_uncollectible":
        return marked_uncollectible(state, invoice)
    if total + invoice["starting_balance"] <= 0 or (pays and invoice["collection_method"] == "charge_automatically"):
        return paid(state, invoice)
    return invoice


def paid(state: State, invoice: JsonObject, *, out_of_band: bool = False) -> JsonObject:
    """Money that came another way is no payment that succeeded."""
    invoice = changed(state, invoice, {"status": "paid", "paid_at": state.clock.now_seconds()})
    _emit(state, "invoice.paid", invoice)
    if not out_of_band:
        _emit(state, "invoice.payment_succeeded", invoice)
    return invoice


def voided(state: State, invoice: JsonObject) -> JsonObject:
    invoice = changed(state, invoice, {"status": "void", "voided_at": state.clock.now_seconds()})
    _emit(state, "invoice.voided", invoice)
    return invoice


def marked_uncollectible(state: State, invoice: JsonObject) -> JsonObject:
    invoice = changed(state, invoice, {"status": "uncollectible", "marked_uncollectible_at": state.clock.now_seconds()})
    _emit(state, "invoice.marked_uncollectible", invoice)
    return invoice


def changed(state: State, invoice: JsonObject, changes: Mapping[str, Any]) -> JsonObject:
    """Store the invoice with these changes, without an event."""
    invoice = {**invoice, **changes}
    state.put("invoices", invoice)
    return invoice


def made_by_hand(state: State, customer: JsonObject, subscription: JsonObject | None, terms: Mapping[str, Any]) -> JsonObject:
    """An empty draft, whose `terms` are members of it. It finalises by itself only where they say so."""
    now = state.clock.now_seconds()
    owner = customer["id"] if subscription is None else subscription["id"]
    invoice = _blank(f"{owner}:by hand:{state.next_number('invoice')}", customer["id"], now)
    invoice |= {"auto_advance": False, "billing_reason": "manual", "period_start": now, **terms}
    invoice["subscription"] = None if subscription is None else subscription["id"]
    if invoice["auto_advance"] and invoice["automatically_finalizes_at"] is None:
        invoice["automatically_finalizes_at"] = now + round(state.settings.invoice_grace_seconds)
    state.put("invoices", invoice)
    return invoice


def announce_creation(state: State, invoice: JsonObject) -> None:
    _emit(state, "invoice.created", invoice)


def _waiting(state: State, subscription: JsonObject) -> list[JsonObject]:
    return pending_items.waiting(state, subscription["customer"], subscription["currency"], subscription["id"])


def _made(
    state: State,
    subscription: JsonObject,
    billing_reason: str,
    charges: list[JsonObject],
    period_start: int,
    *,
    takes_left_charges: bool = True,
) -> JsonObject:
    """A new draft of now, which finalises after the grace unless collection is paused with the drafts kept; the invoice items that wait
    are on it, and what items that lost their price had used, which is taken off the subscription."""
    now = state.clock.now_seconds()
    paused = subscription["pause_collection"] if billing_reason != "subscription_create" else None
    advances = paused is None or paused["behavior"] != "keep_as_draft"
    identity = f"{subscription['id']}:{now}:{billing_reason}"
    while state.invoices.get(derived_id("invoice", identity)) is not None:  # a second one of the same second
        identity += ":again"
    invoice = {
        **_blank(identity, subscription["customer"], now),
        "auto_advance": advances,
        "automatically_finalizes_at": now + round(state.settings.invoice_grace_seconds) if advances else None,
        "billing_reason": billing_reason,
        "charges": charges,
        "collection_method": subscription["collection_method"],
        "currency": subscription["currency"],
        "days_until_due": subscription["days_until_due"],
        "pause_behavior": None if paused is None else paused["behavior"],
        "period_start": period_start,
        "subscription": subscription["id"],
    }
    state.put("invoices", invoice)
    pending_items.put_on(state, _waiting(state, subscription), invoice["id"])
    if takes_left_charges and subscription["left_charges"]:
        state.put("subscriptions", {**subscription, "left_charges": []})
    announce_creation(state, invoice)
    return invoice


def _blank(identity: str, customer: str, now: int) -> JsonObject:
    """A draft with nothing on it; its id follows from the identity."""
    return {
        "id": derived_id("invoice", identity),
        "auto_advance": True,
        "automatically_finalizes_at": None,
        "billing_reason": "manual",
        "charges": [],
        "collection_method": "charge_automatically",
        "created": now,
        "currency": "usd",
        "customer": customer,
        "days_until_due": None,
        "description": None,
        "edits": [],
        "finalized_at": None,
        "lines": None,
        "marked_uncollectible_at": None,
        "metadata": {},
        "number": None,
        "paid_at": None,
        "pause_behavior": None,
        "period_end": now,
        "period_start": now,
        "starting_balance": 0,
        "status": "draft",
        "subscription": None,
        "voided_at": None,
    }


def _used_balance(state: State, customer_id: str, total: int) -> int:
    """The customer's balance before an invoice of this total; what a credit does not cover of it is due, what is left of one, and what an
    invoice of less than nothing gives back, is the balance from now on."""
    customer = state.customers.get(customer_id)
    if customer is None or "deleted" in customer:
        return 0
    before: int = customer["balance"]
    if (after := min(before + total, 0)) != before:
        changed_customer = {**customer, "balance": after}
        state.put("customers", changed_customer)
        events.emit_update(state, "customer.updated", customer, changed_customer)
    return before


def _emit(state: State, event_type: str, invoice: JsonObject) -> None:
    events.emit(state, event_type, rendered(state, invoice))
