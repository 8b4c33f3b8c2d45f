"""Invoice items: /v1/invoiceitems, of an amount or of units at so much each. How they get on an invoice is `pending_items`' matter.

The wording of the refusals is unverified, and so is that an item for a cancelled subscription is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.endpoint import delete, get, get_list, post
from sandbox.stripe_simulator.expansion import Expander
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import (
    BOUNDS,
    Boolean,
    Currency,
    FixedPoint,
    HashOf,
    Integer,
    Kind,
    Params,
    Text,
    TextMap,
    is_within,
    merged_metadata,
)
from sandbox.stripe_simulator.resources import events, invoice_rendering, pending_items, prices
from sandbox.stripe_simulator.resources.subscription_rendering import status_at
from sandbox.stripe_simulator.state import JsonObject, State
from sandbox.stripe_simulator.tier_pricing import amount_of

_SHARED: Mapping[str, Kind] = {
    "amount": Integer(),
    "description": Text(),
    "discountable": Boolean(),
    "metadata": TextMap(unsettable=True),
    "period": HashOf(fields={"end": Integer(minimum=0, required=True), "start": Integer(minimum=0, required=True)}),
    "quantity": Integer(minimum=0),
    "unit_amount_decimal": FixedPoint(),
}


def create(state: State, params: Params) -> JsonObject:
    if "customer" not in params:
        raise errors.missing_parameter("customer")
    customer = state.customers.get(params["customer"])
    if customer is None or "deleted" in customer:
        raise errors.no_such("customer", params["customer"], param="customer")
    invoice = _draft(state, params)
    subscription = _subscription(state, params, invoice)
    currency = params.get("currency") or (invoice or customer)["currency"]
    if currency is None:
        raise errors.missing_parameter("currency")
    if invoice is not None and invoice["currency"] != currency:
        raise errors.refused(
            f"The currency of the invoice item ({currency}) is not that of the invoice ({invoice['currency']}).", "currency"
        )
    quantity, unit = _quantity_and_unit(params)
    before = None if invoice is None else invoice_rendering.rendered(state, invoice)
    item = pending_items.made(
        state,
        customer["id"],
        currency,
        amount_of(quantity, unit),
        pricing=prices.one_off(state, currency, unit, params.get("description")),
        quantity=quantity,
        description=params.get("description"),
        metadata=merged_metadata({}, params.get("metadata") or {}),
        period=params.get("period"),
        subscription=subscription,
        invoice=None if invoice is None else invoice["id"],
    )
    if "discountable" in params:
        item = _changed(state, item, {"discountable": params["discountable"]})
    if invoice is not None and before is not None:
        events.emit_update(state, "invoice.updated", before, invoice_rendering.rendered(state, invoice))
    return dict(item)


def update(state: State, params: Params, item_id: str) -> JsonObject:
    item = _open_item(state, item_id)
    changed: dict[str, Any] = {name: params[name] for name in ("description", "discountable", "period") if name in params}
    if "metadata" in params:
        changed["metadata"] = merged_metadata(item["metadata"], params["metadata"])
    if params.keys() & {"amount", "quantity", "unit_amount_decimal"}:
        known = {"quantity": item["quantity"], "unit_amount_decimal": Decimal(item["pricing"]["unit_amount_decimal"])}
        quantity, unit = _quantity_and_unit(params if "amount" in params else {**known, **params})
        changed |= {
            "amount": amount_of(quantity, unit),
            "pricing": {**item["pricing"], "unit_amount_decimal": f"{unit:f}"},
            "quantity": quantity,
            "quantity_decimal": str(quantity),
        }
    return dict(_changed(state, item, changed))


def retrieve(state: State, params: Params, item_id: str) -> JsonObject:
    return dict(_existing(state, item_id))


def list_(state: State, params: Params) -> JsonObject:
    """`pending` says whether those that are on no invoice are wanted, or the others."""
    of_customer = params.get("customer")
    stored = state.invoice_items.newest_first() if of_customer is None else state.invoice_items.newest_first_of(of_customer)
    return list_page(
        stored,
        params,
        url="/v1/invoiceitems",
        noun="invoiceitem",
        matches=lambda item: (
            "deleted" not in item
            and ("invoice" not in params or item["invoice"] == params["invoice"])
            and ("pending" not in params or (item["invoice"] is None) == params["pending"])
            and is_within(item["date"], params.get("created"))
        ),
    )


def delete_(state: State, params: Params, item_id: str) -> JsonObject:
    item = _open_item(state, item_id)
    _changed(state, item, {"deleted": True})
    events.emit(state, "invoiceitem.deleted", item)
    return {"id": item_id, "object": "invoiceitem", "deleted": True}


# --- Rules ------------------------------------------------------------------------------------------------------------------------


def _existing(state: State, item_id: str) -> JsonObject:
    """The item named in the path. Raises 404."""
    item = state.invoice_items.get(item_id)
    if item is None or "deleted" in item:
        raise errors.no_such("invoiceitem", item_id, in_path=True)
    return item


def _open_item(state: State, item_id: str) -> JsonObject:
    """Stripe: only while it is "not attached to invoices, or if it's attached to a draft invoice"."""
    item = _existing(state, item_id)
    invoice = None if item["invoice"] is None else state.invoices.get(item["invoice"])
    if invoice is not None and invoice["status"] != "draft":
        raise errors.refused("This invoice item is attached to an invoice that is no longer editable.")
    return item


def _changed(state: State, item: JsonObject, changes: Mapping[str, Any]) -> JsonObject:
    """Stripe tells of no event for a changed item, but for its draft's change."""
    invoice = None if item["invoice"] is None else state.invoices.get(item["invoice"])
    before = None if invoice is None else invoice_rendering.rendered(state, invoice)
    item = {**item, **changes}
    state.put("invoice_items", item)
    if invoice is not None and before is not None:
        events.emit_update(state, "invoice.updated", before, invoice_rendering.rendered(state, invoice))
    return item


