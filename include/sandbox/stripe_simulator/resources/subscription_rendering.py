"""A subscription as Stripe shows it, and the event that says that it is shown differently from now on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sandbox.stripe_simulator.pagination import list_of
from sandbox.stripe_simulator.resources import events, subscribed_items
from sandbox.stripe_simulator.state import JsonObject, State

#: What is remembered of a subscription and never shown: up to when its periods have been rolled over, and what items used at prices
#: that they have lost.
_INTERNAL = ("rolled_over_at", "left_charges")


def stored(state: State, subscription_id: str) -> JsonObject:
    """The newest stored form: items are changed through it, so none may be kept across a change."""
    subscription = state.subscriptions.get(subscription_id)
    assert subscription is not None, "subscriptions are never deleted"
    return subscription


def rendered(state: State, subscription: JsonObject) -> JsonObject:
    """The subscription as Stripe shows it now."""
    now = state.clock.now_seconds()
    items = [subscribed_items.rendered(state, subscription, item) for item in subscribed_items.of(state, subscription)]
    latest_invoice = next(state.invoices.newest_first_of(subscription["id"]), None)
    return {
        **{name: value for name, value in subscription.items() if name not in _INTERNAL},
        "ended_at": _ended_at(subscription, now),
        "items": list_of(items, f"/v1/subscription_items?subscription={subscription['id']}"),
        "latest_invoice": None if latest_invoice is None else latest_invoice["id"],
        "status": status_at(subscription, now),
    }


def status_at(subscription: JsonObject, now: int) -> str:
    """The status that follows from the stored facts: every invoice is taken to be paid, so three are possible."""
    if _ended_at(subscription, now) is not None:
        return "canceled"
    if subscription["trial_end"] is not None and now < subscription["trial_end"]:
        return "trialing"
    return "active"


@contextmanager
def announced(state: State, subscription_id: str) -> Iterator[None]:
    """Whatever this block changes of a subscription is one `customer.subscription.updated`."""
    before = rendered(state, stored(state, subscription_id))
    yield
    events.emit_update(state, "customer.subscription.updated", before, rendered(state, stored(state, subscription_id)))


def _ended_at(subscription: JsonObject, now: int) -> int | None:
    if subscription["ended_at"] is not None:
        return int(subscription["ended_at"])
    cancel_at = subscription["cancel_at"]
    return cancel_at if cancel_at is not None and cancel_at <= now else None
