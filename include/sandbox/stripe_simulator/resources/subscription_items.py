"""Subscription items: /v1/subscription_items. Every change is an update of the subscription too."""

from __future__ import annotations

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.endpoint import delete, get, get_list, post
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import Boolean, Params, Text, TextMap
from sandbox.stripe_simulator.resources import invoice_cycle, prorations, subscription_rendering
from sandbox.stripe_simulator.resources.subscribed_items import PRORATION, WRITABLE, added, changed, no_items_left, of, removed, rendered
from sandbox.stripe_simulator.state import JsonObject, State


def create(state: State, params: Params) -> JsonObject:
    subscription = _open_subscription(state, params["subscription"], "subscription")
    with subscription_rendering.announced(state, subscription["id"]):
        item = added(state, subscription, params, "", since=state.clock.now_seconds())
        prorations.charge_remaining(state, subscription, item, params)
        invoice_cycle.invoice_change(state, subscription["id"], params)
    return rendered(state, subscription, item)


def update(state: State, params: Params, item_id: str) -> JsonObject:
    item = existing(state, item_id)
    subscription = _open_subscription(state, item["subscription"], "item")
    with subscription_rendering.announced(state, subscription["id"]):
        item = changed(state, item, params, "")
        invoice_cycle.invoice_change(state, subscription["id"], params)
    return rendered(state, subscription, item)


def retrieve(state: State, params: Params, item_id: str) -> JsonObject:
    item = existing(state, item_id)
    subscription = state.subscriptions.get(item["subscription"])
    assert subscription is not None, f"{item_id} belongs to a subscription"
    return rendered(state, subscription, item)


def list_(state: State, params: Params) -> JsonObject:
    subscription = state.subscriptions.get(params["subscription"])
    if subscription is None:
        raise errors.no_such("subscription", params["subscription"], param="subscription")
    return list_page(
        reversed(of(state, subscription)),
        params,
        url="/v1/subscription_items",
        noun="subscription_item",
        render=lambda item: rendered(state, subscription, item),
    )


def delete_(state: State, params: Params, item_id: str) -> JsonObject:
    item = existing(state, item_id)
    subscription = _open_subscription(state, item["subscription"], "item")
    if [one["id"] for one in of(state, subscription)] == [item_id]:
        raise no_items_left()
    with subscription_rendering.announced(state, subscription["id"]):
        removed(state, item, params)
        invoice_cycle.invoice_change(state, subscription["id"], params)
    return {"id": item_id, "object": "subscription_item", "deleted": True}


def existing(state: State, item_id: str) -> JsonObject:
    """The item named in the path. Raises 404."""
    item = state.subscription_items.get(item_id)
    if item is None or "deleted" in item:
        raise errors.no_such("subscription_item", item_id, param="item", in_path=True)
    return item


def _open_subscription(state: State, subscription_id: str, param: str) -> JsonObject:
    subscription = state.subscriptions.get(subscription_id)
    if subscription is None:
        raise errors.no_such("subscription", subscription_id, param=param)
    end = subscription["ended_at"] or subscription["cancel_at"]
    if end is not None and end <= state.clock.now_seconds():
        raise errors.no_such("subscription", subscription_id, param=param)
    return subscription


ENDPOINTS = [
    post("/v1/subscription_items", create, {**WRITABLE, **PRORATION, "metadata": TextMap(), "subscription": Text(required=True)}),
    get_list("/v1/subscription_items", list_, subscription=Text(required=True)),
    get("/v1/subscription_items/{item}", retrieve),
    post(
        "/v1/subscription_items/{item}",
        update,
        {**WRITABLE, **PRORATION, "metadata": TextMap(unsettable=True), "off_session": Boolean()},
    ),
    delete("/v1/subscription_items/{item}", delete_, **PRORATION, clear_usage=Boolean()),
]
