"""When an item's billing periods run, and since when it has had its price.

Usage belongs to the price whose tenure holds its timestamp: what an item had used when its price was changed or removed stays to be
billed at that price, as Stripe documents for flexible billing ("we create an invoice item that bills for previously reported metered
usage when you remove a metered price"); not under classic billing, and not with `proration_behavior=none`.
Unverified: that this charge is still open to usage reported afterwards, with a timestamp before the change, until its invoice is final
(`Settings.left_price_seconds` shortens that), and that its line names the item rather than an invoice item.
"""

from __future__ import annotations

from sandbox.stripe_simulator.billing_periods import period_containing
from sandbox.stripe_simulator.params import Params
from sandbox.stripe_simulator.resources import prices
from sandbox.stripe_simulator.state import JsonObject, State


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


def whole_period_seconds(subscription: JsonObject, price: JsonObject, moment: int) -> int:
    """How long the billing period around a moment is, or would be, had the subscription not begun in the midst of it."""
    start, end = period_containing(
        moment,
        anchor=subscription["billing_cycle_anchor"],
        interval=price["recurring"]["interval"],
        interval_count=price["recurring"]["interval_count"],
    )
    return end - start


def period_of(state: State, subscription: JsonObject, item: JsonObject, moment: int) -> tuple[int, int]:
    return current_period(subscription, prices.rendered(state, item["price"]), moment)


def charge(subscription: JsonObject, item: JsonObject, quantity: int | None, start: int, end: int) -> JsonObject:
    """What an invoice bills of an item; a quantity of None is the usage of the period. A trial costs nothing."""
    is_free = subscription["trial_end"] is not None and start < subscription["trial_end"]
    return {"item": item["id"], "price": item["price"], "quantity": quantity, "start": start, "end": end, "is_free": is_free}


def usage_charge(state: State, subscription: JsonObject, item: JsonObject, end: int) -> JsonObject | None:
    """What a metered item has used up to an instant and on no invoice yet: of the period before it, since it has had its price."""
    if not prices.is_metered(state, item["price"]):
        return None
    period_start = period_of(state, subscription, item, end - 1)[0]
    start = max(period_start, item["price_since"], _billed_until(state, item, period_start))
    return charge(subscription, item, None, start, end) if start < end else None


def leave_price(state: State, subscription_id: str, item: JsonObject, params: Params) -> None:
    """Keep what the item has used, for the subscription's next invoice: it is about to lose its price."""
    subscription = state.subscriptions.get(subscription_id)
    assert subscription is not None, f"{item['id']} belongs to a subscription"
    if subscription["billing_mode"]["type"] != "flexible" or params.get("proration_behavior") == "none" or params.get("clear_usage"):
        return
    used = usage_charge(state, subscription, item, state.clock.now_seconds())
    if used is not None:
        used["closes_at_ms"] = state.clock.now_ms() + round(state.settings.left_price_seconds * 1000)
        state.put("subscriptions", {**subscription, "left_charges": [*subscription["left_charges"], used]})


def _billed_until(state: State, item: JsonObject, default: int) -> int:
    """Until when an item's usage is on earlier invoices: a moved anchor makes periods that overlap the one before."""
    ends = [
        one["end"]
        for invoice in state.invoices.newest_first_of(item["subscription"])
        for one in invoice["charges"]
        if one["item"] == item["id"] and one["quantity"] is None
    ]
    return max(ends, default=default)
