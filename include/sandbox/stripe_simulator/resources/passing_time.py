"""What time alone does: periods roll over, trials and pauses end, cancellations fall due, drafts finalise, checkouts expire.

Each thing happens at its own instant: the clock stands there while it is worked out, so that its events, snapshots and invoices are those
of that moment, however much later anybody looks. `catch_up` is called before and after every request and whenever the clock is set;
it asks only objects that have changed what they have due next, and a heap remembers the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sandbox.stripe_simulator.resources import checkout_sessions, core_events, events, invoice_cycle, item_times, subscribed_items
from sandbox.stripe_simulator.resources.subscription_rendering import rendered, stored
from sandbox.stripe_simulator.state import JsonObject, State


def catch_up(state: State) -> None:
    """Let everything happen that is due by now, in order of time. To be committed by the caller."""
    now = state.clock.now_seconds()
    state.request_id = state.idempotency_key = None
    while True:
        _plan(state)
        entry = state.agenda.take(now)
        if entry is None:
            return
        due, kind, object_id = entry
        timed = _TIMED[kind]
        if timed.due(state, object_id) == due:  # it may have changed since it was planned
            with state.clock.standing_at(due * 1000):
                timed.happen(state, object_id)
            state.notice(kind, object_id)


def next_instant(state: State) -> int | None:
    """Nothing happens by itself before this (seconds since 1970)."""
    _plan(state)
    return state.agenda.earliest()


def _plan(state: State) -> None:
    """Ask what has changed when it has something due next."""
    for kind, timed in _TIMED.items():
        for object_id in state.take_noticed(kind):
            due = timed.due(state, object_id)
            if due is not None:
                state.agenda.plan(due, kind, object_id)


# --- Subscriptions ------------------------------------------------------------------------------------------------------------------


def _subscription_due(state: State, subscription_id: str) -> int | None:
    subscription = state.subscriptions.get(subscription_id)
    if subscription is None or subscription["ended_at"] is not None:
        return None
    instants = (_boundary(state, subscription), subscription["cancel_at"], _resumption(subscription))
    return min((one for one in instants if one is not None), default=None)


def _boundary(state: State, subscription: JsonObject) -> int | None:
    """The next end of an item's period, since they were last rolled over."""
    rolled_over_at = subscription["rolled_over_at"]
    if rolled_over_at is None:  # an older journal: invoices told it
        latest_invoice = next(state.invoices.newest_first_of(subscription["id"]), subscription)
        rolled_over_at = latest_invoice["created"]
    ends = [
        item_times.period_of(state, subscription, item, max(rolled_over_at, item["price_since"]))[1]
        for item in subscribed_items.of(state, subscription)
    ]
    return min((end for end in ends if end > rolled_over_at), default=None)


def _resumption(subscription: JsonObject) -> int | None:
    paused = subscription["pause_collection"]
    return None if paused is None else paused["resumes_at"]


def _advance_subscription(state: State, subscription_id: str) -> None:
    """A roll-over, an end, or a pause's end, or what coincides of them. What it shows before is what it showed a moment ago."""
    now = state.clock.now_seconds()
    subscription = stored(state, subscription_id)
    with state.clock.standing_at(now * 1000 - 1):
        before = rendered(state, subscription)
    ends, rolls_over = subscription["cancel_at"] == now, _boundary(state, subscription) == now
    if ends:
        subscription = {**subscription, "ended_at": now}
    elif _resumption(subscription) == now:
        subscription = {**subscription, "pause_collection": None}
    if rolls_over:
        subscription = {**subscription, "rolled_over_at": now}
    state.put("subscriptions", subscription)
    if rolls_over:
        invoice_cycle.renew(state, subscription)
    after = rendered(state, stored(state, subscription_id))
    if ends:
        events.emit(state, "customer.subscription.deleted", after)
    else:
        events.emit_update(state, "customer.subscription.updated", before, after)


# --- The rest -----------------------------------------------------------------------------------------------------------------------


def _invoice_due(state: State, invoice_id: str) -> int | None:
    invoice = state.invoices.get(invoice_id)
    if invoice is None or invoice["status"] != "draft":
        return None
    due: int | None = invoice["automatically_finalizes_at"]
    return due


def _finalize_invoice(state: State, invoice_id: str) -> None:
    invoice = state.invoices.get(invoice_id)
    assert invoice is not None, "it has just been due"
    invoice_cycle.finalized(state, invoice, pays=True)


@dataclass(frozen=True, slots=True)
class _Timed:
    """A kind of object that time does something to: when next, in seconds since 1970, and what."""

    due: Callable[[State, str], int | None]
    happen: Callable[[State, str], None]


#: By collection.
_TIMED: Mapping[str, _Timed] = {
    "subscriptions": _Timed(_subscription_due, _advance_subscription),
    "invoices": _Timed(_invoice_due, _finalize_invoice),
    "checkout_sessions": _Timed(checkout_sessions.due, checkout_sessions.expire_by_itself),
    "core_events": _Timed(core_events.due, core_events.announce),
}