def _draft(state: State, params: Params) -> JsonObject | None:
    """The draft that is to take the item at once."""
    if "invoice" not in params:
        return None
    invoice = state.invoices.get(params["invoice"])
    if invoice is None or "deleted" in invoice or invoice["customer"] != params["customer"]:
        raise errors.no_such("invoice", params["invoice"], param="invoice")
    if invoice["status"] != "draft":
        raise errors.refused("You can only add invoice items to a draft invoice.", "invoice")
    return invoice


def _subscription(state: State, params: Params, invoice: JsonObject | None) -> str | None:
    if "subscription" not in params:
        return None if invoice is None else invoice["subscription"]
    subscription = state.subscriptions.get(params["subscription"])
    if subscription is None or subscription["customer"] != params["customer"]:
        raise errors.no_such("subscription", params["subscription"], param="subscription")
    if status_at(subscription, state.clock.now_seconds()) == "canceled" and invoice is None:
        raise errors.refused("You cannot add invoice items to a canceled subscription.", "subscription")
    if invoice is not None and invoice["subscription"] != subscription["id"]:
        raise errors.refused("The invoice is not one of this subscription.", "subscription")
    return str(subscription["id"])


def _quantity_and_unit(params: Params) -> tuple[int, Decimal]:
    """One unit of a whole amount, or so many units at so much each, in the currency's minor unit."""
    if "amount" in params:
        for name in ("quantity", "unit_amount_decimal"):
            if name in params:
                raise errors.exclusive_parameters("amount", name)
        return 1, Decimal(params["amount"])
    if "unit_amount_decimal" not in params:
        raise errors.missing_parameter("amount")
    return params.get("quantity", 1), params["unit_amount_decimal"]


def _customer(state: State, item: JsonObject) -> JsonObject | None:
    customer = state.customers.get(item["customer"])
    return None if customer is None else dict(customer)


def _invoice(state: State, item: JsonObject) -> JsonObject | None:
    invoice = None if item["invoice"] is None else state.invoices.get(item["invoice"])
    return None if invoice is None else invoice_rendering.rendered(state, invoice)


EXPANDERS: Mapping[str, Mapping[str, Expander]] = {"invoiceitem": {"customer": _customer, "invoice": _invoice}}

ENDPOINTS = [
    post("/v1/invoiceitems", create, {**_SHARED, "currency": Currency(), "customer": Text(), "invoice": Text(), "subscription": Text()}),
    get_list("/v1/invoiceitems", list_, created=BOUNDS, customer=Text(), invoice=Text(), pending=Boolean()),
    get("/v1/invoiceitems/{invoiceitem}", retrieve),
    post("/v1/invoiceitems/{invoiceitem}", update, _SHARED),
    delete("/v1/invoiceitems/{invoiceitem}", delete_),
]
