"""Invoices: /v1/invoices, of subscriptions only, made by time alone (see `invoice_cycle`). Without taxes, discounts and prorations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.clock import SECONDS_A_DAY
from sandbox.stripe_simulator.endpoint import get, get_list, post
from sandbox.stripe_simulator.expansion import Expander
from sandbox.stripe_simulator.pagination import DEFAULT_LIMIT, list_of, list_page
from sandbox.stripe_simulator.params import BOUNDS, Boolean, Integer, OneOf, Params, Text, TextMap, is_within, merged_metadata
from sandbox.stripe_simulator.resources import invoice_cycle
from sandbox.stripe_simulator.state import JsonObject, State

_STATUSES = ("draft", "open", "paid", "uncollectible", "void")


def list_(state: State, params: Params) -> JsonObject:
    of_subscription, of_customer = params.get("subscription"), params.get("customer")
    for subscription in _subscriptions(state, of_subscription, of_customer):
        invoice_cycle.bring_up_to_date(state, subscription)
    stored = state.invoices.newest_first() if of_subscription is None else state.invoices.newest_first_of(of_subscription)

    def matches(invoice: JsonObject) -> bool:
        return all(invoice[name] == params[name] for name in ("collection_method", "customer", "status") if name in params) and is_within(
            invoice["created"], params.get("created")
        )

    return list_page(
        sorted(stored, key=lambda invoice: invoice["created"], reverse=True),
        params,
        url="/v1/invoices",
        noun="invoice",
        matches=matches,
        render=lambda invoice: rendered(state, invoice),
    )


def retrieve(state: State, params: Params, invoice_id: str) -> JsonObject:
    return rendered(state, _existing(state, invoice_id))


def lines(state: State, params: Params, invoice_id: str) -> JsonObject:
    shown = invoice_cycle.lines_at(state, _existing(state, invoice_id), state.clock.now_ms())
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
    return rendered(state, _put(state, invoice, changed))


def finalize(state: State, params: Params, invoice_id: str) -> JsonObject:
    invoice = _existing(state, invoice_id)
    _require_status(invoice, "draft", "This invoice is already finalized, you can't re-finalize a finalized invoice.")
    advances = bool(params.get("auto_advance", invoice["auto_advance"]))
    invoice = _put(state, invoice, {"auto_advance": advances})
    return rendered(state, invoice_cycle.finalized(state, invoice, state.clock.now_ms(), pays=advances))


def pay(state: State, params: Params, invoice_id: str) -> JsonObject:
    """Never fails for want of money (wording of the refusals unverified)."""
    invoice = _existing(state, invoice_id)
    if invoice["status"] == "draft":
        invoice = invoice_cycle.finalized(state, invoice, state.clock.now_ms(), pays=False)
    elif invoice["status"] != "open":
        raise errors.refused("Invoice is already paid" if invoice["status"] == "paid" else "Invoice can't be paid.")
    return rendered(state, _put(state, invoice, {"status": "paid", "paid_at": state.clock.now_seconds()}))


def void(state: State, params: Params, invoice_id: str) -> JsonObject:
    invoice = _existing(state, invoice_id)
    _require_status(invoice, "open", f"You can only pass in open invoices. This invoice isn't open, it is {invoice['status']}.")
    return rendered(state, _put(state, invoice, {"status": "void", "voided_at": state.clock.now_seconds()}))


# --- Rules ------------------------------------------------------------------------------------------------------------------------


def rendered(state: State, invoice: JsonObject) -> JsonObject:
    """The invoice as Stripe shows it now, with the first page of its lines."""
    shown = invoice_cycle.lines_at(state, invoice, state.clock.now_ms())
    total = sum(line["amount"] for line in shown)
    is_paid, is_draft = invoice["status"] == "paid", invoice["status"] == "draft"
    customer = state.customers.get(invoice["customer"]) or {}
    finalized_at, days_until_due = invoice["finalized_at"], invoice["days_until_due"]
    url = f"/v1/invoices/{invoice['id']}/lines"
    due_date = None if is_draft or days_until_due is None else finalized_at + days_until_due * SECONDS_A_DAY
    return {
        "id": invoice["id"],
        "object": "invoice",
        "account_country": "US",
        "account_name": None,
        "account_tax_ids": None,
        "amount_due": total,
        "amount_overpaid": 0,
        "amount_paid": total if is_paid else 0,
        "amount_paid_off_stripe": 0,
        "amount_remaining": 0 if is_paid else total,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 1 if is_paid and total else 0,
        "attempted": is_paid,
        "auto_advance": invoice["auto_advance"],
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None, "provider": None, "status": None},
        "automatically_finalizes_at": invoice["automatically_finalizes_at"],
        "billing_reason": invoice["billing_reason"],
        "collection_method": invoice["collection_method"],
        "created": invoice["created"],
        "currency": invoice["currency"],
        "custom_fields": None,
        "customer": invoice["customer"],
        "customer_email": customer.get("email"),
        "customer_name": customer.get("name"),
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": invoice["description"],
        "discounts": [],
        "due_date": due_date,
        "effective_at": finalized_at,
        "ending_balance": None if is_draft else 0,
        "footer": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "lines": list_of(shown[:DEFAULT_LIMIT], url, has_more=len(shown) > DEFAULT_LIMIT),
        "livemode": False,
        "metadata": invoice["metadata"],
        "next_payment_attempt": None,
        "number": invoice["number"],
        "on_behalf_of": None,
        "parent": {
            "quote_details": None,
            "subscription_details": {"metadata": {}, "subscription": invoice["subscription"]},
            "type": "subscription_details",
        },
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_end": invoice["period_end"],
        "period_start": invoice["period_start"],
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "starting_balance": 0,
        "statement_descriptor": None,
        "status": invoice["status"],
        "status_transitions": {
            "finalized_at": finalized_at,
            "marked_uncollectible_at": None,
            "paid_at": invoice["paid_at"],
            "voided_at": invoice["voided_at"],
        },
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "test_clock": None,
        "total": total,
        "total_discount_amounts": [],
        "total_excluding_tax": total,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": invoice["created"],
    }


def _subscriptions(state: State, subscription_id: str | None, customer_id: str | None) -> list[JsonObject]:
    """Those whose invoices a list may show. A subscription that does not exist has none (unverified)."""
    if subscription_id is not None:
        subscription = state.subscriptions.get(subscription_id)
        return [] if subscription is None else [subscription]
    return list(state.subscriptions.newest_first() if customer_id is None else state.subscriptions.newest_first_of(customer_id))


def _existing(state: State, invoice_id: str) -> JsonObject:
    """The invoice named in the path, up to date. Raises 404."""
    invoice = state.invoices.get(invoice_id)
    if invoice is None:
        raise errors.no_such("invoice", invoice_id, in_path=True)
    subscription = state.subscriptions.get(invoice["subscription"])
    assert subscription is not None, "subscriptions are never deleted"
    invoice_cycle.bring_up_to_date(state, subscription)
    current = state.invoices.get(invoice_id)
    assert current is not None
    return current


def _require_status(invoice: JsonObject, status: str, otherwise: str) -> None:
    if invoice["status"] != status:
        raise errors.refused(otherwise)


def _put(state: State, invoice: JsonObject, changed: Mapping[str, Any]) -> JsonObject:
    invoice = {**invoice, **changed}
    state.put("invoices", invoice)
    return invoice


def _customer(state: State, invoice: JsonObject) -> JsonObject | None:
    customer = state.customers.get(invoice["customer"])
    return None if customer is None else dict(customer)


EXPANDERS: Mapping[str, Mapping[str, Expander]] = {"invoice": {"customer": _customer}}

ENDPOINTS = [
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
    post("/v1/invoices/{invoice}/pay", pay, {}),
    post("/v1/invoices/{invoice}/void", void, {}),
]
