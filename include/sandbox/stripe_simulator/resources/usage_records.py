"""Usage records of the legacy metered billing system: /v1/subscription_items/{item}/usage_records and …/usage_record_summaries.

They exist up to API version 2025-02-24.acacia, for items whose metered price is backed by no meter. Stripe's present description does
not have them: their shapes are those of that version's. The usage at a timestamp is set, or added to.
"""

from __future__ import annotations

from typing import Any

from sandbox.stripe_simulator import LEGACY_API_VERSION, errors
from sandbox.stripe_simulator.endpoint import get_list, post
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import Either, Integer, OneOf, Params
from sandbox.stripe_simulator.resources import item_times, prices, subscription_items
from sandbox.stripe_simulator.state import JsonObject, State, scrambled

#: What the control routes tell beside what Stripe answers.
_OWN = ("customer", "idempotency_key")


def create(state: State, params: Params, item_id: str) -> JsonObject:
    """The usage of an item at a second, inside its current period and not in the future."""
    subscription, item, price = _legacy(state, item_id, "POST", "usage_records")
    now = state.clock.now_seconds()
    given = params.get("timestamp", "now")
    timestamp = now if given == "now" else given
    start, end = item_times.current_period(subscription, price, now)
    # Wordings unverified; the first as remembered by many who met it.
    if timestamp < start:
        raise errors.refused(
            "Cannot create the usage record with this timestamp because timestamps must be after the subscription's last invoice period "
            "(or current period start time).",
            "timestamp",
        )
    if timestamp > now:
        raise errors.refused("Cannot create the usage record with this timestamp because it is in the future.", "timestamp")
    if timestamp >= end or (subscription["ended_at"] is not None and subscription["ended_at"] <= now):
        raise errors.refused("Cannot create the usage record with this timestamp because the subscription has ended.", "timestamp")
    record_id = "mbur_1" + scrambled(f"{item_id}:{timestamp}", 23)
    before = state.usage_records.get(record_id)
    added_to = before["quantity"] if before is not None and params.get("action", "increment") == "increment" else 0
    record = {
        "id": record_id,
        "object": "usage_record",
        "livemode": False,
        "quantity": added_to + params["quantity"],
        "subscription_item": item["id"],
        "timestamp": timestamp,
        "customer": subscription["customer"],
        "idempotency_key": state.idempotency_key,
    }
    state.put("usage_records", record)
    return {name: value for name, value in record.items() if name not in _OWN}


def summaries(state: State, params: Params, item_id: str) -> JsonObject:
    """What an item's usage comes to in each of its billing periods, the current one first."""
    subscription, item, price = _legacy(state, item_id, "GET", "usage_record_summaries")
    url = f"/v1/subscription_items/{item_id}/usage_record_summaries"
    moment, found = state.clock.now_seconds(), []
    while moment >= subscription["start_date"]:
        start, end = item_times.current_period(subscription, price, moment)
        found.append(_summary(state, subscription, item, start, end))
        moment = start - 1
    return list_page(found, params, url=url, noun="usage record summary")


def total(state: State, item_id: str, start: int, end: int) -> int:
    """An item's usage in [start, end)."""
    return sum(record["quantity"] for record in state.usage_records.newest_first_of(item_id) if start <= record["timestamp"] < end)


def seen(state: State) -> list[JsonObject]:
    """Every usage record as it is now, with its customer and the idempotency key of the request that set it last."""
    return [dict(record) for record in reversed(list(state.usage_records.newest_first()))]


def _legacy(state: State, item_id: str, method: str, what: str) -> tuple[JsonObject, JsonObject, JsonObject]:
    """The subscription, item and price, if the item's usage is recorded so."""
    if state.api_version != LEGACY_API_VERSION:
        raise errors.unrecognized_url(method, f"/v1/subscription_items/{item_id}/{what}")
    item = subscription_items.existing(state, item_id)
    subscription = state.subscriptions.get(item["subscription"])
    assert subscription is not None, f"{item_id} belongs to a subscription"
    price = prices.rendered(state, item["price"])
    if price["recurring"]["usage_type"] != "metered":
        raise errors.refused("Usage records can only be created for metered subscription items.")  # wording unverified
    if price["recurring"]["meter"] is not None:
        # Worded as production projects have quoted it.
        raise errors.refused(
            f"Cannot create a usage record for {item_id} because it is not on the legacy metered billing system. "
            "Call /v1/billing/meter_events instead."
        )
    return subscription, item, price


def _summary(state: State, subscription: JsonObject, item: JsonObject, start: int, end: int) -> dict[str, Any]:
    invoiced = (
        invoice["id"]
        for invoice in state.invoices.newest_first_of(subscription["id"])
        for charge in invoice["charges"]
        if (charge["item"], charge["start"], charge["end"], charge["quantity"]) == (item["id"], start, end, None)
    )
    return {
        "id": "sis_1" + scrambled(f"{item['id']}:{start}:summary", 23),
        "object": "usage_record_summary",
        "invoice": next(invoiced, None),
        "livemode": False,
        "period": {"end": end, "start": start},
        "subscription_item": item["id"],
        "total_usage": total(state, item["id"], start, end),
    }


ENDPOINTS = [
    post(
        "/v1/subscription_items/{item}/usage_records",
        create,
        {
            "action": OneOf(words=("increment", "set")),
            "quantity": Integer(minimum=0, required=True),
            "timestamp": Either(kinds=(OneOf(words=("now",)), Integer(minimum=1))),
        },
    ),
    get_list("/v1/subscription_items/{item}/usage_record_summaries", summaries),
]
