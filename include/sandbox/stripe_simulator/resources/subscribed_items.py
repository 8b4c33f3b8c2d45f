"""The items of a subscription, as they are stored, changed and shown. An item is one price on one subscription."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.params import Integer, Kind, OneOf, Params, Text, merged_metadata
from sandbox.stripe_simulator.resources import item_times, prices, prorations
from sandbox.stripe_simulator.state import JsonObject, State

#: See `prorations`; `proration_behavior=none` also drops the usage of a price that goes.
PRORATION: Mapping[str, Kind] = {
    "payment_behavior": OneOf(words=("allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete")),
    "proration_behavior": OneOf(words=("always_invoice", "create_prorations", "none")),
    "proration_date": Integer(minimum=0),
}
#: What an item takes, inside a subscription's `items[…]` as well as here.
WRITABLE: Mapping[str, Kind] = {"price": Text(), "quantity": Integer(minimum=0)}


def of(state: State, subscription: JsonObject) -> list[JsonObject]:
    """The stored items of a stored subscription, oldest first."""
    items = (state.subscription_items.get(item_id) for item_id in subscription["items"])
    return [item for item in items if item is not None and "deleted" not in item]


def added(state: State, subscription: JsonObject, given: Params, name: str, *, since: int) -> JsonObject:
    """Store a new item on a stored subscription, which bills usage from an instant on; `name` is where the caller wrote it (`items[0]`),
    for the refusals. What it costs until its period ends is the caller's matter."""
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
        "price_since": since,
        "subscription": subscription["id"],
        "tax_rates": [],
        **_quantity(price, given, {}),
    }
    state.put("subscription_items", item)
    state.put("subscriptions", {**subscription, "items": [*subscription["items"], item["id"]]})
    return item


def changed(state: State, item: JsonObject, given: Params, name: str) -> JsonObject:
    """Store a changed item: another price, quantity or metadata. What it used at the price it loses stays to be billed, and what was paid
    in advance is prorated."""
    subscription = state.subscriptions.get(item["subscription"])
    assert subscription is not None, f"{item['id']} belongs to a subscription"
    price_id = item["price"]
    if "price" in given:
        price_id = _priced(state, subscription, given["price"], f"{name}[price]" if name else "price")["id"]
    price = prices.named(state, price_id, "price")
    before = {"quantity": item["quantity"]} if "quantity" in item else {}
    kept = {member: value for member, value in item.items() if member != "quantity"}
    if price_id != item["price"]:
        item_times.leave_price(state, subscription["id"], item, given)
        kept["price_since"] = state.clock.now_seconds()
    before_item, item = item, {**kept, "price": price_id, **_quantity(price, given, before)}
    if "metadata" in given:
        item["metadata"] = merged_metadata(item["metadata"], given["metadata"])
    state.put("subscription_items", item)
    if (price_id, item.get("quantity")) != (before_item["price"], before_item.get("quantity")):
        prorations.credit_unused(state, subscription, before_item, given)
        prorations.charge_remaining(state, subscription, item, given)
    return item


def removed(state: State, item: JsonObject, given: Params) -> None:
    """Take an item off its subscription. What it used stays to be billed, and what was paid in advance and not used is given back."""
    item_times.leave_price(state, item["subscription"], item, given)
    subscription = state.subscriptions.get(item["subscription"])
    assert subscription is not None, f"{item['id']} belongs to a subscription"
    prorations.credit_unused(state, subscription, item, given)
    state.put("subscription_items", {**item, "deleted": True})
    state.put("subscriptions", {**subscription, "items": [one for one in subscription["items"] if one != item["id"]]})


def rendered(state: State, subscription: JsonObject, item: JsonObject) -> JsonObject:
    """The item as Stripe shows it, with its price and the period that contains the present (or, once ended, the end)."""
    price = prices.rendered(state, item["price"])
    start, end = item_times.current_period(subscription, price, state.clock.now_seconds())
    shown = {name: value for name, value in item.items() if name != "price_since"}
    return {**shown, "current_period_end": end, "current_period_start": start, "price": price}


def no_items_left() -> errors.StripeError:
    return errors.refused(
        "A subscription must have at least one active plan. To cancel a subscription, please use the cancel API endpoint on Subscription."
    )


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
