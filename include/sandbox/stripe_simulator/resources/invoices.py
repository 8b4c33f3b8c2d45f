"""Invoices: /v1/invoices, made by a subscription's beginning, renewal or cancellation (see `invoice_cycle`), or by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.endpoint import delete, get, get_list, post
from sandbox.stripe_simulator.expansion import Expander
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import BOUNDS, Boolean, Currency, Integer, OneOf, Params, Text, TextMap, is_within, merged_metadata
from sandbox.stripe_simulator.resources import events, invoice_cycle, invoice_lines, pending_items, subscription_terms
from sandbox.stripe_simulator.resources.invoice_rendering import rendered
from sandbox.stripe_simulator.state import JsonObject, State

_STATUSES = ("draft", "open", "paid", "uncollectible", "void")


def create(state: State, params: Params) -> JsonObject:
    """A draft by hand. What waits for its subscription is on it, or, without one, what waits for the customer, if that is asked for."""
    if "customer" not in params:
        raise errors.missing_parameter("customer")
    customer = state.customers.get(params["customer"])
    if customer is None or "deleted" in customer:
        raise errors.no_such("customer", params["customer"], param="customer")
    subscription = None
    if "subscription" in params:
        subscription = state.subscriptions.get(params["subscription"])
        if subscription is None or subscription["customer"] != customer["id"]:
            raise errors.no_such("subscription", params["subscription"], param="subscription")
    currency = params.get("currency") or (subscription or customer)["currency"]
    if currency is None:
        raise errors.missing_parameter("currency")
    taken = []
    if subscription is not None:
        taken = pending_items.waiting(state, customer["id"], currency, subscription["id"], also_unbound=False)
        if not taken:
            raise errors.refused("Nothing to invoice for subscription", code="invoice_no_subscription_line_items")
    elif params.get("pending_invoice_items_behavior") == "include":
        taken = pending_items.waiting(state, customer["id"], currency, None)
    method = params.get("collection_method", "charge_automatically")
    terms: dict[str, Any] = {name: params[name] for name in ("auto_advance", "automatically_finalizes_at", "description") if name in params}
    terms |= {
        "collection_method": method,
        "currency": currency,
        "days_until_due": subscription_terms.days_until_due(method, params.get("days_until_due")),
        "metadata": merged_metadata({}, params.get("metadata") or {}),
    }
    invoice = invoice_cycle.made_by_hand(state, customer, subscription, terms)
    pending_items.put_on(state, taken, invoice["id"])
    invoice_cycle.announce_creation(state, invoice)
    return rendered(state, invoice)


def delete_(state: State, params: Params, invoice_id: str) -> JsonObject:
    """A draft that was made by hand; its items wait again (unverified)."""
    invoice = _existing(state, invoice_id)
    _require_status(invoice, "draft", "You can only delete draft invoices.")
    if invoice["billing_reason"] != "manual":
        raise errors.refused("You can't delete invoices created by subscriptions.")
    shown = rendered(state, invoice)
    pending_items.put_on(state, pending_items.on_invoice(state, invoice), None)
    invoice_cycle.changed(state, invoice, {"deleted": True, "status": "deleted"})
    events.emit(state, "invoice.deleted", shown)
    return {"id": invoice_id, "object": "invoice", "deleted": True}


def list_(state: State, params: Params) -> JsonObject:
    """A subscription that does not exist has none (unverified)."""
    of_subscription = params.get("subscription")
    stored = state.invoices.newest_first() if of_subscription is None else state.invoices.newest_first_of(of_subscription)

    def matches(invoice: JsonObject) -> bool:
        return (
            "deleted" not in invoice
            and all(invoice[name] == params[name] for name in ("collection_method", "customer", "status") if name in params)
            and is_within(invoice["created"], params.get("created"))
        )

    return list_page(
        stored,
        params,
        url="/v1/invoices",
        noun="invoice",
        matches=matches,
        render=lambda invoice: rendered(state, invoice),
    )


def retrieve(state: State, params: Params, invoice_id: str) -> JsonObject:
    return rendered(state, _existing(state, invoice_id))


def lines(state: State, params: Params, invoice_id: str) -> JsonObject:
    shown = invoice_lines.lines_at(state, _existing(state, invoice_id), state.clock.now_ms())
    return list_page(shown, params, url=f"/v1/invoices/{invoice_id}/lines", noun="line item")


def update(state: State, params: Params, invoice_id: str) -> JsonObject:
    """When a draft finalises: at a time that is given, after the grace from now, or, without `auto_advance`, not by itself."""
    invoice = _existing(state, invoice_id)
    now = state.clock.now_seconds()
    changed: dict[str, Any] = {name: params[name] for name in ("auto_advance", "description") if name in params}
    if "metadata" in params:
        changed["metadata"] = merged_metadata(invoice["metadata"], params["metadata"])
    advances = changed.get("auto_advance", invoice["auto_advance"])
    finalizes_at = params.get("automatically_finalizes_at")
    if finalizes_at is not None:
        _require_status(
            invoice, "draft", f"`automatically_finalizes_at` can only be set on draft invoices; this one is {invoice['status']}."
        )
        if finalizes_at <= now or not advances:
            message = "`automatically_finalizes_at` must be in the future, on an invoice with `auto_advance`."
            raise errors.refused(message, "automatically_finalizes_at")
    if invoice["status"] == "draft":
        planned = finalizes_at or invoice["automatically_finalizes_at"] or now + round(state.settings.invoice_grace_seconds)
        changed["automatically_finalizes_at"] = planned if advances else None
    before = rendered(state, invoice)
    after = rendered(state, invoice_cycle.changed(state, invoice, changed))
    events.emit_update(state, "invoice.updated", before, after)
    return after


def finalize(state: State, params: Params, invoice_id: str) -> JsonObject:
    invoice = _existing(state, invoice_id)
    _require_status(invoice, "draft", "This invoice is already finalized, you can't re-finalize a finalized invoice.")
    advances = bool(params.get("auto_advance", invoice["auto_advance"]))
    invoice = invoice_cycle.changed(state, invoice, {"auto_advance": advances})
    return rendered(state, invoice_cycle.finalized(state, invoice, pays=advances))


def pay(state: State, params: Params, invoice_id: str) -> JsonObject:
    """Never fails for want of money (wording of the refusals unverified)."""
    invoice = _existing(state, invoice_id)
    if invoice["status"] == "draft":
        invoice = invoice_cycle.finalized(state, invoice, pays=False)
        if invoice["status"] == "paid":
            return rendered(state, invoice)
    elif invoice["status"] not in ("open", "uncollectible"):
        raise errors.refused("Invoice is already paid" if invoice["status"] == "paid" else "Invoice can't be paid.")
    return rendered(state, invoice_cycle.paid(state, invoice, out_of_band=params.get("paid_out_of_band", False)))


def void(state: State, params: Params, invoice_id: str) -> JsonObject:
    invoice = _existing(state, invoice_id)
    _require_status(invoice, "open", f"You can only pass in open invoices. This invoice isn't open, it is {invoice['status']}.")
    return rendered(state, invoice_cycle.voided(state, invoice))


def mark_uncollectible(state: State, params: Params, invoice_id: str) -> JsonObject:
    invoice = _existing(state, invoice_id)
    _require_status(invoice, "open", f"You can only pass in open invoices. This invoice isn't open, it is {invoice['status']}.")
    return rendered(state, invoice_cycle.marked_uncollectible(state, invoice))


# --- Rules ------------------------------------------------------------------------------------------------------------------------


def _existing(state: State, invoice_id: str) -> JsonObject:
    """The invoice named in the path. Raises 404."""
    invoice = state.invoices.get(invoice_id)
    if invoice is None or "deleted" in invoice:
        raise errors.no_such("invoice", invoice_id, in_path=True)
    return invoice


def _require_status(invoice: JsonObject, status: str, otherwise: str) -> None:
    if invoice["status"] != status:
        raise errors.refused(otherwise)


def _customer(state: State, invoice: JsonObject) -> JsonObject | None:
    customer = state.customers.get(invoice["customer"])
    return None if customer is None else dict(customer)


EXPANDERS: Mapping[str, Mapping[str, Expander]] = {"invoice": {"customer": _customer}}

ENDPOINTS = [
    post(
        "/v1/invoices",
        create,
        {
            "auto_advance": Boolean(),
            "automatically_finalizes_at": Integer(minimum=0),
            "collection_method": OneOf(words=("charge_automatically", "send_invoice")),
            "currency": Currency(),
            "customer": Text(),
            "days_until_due": Integer(minimum=0),
            "description": Text(max_length=1500),
            "metadata": TextMap(unsettable=True),
            "pending_invoice_items_behavior": OneOf(words=("exclude", "include")),
            "subscription": Text(),
        },
    ),
    delete("/v1/invoices/{invoice}", delete_),
    get_list(
        "/v1/invoices",
        list_,
        collection_method=OneOf(words=("charge_automatically", "send_invoice")),
        created=BOUNDS,
        customer=Text(),
        status=OneOf(words=_STATUSES),
        subscription=Text(),
    ),
    get("/v1/invoices/{invoice}", retrieve),
    get_list("/v1/invoices/{invoice}/lines", lines),
    post(
        "/v1/invoices/{invoice}",
        update,
        {
            "auto_advance": Boolean(),
            "automatically_finalizes_at": Integer(minimum=0),
            "description": Text(max_length=1500, unsettable=True),
            "metadata": TextMap(unsettable=True),
        },
    ),
    post("/v1/invoices/{invoice}/finalize", finalize, {"auto_advance": Boolean()}),
    post("/v1/invoices/{invoice}/pay", pay, {"paid_out_of_band": Boolean()}),
    post("/v1/invoices/{invoice}/void", void, {}),
    post("/v1/invoices/{invoice}/mark_uncollectible", mark_uncollectible, {}),
]
