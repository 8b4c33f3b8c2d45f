"""Webhook endpoints: /v1/webhook_endpoints, and which events are to be delivered where. The delivering itself is `webhook_courier`'s.

A delivery is one event to one endpoint: pending, then delivered, failed (all attempts), dropped (by the settings of the courier) or
undeliverable. Only this machine is ever posted to: what is for any other address is recorded as undeliverable and goes nowhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from sandbox.stripe_simulator import API_VERSION, errors
from sandbox.stripe_simulator.endpoint import Endpoint, get, get_list, post
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import ArrayOf, Boolean, Kind, OneOf, Params, Text, TextMap, merged_metadata
from sandbox.stripe_simulator.state import JsonObject, State, scrambled

#: What can be subscribed to, out of Stripe's list: all that the simulator emits, and their neighbours, which it never does.
EVENT_TYPES = (
    "*",
    "checkout.session.async_payment_failed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.completed",
    "checkout.session.expired",
    "credit_note.created",
    "credit_note.updated",
    "credit_note.voided",
    "customer.created",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.trial_will_end",
    "customer.subscription.updated",
    "customer.updated",
    "invoice.created",
    "invoice.deleted",
    "invoice.finalization_failed",
    "invoice.finalized",
    "invoice.marked_uncollectible",
    "invoice.overdue",
    "invoice.paid",
    "invoice.payment_action_required",
    "invoice.payment_failed",
    "invoice.payment_succeeded",
    "invoice.sent",
    "invoice.upcoming",
    "invoice.updated",
    "invoice.voided",
    "invoiceitem.created",
    "invoiceitem.deleted",
    "price.created",
    "price.deleted",
    "price.updated",
    "product.created",
    "product.deleted",
    "product.updated",
)
#: Thin events: at Stripe they are subscribed to by an event destination (/v2/core/event_destinations), here through a control route.
THIN_EVENT_TYPES = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")

_SHARED: Mapping[str, Kind] = {
    "description": Text(unsettable=True),
    "metadata": TextMap(unsettable=True),
}


def create(state: State, params: Params) -> JsonObject:
    """The only answer that tells the secret."""
    if params.get("api_version", API_VERSION) != API_VERSION:
        raise errors.invalid_parameter(f"Invalid API version: this simulator renders {API_VERSION} only.", "api_version")
    return subscribed(state, params)


def subscribed(state: State, params: Params) -> JsonObject:
    """A new endpoint with its secret; thin events may be among its `enabled_events` here."""
    _check_url(params["url"])
    endpoint_id = state.new_id("webhook_endpoint")
    endpoint = {
        "id": endpoint_id,
        "object": "webhook_endpoint",
        "api_version": params.get("api_version"),
        "application": None,
        "created": state.clock.now_seconds(),
        "description": params.get("description"),
        "enabled_events": params["enabled_events"],
        "livemode": False,
        "metadata": merged_metadata({}, params.get("metadata") or {}),
        "secrets": [_secret(endpoint_id, 1)],
        "status": "enabled",
        "url": params["url"],
    }
    state.put("webhook_endpoints", endpoint)
    return {**_rendered(endpoint), "secret": endpoint["secrets"][-1]}


def update(state: State, params: Params, endpoint_id: str) -> JsonObject:
    """What is pending for a disabled endpoint is still delivered (unverified)."""
    endpoint = existing(state, endpoint_id)
    changed: dict[str, Any] = {name: params[name] for name in ("description", "enabled_events", "url") if name in params}
    if "url" in params:
        _check_url(params["url"])
    if "metadata" in params:
        changed["metadata"] = merged_metadata(endpoint["metadata"], params["metadata"])
    if "disabled" in params:
        changed["status"] = "disabled" if params["disabled"] else "enabled"
    endpoint = {**endpoint, **changed}
    state.put("webhook_endpoints", endpoint)
    return _rendered(endpoint)


def retrieve(state: State, params: Params, endpoint_id: str) -> JsonObject:
    return _rendered(existing(state, endpoint_id))


def list_(state: State, params: Params) -> JsonObject:
    return list_page(
        state.webhook_endpoints.newest_first(),
        params,
        url="/v1/webhook_endpoints",
        noun="webhook endpoint",
        matches=lambda endpoint: "deleted" not in endpoint,
        render=_rendered,
    )


def delete_(state: State, params: Params, endpoint_id: str) -> JsonObject:
    """What is pending for it is never delivered."""
    endpoint = existing(state, endpoint_id)
    state.put("webhook_endpoints", {**endpoint, "deleted": True, "status": "disabled"})
    return {"id": endpoint_id, "object": "webhook_endpoint", "deleted": True}


def existing(state: State, endpoint_id: str) -> JsonObject:
    """The endpoint named in the path. Raises 404."""
    endpoint = state.webhook_endpoints.get(endpoint_id)
    if endpoint is None or "deleted" in endpoint:
        raise errors.no_such("webhook endpoint", endpoint_id, in_path=True)
    return endpoint


# --- Deliveries -------------------------------------------------------------------------------------------------------------------


def enqueue(state: State, event_id: str, event_type: str) -> None:
    """Have an event delivered to every endpoint that is enabled for it at this moment."""
    for endpoint in reversed(list(state.webhook_endpoints.newest_first())):
        if endpoint["status"] == "enabled" and _wants(endpoint, event_type):
            delivery = {
                "id": f"{event_id}:{endpoint['id']}",
                "attempts": [],
                "endpoint": endpoint["id"],
                "event": event_id,
                "status": "pending" if is_on_this_machine(endpoint["url"]) else "undeliverable",
                "type": event_type,
            }
            state.put("webhook_deliveries", delivery)


def undelivered_count(state: State, event_id: str) -> int:
    """How many endpoints have not taken an event, whether or not they still may."""
    return sum(1 for delivery in state.webhook_deliveries.newest_first_of(event_id) if delivery["status"] != "delivered")


def is_on_this_machine(url: str) -> bool:
    """Whether this may be posted to: plain HTTP to a loopback address, or to `localhost`."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        return False
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False


