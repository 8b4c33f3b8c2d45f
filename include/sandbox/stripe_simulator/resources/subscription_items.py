"""Subscription items: /v1/subscription_items. An item is one price on one subscription; its billing period follows from the clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.billing_periods import period_containing
from sandbox.stripe_simulator.endpoint import delete, get, get_list, post
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import Boolean, Integer, Kind, OneOf, Params, Text, TextMap, merged_metadata
from sandbox.stripe_simulator.resources import prices
from sandbox.stripe_simulator.state import JsonObject, State

#: No invoice is made by a change, so these may be given and decide nothing.
PRORATION: Mapping[str, Kind] = {
    "payment_behavior": OneOf(words=("allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete")),
    "proration_behavior": OneOf(words=("always_invoice", "create_prorations", "none")),
    "proration_date": Integer(minimum=0),
}
#: What an item takes, inside a subscription's `items[…]` as well as here.
WRITABLE: Mapping[str, Kind] = {"price": Text(), "quantity": Integer(minimum=0)}


def create(state: State, params: Params) -> JsonObject:
    subscription = _open_subscription(state, params["subscription"], "subscription")
    item = added(state, subscription, params, "")
    return rendered(state, subscription, item)


def update(state: State, params: Params, item_id: str) -> JsonObject:
    item = existing(state, item_id)
    subscription = _open_subscription(state, item["subscription"], "item")
    return rendered(state, subscription, changed(state, item, params, ""))


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
    _open_subscription(state, item["subscription"], "item")
    removed(state, item)
    subscription = state.subscriptions.get(item["subscription"])
    assert subscription is not None, f"{item_id} belongs to a subscription"
    if not of(state, subscription):
        raise no_items_left()
    return {"id": item_id, "object": "subscription_item", "deleted": True}


# --- What subscriptions use -----------------------------------------------------------------------------------------------------


def of(state: State, subscription: JsonObject) -> list[JsonObject]:
    """The stored items of a stored subscription, oldest first."""
    items = (state.subscription_items.get(item_id) for item_id in subscription["items"])
    return [item for item in items if item is not None and "deleted" not in item]


def added(state: State, subscription: JsonObject, given: Params, name: str) -> JsonObject:
    """Store a new item on a stored subscription; `name` is where the caller wrote it (`items[0]`), for the refusals."""
    price_param = f"{name}[price]" if name else "price"
    if "price" not in given:
        raise errors.missing_parameter(price_param)
    price = _priced(state, subscription, given["price"], price_param)
    if any(item["price"] == price["id"] for item in of(state, subscription)):
        raise errors.refused(f"Cannot add multiple subscription items with the same price: {price['id']}", price_param)
    item = {
        "id": state.new_id("subscription_item"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": state.clock.now_seconds(),
        "current_trial": None,
        "discounts": [],
        "metadata": merged_metadata({}, given.get("metadata") or {}),
        "price": price["id"],
        "subscription": subscription["id"],
        "tax_rates": [],
        **_quantity(price, given, {}),
    }
    state.put("subscription_items", item)
    state.put("subscriptions", {**subscription, "items": [*subscription["items"], item["id"]]})
    return item


def changed(state: State, item: JsonObject, given: Params, name: str) -> JsonObject:
    """Store a changed item: another price, quantity or metadata."""
    subscription = state.subscriptions.get(item["subscription"])
    assert subscription is not None, f"{item['id']} belongs to a subscription"
    price_id = item["price"]
    if "price" in given:
        price_id = _priced(state, subscription, given["price"], f"{name}[price]" if name else "price")["id"]
    price = prices.named(state, price_id, "price")
    before = {"quantity": item["quantity"]} if "quantity" in item else {}
    kept = {member: value for member, value in item.items() if member != "quantity"}
    item = {**kept, "price": price_id, **_quantity(price, given, before)}
    if "metadata" in given:
        item["metadata"] = merged_metadata(item["metadata"], given["metadata"])
    state.put("subscription_items", item)
    return item


def removed(state: State, item: JsonObject) -> None:
    """Take an item off its subscription."""
    subscription = state.subscriptions.get(item["subscription"])
    assert subscription is not None, f"{item['id']} belongs to a subscription"
    state.put("subscription_items", {**item, "deleted": True})
    state.put("subscriptions", {**subscription, "items": [one for one in subscription["items"] if one != item["id"]]})


def rendered(state: State, subscription: JsonObject, item: JsonObject) -> JsonObject:
    """The item as Stripe shows it, with its price and the period that contains the present (or, once ended, the end)."""
    price = prices.rendered(state, item["price"])
    start, end = current_period(subscription, price, state.clock.now_seconds())
    return {**item, "current_period_end": end, "current_period_start": start, "price": price}


def current_period(subscription: JsonObject, price: JsonObject, now: int) -> tuple[int, int]:
    """[start, end) of an item's billing period, in seconds since 1970.

    A trial is a period of its own, and the time before the first anchor is a short one.
    """
    moment = now
    ends = [end for end in (subscription["ended_at"], subscription["cancel_at"]) if end is not None and end <= now]
    if ends:  # the last period it had
        moment = max(min(ends) - 1, subscription["start_date"])
    if subscription["trial_end"] is not None and moment < subscription["trial_end"]:
        return subscription["trial_start"], subscription["trial_end"]
    start, end = period_containing(
        moment,
        anchor=subscription["billing_cycle_anchor"],
        interval=price["recurring"]["interval"],
        interval_count=price["recurring"]["interval_count"],
    )
    return max(start, subscription["start_date"]), end


def existing(state: State, item_id: str) -> JsonObject:
    """The item named in the path. Raises 404."""
    item = state.subscription_items.get(item_id)
    if item is None or "deleted" in item:
        raise errors.no_such("subscription_item", item_id, param="item", in_path=True)
    return item


def no_items_left() -> errors.StripeError:
    return errors.refused(
        "A subscription must have at least one active plan. To cancel a subscription, please use the cancel API endpoint on Subscription."
    )


def _open_subscription(state: State, subscription_id: str, param: str) -> JsonObject:
    from sandbox.stripe_simulator.resources import invoice_cycle  # invoices are made of items

    subscription = state.subscriptions.get(subscription_id)
    if subscription is None:
        raise errors.no_such("subscription", subscription_id, param=param)
    end = subscription["ended_at"] or subscription["cancel_at"]
    if end is not None and end <= state.clock.now_seconds():
        raise errors.no_such("subscription", subscription_id, param=param)
    invoice_cycle.bring_up_to_date(state, subscription)  # what has been invoiced does not change with its items
    return subscription


def _priced(state: State, subscription: JsonObject, price_id: str, param: str) -> JsonObject:
    """The price, if a subscription can hold it: active, recurring, and in the subscription's currency."""
    price = prices.named(state, price_id, param)
    if not price["active"]:
        raise errors.refused("The price specified is inactive. This field only accepts active prices.", param)
    if price["type"] != "recurring":
        raise errors.refused(
            "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`.", param
        )
    if price["currency"] != subscription["currency"]:
        raise errors.refused(
            f"The price specified only supports `{price['currency']}`. This doesn't match the expected currency: "
            f"`{subscription['currency']}`.",
            param,
        )
    return price


def _quantity(price: JsonObject, given: Params, before: Mapping[str, Any]) -> JsonObject:
    """A licensed item has a quantity, 1 unless given; a metered one has none."""
    if price["recurring"]["usage_type"] == "metered":
        if "quantity" in given:
            raise errors.refused("You cannot set the quantity of a metered price: report usage instead.", "quantity")
        return {}
    return {"quantity": given.get("quantity", before.get("quantity", 1))}


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
