"""Customers: /v1/customers. Every customer is taken to have a payment method that always pays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.endpoint import delete, get, get_list, post
from sandbox.stripe_simulator.expansion import Expander
from sandbox.stripe_simulator.pagination import list_of, list_page
from sandbox.stripe_simulator.params import (
    BOUNDS,
    ArrayOf,
    HashOf,
    Integer,
    Kind,
    OneOf,
    Params,
    Text,
    TextMap,
    is_within,
    merged_metadata,
)
from sandbox.stripe_simulator.resources import events, subscriptions
from sandbox.stripe_simulator.state import JsonObject, State, scrambled

_ADDRESS = {part: Text() for part in ("city", "country", "line1", "line2", "postal_code", "state")}

_WRITABLE: Mapping[str, Kind] = {
    "address": HashOf(fields=_ADDRESS, unsettable=True),
    "balance": Integer(),
    "business_name": Text(max_length=150, unsettable=True),
    "description": Text(unsettable=True),
    "email": Text(max_length=512, unsettable=True),
    "individual_name": Text(max_length=150, unsettable=True),
    "invoice_prefix": Text(),
    "metadata": TextMap(unsettable=True),
    "name": Text(max_length=256, unsettable=True),
    "next_invoice_sequence": Integer(minimum=1),
    "phone": Text(max_length=20, unsettable=True),
    "preferred_locales": ArrayOf(element=Text()),
    "shipping": HashOf(
        fields={"address": HashOf(fields=_ADDRESS, required=True), "name": Text(required=True), "phone": Text()}, unsettable=True
    ),
    "tax_exempt": OneOf(words=("exempt", "none", "reverse"), unsettable=True),
}


def create(state: State, params: Params) -> JsonObject:
    customer_id = state.new_id("customer")
    customer: JsonObject = {
        "id": customer_id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": state.clock.now_seconds(),
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": scrambled(customer_id, 8).upper(),
        "invoice_settings": {"custom_fields": None, "default_payment_method": None, "footer": None, "rendering_options": None},
        "livemode": False,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    created = _stored(state, customer, params)
    events.emit(state, "customer.created", created)
    return created


def update(state: State, params: Params, customer_id: str) -> JsonObject:
    before = existing(state, customer_id)
    after = _stored(state, before, params)
    events.emit_update(state, "customer.updated", before, after)
    return after


def retrieve(state: State, params: Params, customer_id: str) -> JsonObject:
    """Stripe still answers for a deleted customer, with what is left of it."""
    customer = state.customers.get(customer_id)
    if customer is None:
        raise errors.no_such("customer", customer_id, in_path=True)
    return dict(customer)


def list_(state: State, params: Params) -> JsonObject:
    return list_page(
        state.customers.newest_first(),
        params,
        url="/v1/customers",
        noun="customer",
        matches=lambda customer: (
            "deleted" not in customer
            and ("email" not in params or customer["email"] == params["email"])
            and is_within(customer["created"], params.get("created"))
        ),
    )


def delete_(state: State, params: Params, customer_id: str) -> JsonObject:
    """Also cancels the customer's subscriptions at once, and their usage is on no invoice (unverified)."""
    subscriptions.cancel_all_of(state, existing(state, customer_id)["id"])
    events.emit(state, "customer.deleted", existing(state, customer_id))
    deleted = {"id": customer_id, "object": "customer", "deleted": True}
    state.put("customers", deleted)
    return dict(deleted)


def existing(state: State, customer_id: str) -> JsonObject:
    """The customer named in the path. Raises 404 when there is none or it is deleted."""
    customer = state.customers.get(customer_id)
    if customer is None or "deleted" in customer:
        raise errors.no_such("customer", customer_id, in_path=True)
    return customer


def _stored(state: State, customer: JsonObject, params: Params) -> JsonObject:
    changed: dict[str, Any] = {name: value for name, value in params.items() if name not in ("expand", "metadata")}
    for address in (changed.get("address"), (changed.get("shipping") or {}).get("address")):
        if address is not None:
            address.update({part: None for part in _ADDRESS if part not in address})
    if (shipping := changed.get("shipping")) is not None:
        shipping.setdefault("phone", None)
    if "tax_exempt" in changed and changed["tax_exempt"] is None:
        changed["tax_exempt"] = "none"
    if "metadata" in params:
        changed["metadata"] = merged_metadata(customer["metadata"], params["metadata"])
    customer = {**customer, **changed}
    for name in ("business_name", "individual_name"):  # not nullable: absent unless set
        if customer.get(name, "") is None:
            del customer[name]
    state.put("customers", customer)
    return dict(customer)


def _subscriptions_of(state: State, customer: JsonObject) -> JsonObject:
    return list_of(subscriptions.running_of(state, customer["id"]), f"/v1/customers/{customer['id']}/subscriptions")


def _no_tax_ids(state: State, customer: JsonObject) -> JsonObject:
    return list_of([], f"/v1/customers/{customer['id']}/tax_ids")


EXPANDERS: Mapping[str, Mapping[str, Expander]] = {
    "customer": {"subscriptions": _subscriptions_of, "tax_ids": _no_tax_ids, "test_clock": lambda state, customer: None}
}

ENDPOINTS = [
    post("/v1/customers", create, _WRITABLE),
    get_list("/v1/customers", list_, email=Text(max_length=512), created=BOUNDS),
    get("/v1/customers/{customer}", retrieve),
    post("/v1/customers/{customer}", update, _WRITABLE),
    delete("/v1/customers/{customer}", delete_),
]