def roll_secret(state: State, endpoint_id: str, *, keeps_old: bool) -> str:
    """Give an endpoint a new secret and return it; `keeps_old`: signatures are made with both, as in the hours of grace at Stripe."""
    endpoint = existing(state, endpoint_id)
    number = state.next_number(f"secret of {endpoint_id}") + 1
    secret = _secret(endpoint_id, number)
    state.put("webhook_endpoints", {**endpoint, "secrets": [*(endpoint["secrets"][-1:] if keeps_old else []), secret]})
    return secret


def _wants(endpoint: JsonObject, event_type: str) -> bool:
    """Stripe: `*` stands for all events "except those that require explicit selection", and thin ones are not for it."""
    enabled = endpoint["enabled_events"]
    return event_type in enabled or ("*" in enabled and event_type not in THIN_EVENT_TYPES)


def _check_url(url: str) -> None:
    """Wording unverified."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise errors.refused("Invalid URL: An explicit scheme (such as https) must be provided.", "url", "url_invalid")


def _secret(endpoint_id: str, number: int) -> str:
    return "whsec_" + scrambled(f"{endpoint_id}:{number}", 32)


def _rendered(endpoint: JsonObject) -> JsonObject:
    return {name: value for name, value in endpoint.items() if name != "secrets"}


_ENABLED_EVENTS = ArrayOf(element=OneOf(words=EVENT_TYPES))

ENDPOINTS = [
    post(
        "/v1/webhook_endpoints",
        create,
        {
            **_SHARED,
            "api_version": Text(),
            "enabled_events": ArrayOf(element=OneOf(words=EVENT_TYPES), required=True),
            "url": Text(required=True),
        },
    ),
    get_list("/v1/webhook_endpoints", list_),
    get("/v1/webhook_endpoints/{webhook_endpoint}", retrieve),
    post(
        "/v1/webhook_endpoints/{webhook_endpoint}",
        update,
        {**_SHARED, "disabled": Boolean(), "enabled_events": _ENABLED_EVENTS, "url": Text()},
    ),
    Endpoint("DELETE", "/v1/webhook_endpoints/{webhook_endpoint}", {}, delete_),
]
