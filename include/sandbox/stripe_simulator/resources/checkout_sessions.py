"""Checkout sessions: /v1/checkout/sessions, of subscriptions only. A customer comes to pay when a control route says so (`complete`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.clock import SECONDS_A_DAY
from sandbox.stripe_simulator.endpoint import get, get_list, post
from sandbox.stripe_simulator.expansion import Expander
from sandbox.stripe_simulator.pagination import DEFAULT_LIMIT, list_of, list_page
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
from sandbox.stripe_simulator.resources import customers, events, invoice_rendering, prices, subscriptions
from sandbox.stripe_simulator.resources.subscription_rendering import rendered as rendered_subscription
from sandbox.stripe_simulator.resources.subscription_rendering import stored as stored_subscription
from sandbox.stripe_simulator.state import JsonObject, State

#: Stripe: "It can be anywhere from 30 minutes to 24 hours after Checkout Session creation. By default, this value is 24 hours".
LONGEST_SECONDS, SHORTEST_SECONDS = SECONDS_A_DAY, 1800
_ITEM_COUNT = 20

_CREATE: Mapping[str, Kind] = {
    "cancel_url": Text(),
    "client_reference_id": Text(max_length=200),
    "customer": Text(),
    "customer_email": Text(),
    "expires_at": Integer(minimum=0),
    "line_items": ArrayOf(element=HashOf(fields={"price": Text(required=True), "quantity": Integer(minimum=0)}), max_count=_ITEM_COUNT),
    "metadata": TextMap(),
    "mode": OneOf(words=("subscription",)),
    "payment_method_collection": OneOf(words=("always", "if_required")),
    "payment_method_types": ArrayOf(element=OneOf(words=("card",))),
    "subscription_data": HashOf(
        fields={
            "billing_cycle_anchor": Integer(minimum=0),
            "billing_mode": HashOf(fields={"type": OneOf(words=("classic", "flexible"), required=True)}),
            "description": Text(max_length=500),
            "metadata": TextMap(),
            "proration_behavior": OneOf(words=("create_prorations", "none")),
            "trial_end": Integer(minimum=0),
            "trial_period_days": Integer(minimum=0, maximum=730),
        }
    ),
    "success_url": Text(),
}


def create(state: State, params: Params) -> JsonObject:
    if "mode" not in params:
        raise errors.missing_parameter("mode")
    if "success_url" not in params:
        raise errors.missing_parameter("success_url")
    if not params.get("line_items"):
        raise errors.missing_parameter("line_items")
    if "customer" in params and "customer_email" in params:
        raise errors.exclusive_parameters("customer", "customer_email")
    if "customer" in params:
        customer = state.customers.get(params["customer"])
        if customer is None or "deleted" in customer:
            raise errors.no_such("customer", params["customer"], param="customer")
    now = state.clock.now_seconds()
    expires_at = params.get("expires_at", now + LONGEST_SECONDS)
    if not now + SHORTEST_SECONDS <= expires_at <= now + LONGEST_SECONDS:
        message = "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation."
        raise errors.refused(message, "expires_at")
    items = [_line_item(state, given, index) for index, given in enumerate(params["line_items"])]
    currencies = {item["currency"] for item in items}
    if len(currencies) > 1:
        raise errors.refused("All prices on a Checkout Session must use the same currency.", "line_items")
    session_id = state.new_id("checkout_session")
    session = {
        "id": session_id,
        "cancel_url": params.get("cancel_url"),
        "client_reference_id": params.get("client_reference_id"),
        "created": now,
        "currency": currencies.pop(),
        "customer": params.get("customer"),
        "customer_email": params.get("customer_email"),
        "expires_at": expires_at,
        "invoice": None,
        "items": items,
        "metadata": merged_metadata({}, params.get("metadata", {})),
        "payment_method_collection": params.get("payment_method_collection", "always"),
        "payment_status": "unpaid",
        "status": "open",
        "subscription": None,
        "subscription_data": params.get("subscription_data", {}),
        "success_url": params["success_url"],
    }
    state.put("checkout_sessions", session)
    return rendered(state, session)


def update(state: State, params: Params, session_id: str) -> JsonObject:
    session = existing(state, session_id)
    return rendered(state, _changed(state, session, {"metadata": merged_metadata(session["metadata"], params.get("metadata", {}))}))


def retrieve(state: State, params: Params, session_id: str) -> JsonObject:
    return rendered(state, existing(state, session_id))


def list_(state: State, params: Params) -> JsonObject:
    return list_page(
        state.checkout_sessions.newest_first(),
        params,
        url="/v1/checkout/sessions",
        noun="checkout session",
        matches=lambda session: (
            all(session[name] == params[name] for name in ("customer", "status", "subscription") if name in params)
            and is_within(session["created"], params.get("created"))
        ),
        render=lambda session: rendered(state, session),
    )


def line_items(state: State, params: Params, session_id: str) -> JsonObject:
    session = existing(state, session_id)
    return list_page(session["items"], params, url=f"/v1/checkout/sessions/{session_id}/line_items", noun="line item")


def expire(state: State, params: Params, session_id: str) -> JsonObject:
    session = existing(state, session_id)
    if session["status"] != "open":
        raise errors.refused(f'Only Checkout Sessions with a status in ["open"] can be expired. This one is {session["status"]}.')
    return _expired(state, session)


def complete(state: State, session_id: str) -> JsonObject:
    """A customer pays: makes the customer where there is none, and the subscription; one event after the other, the session's last.

    Raises Stripe's refusal when the session is not open.
    """
    session = existing(state, session_id)
    if session["status"] != "open":
        raise errors.refused(f"This Checkout Session is {session['status']}.")
    customer_id = session["customer"]
    if customer_id is None:
        email = session["customer_email"] or f"{session_id[-8:].lower()}@example.com"
        customer_id = customers.create(state, {"email": email})["id"]
    items = [
        {"price": item["price"]["id"], **({} if item["quantity"] is None else {"quantity": item["quantity"]})} for item in session["items"]
    ]
    terms = {name: value for name, value in session["subscription_data"].items() if value is not None}
    subscription = subscriptions.create(state, {"customer": customer_id, "items": items, **terms})
    session = _changed(
        state,
        session,
        {
            "customer": customer_id,
            "invoice": subscription["latest_invoice"],
            "payment_status": "paid",
            "status": "complete",
            "subscription": subscription["id"],
        },
    )
    shown = rendered(state, session)
    events.emit(state, "checkout.session.completed", shown)
    return shown


# --- What time does -----------------------------------------------------------------------------------------------------------------


def due(state: State, session_id: str) -> int | None:
    session = state.checkout_sessions.get(session_id)
    if session is None or session["status"] != "open":
        return None
    expires_at: int = session["expires_at"]
    return expires_at


def expire_by_itself(state: State, session_id: str) -> None:
    _expired(state, existing(state, session_id))


# --- Rules --------------------------------------------------------------------------------------------------------------------------


def rendered(state: State, session: JsonObject) -> JsonObject:
    total = sum(item["amount_total"] for item in session["items"])
    if session["subscription_data"].get("trial_period_days") or session["subscription_data"].get("trial_end"):
        total = 0
    is_open = session["status"] == "open"
    customer = state.customers.get(session["customer"] or "") or {}
    email = customer.get("email") or session["customer_email"]
    return {
        "id": session["id"],
        "object": "checkout.session",
        "adaptive_pricing": None,
        "after_expiration": None,
        "allow_promotion_codes": None,
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "billing_address_collection": None,
        "cancel_url": session["cancel_url"],
        "client_reference_id": session["client_reference_id"],
        "client_secret": None,
        "collected_information": None,
        "consent": None,
        "consent_collection": None,
        "created": session["created"],
        "currency": session["currency"],
        "currency_conversion": None,
        "custom_fields": [],
        "custom_text": {"after_submit": None, "shipping_address": None, "submit": None, "terms_of_service_acceptance": None},
        "customer": session["customer"],
        "customer_creation": None if session["customer_email"] is None and session["customer"] is not None else "always",
        "customer_details": None
        if email is None
        else {
            "address": customer.get("address"),
            "business_name": None,
            "email": email,
            "individual_name": None,
            "name": customer.get("name"),
            "phone": customer.get("phone"),
            "tax_exempt": "none",
            "tax_ids": [],
        },
        "customer_email": session["customer_email"],
        "discounts": [],
        "expires_at": session["expires_at"],
        "invoice": session["invoice"],
        "invoice_creation": None,
        "livemode": False,
        "locale": None,
        "metadata": session["metadata"],
        "mode": "subscription",
        "origin_context": None,
        "payment_intent": None,
        "payment_link": None,
        "payment_method_collection": session["payment_method_collection"],
        "payment_method_configuration_details": None,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": session["payment_status"],
        "permissions": None,
        "phone_number_collection": {"enabled": False},
        "recovered_from": None,
        "saved_payment_method_options": None,
        "setup_intent": None,
        "shipping_address_collection": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": session["status"],
        "submit_type": None,
        "subscription": session["subscription"],
        "success_url": session["success_url"],
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"https://checkout.stripe.com/c/pay/{session['id']}" if is_open else None,
        "wallet_options": None,
    }


def existing(state: State, session_id: str) -> JsonObject:
    """The session named in the path. Raises 404."""
    session = state.checkout_sessions.get(session_id)
    if session is None:
        raise errors.no_such("checkout.session", session_id, in_path=True)
    return session


def _line_item(state: State, given: Params, index: int) -> JsonObject:
    """A metered price has no quantity (wording of the refusal unverified); a licensed one has to have one."""
    name = f"line_items[{index}]"
    price = prices.named(state, given["price"], f"{name}[price]")
    if price["type"] != "recurring" or not price["active"]:
        raise errors.refused("You must provide at least one active recurring price in `subscription` mode.", f"{name}[price]")
    metered = prices.is_metered(state, price["id"])
    if metered and "quantity" in given:
        raise errors.refused("Quantity should not be specified where usage_type is `metered`.", f"{name}[quantity]")
    if not metered and "quantity" not in given:
        raise errors.refused("Quantity is required. Add `quantity` to `line_items[...]`.", f"{name}[quantity]")
    quantity = None if metered else given["quantity"]
    amount = 0 if quantity is None else quantity * (price["unit_amount"] or 0)
    product = state.products.get(price["product"]) or {}
    return {
        "id": state.new_id("checkout_item"),
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": product.get("name"),
        "metadata": {},
        "price": prices.rendered(state, price["id"]),
        "quantity": quantity,
    }


def _expired(state: State, session: JsonObject) -> JsonObject:
    shown = rendered(state, _changed(state, session, {"status": "expired"}))
    events.emit(state, "checkout.session.expired", shown)
    return shown


def _changed(state: State, session: JsonObject, changes: Mapping[str, Any]) -> JsonObject:
    session = {**session, **changes}
    state.put("checkout_sessions", session)
    return session


def _customer(state: State, session: JsonObject) -> JsonObject | None:
    customer = state.customers.get(session["customer"] or "")
    return None if customer is None else dict(customer)


def _subscription(state: State, session: JsonObject) -> JsonObject | None:
    subscription_id = session["subscription"]
    return None if subscription_id is None else rendered_subscription(state, stored_subscription(state, subscription_id))


def _invoice(state: State, session: JsonObject) -> JsonObject | None:
    invoice = state.invoices.get(session["invoice"] or "")
    return None if invoice is None else invoice_rendering.rendered(state, invoice)


def _line_items(state: State, session: JsonObject) -> JsonObject:
    items = existing(state, session["id"])["items"]
    url = f"/v1/checkout/sessions/{session['id']}/line_items"
    return list_of([dict(item) for item in items[:DEFAULT_LIMIT]], url, has_more=len(items) > DEFAULT_LIMIT)


EXPANDERS: Mapping[str, Mapping[str, Expander]] = {
    "checkout.session": {"customer": _customer, "invoice": _invoice, "line_items": _line_items, "subscription": _subscription}
}

ENDPOINTS = [
    post("/v1/checkout/sessions", create, _CREATE),
    get_list(
        "/v1/checkout/sessions",
        list_,
        created=BOUNDS,
        customer=Text(),
        status=OneOf(words=("complete", "expired", "open")),
        subscription=Text(),
    ),
    get("/v1/checkout/sessions/{session}", retrieve),
    post("/v1/checkout/sessions/{session}", update, {"metadata": TextMap(unsettable=True)}),
    get_list("/v1/checkout/sessions/{session}/line_items", line_items),
    post("/v1/checkout/sessions/{session}/expire", expire, {}),
]
