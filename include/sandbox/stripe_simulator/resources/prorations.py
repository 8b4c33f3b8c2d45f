"""What a licensed item's change in mid-period gives back and costs: invoice items that wait for the subscription's next invoice.

By the second: of what the item costs in a whole period, the part that is left of this one. Metered items are never prorated, and neither
is a trial. `proration_behavior=create_prorations` is the default; `always_invoice` has `invoice_cycle` invoice them at once; `none` makes
none. `proration_date` moves the instant.
Unverified: that a credit is worked out from the price the item has rather than from what was really billed, and the sentences.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.params import Params
from sandbox.stripe_simulator.resources import item_times, pending_items, prices
from sandbox.stripe_simulator.state import JsonObject, State
from sandbox.stripe_simulator.tier_pricing import priced, share_of


def credit_unused(state: State, subscription: JsonObject, item: JsonObject, params: Params) -> None:
    """Give back what is left of the item's period: it is about to change or to go."""
    _prorate(state, subscription, item, params, sign=-1)


def charge_remaining(state: State, subscription: JsonObject, item: JsonObject, params: Params) -> None:
    """Charge what is left of the item's period: it has just come or changed."""
    _prorate(state, subscription, item, params, sign=1)


def credit_all_unused(state: State, subscription: JsonObject, items: list[JsonObject], params: Params) -> None:
    """The same for a subscription whose period ends here."""
    for item in items:
        credit_unused(state, subscription, item, params)


def _prorate(state: State, subscription: JsonObject, item: JsonObject, params: Params, *, sign: int) -> None:
    if params.get("proration_behavior") == "none" or prices.is_metered(state, item["price"]):
        return
    at = params.get("proration_date", state.clock.now_seconds())
    if subscription["trial_end"] is not None and at < subscription["trial_end"]:
        return
    start, end = item_times.period_of(state, subscription, item, state.clock.now_seconds())
    if not start <= at < end:
        raise errors.refused("`proration_date` must lie in the current billing period.", "proration_date")
    price = prices.named(state, item["price"], "price")
    whole = sum(line.amount for line in priced(price, item["quantity"]))
    left = share_of(whole, end - at, item_times.whole_period_seconds(subscription, price, at))
    unit = price["unit_amount_decimal"]
    day = datetime.fromtimestamp(at, UTC)
    what = "Unused time on" if sign < 0 else "Remaining time on"
    pending_items.made(
        state,
        subscription["customer"],
        subscription["currency"],
        sign * left,
        pricing=prices.pricing(price, unit),
        quantity=item["quantity"],
        description=f"{what} {item['quantity']} × {price['nickname'] or price['product']} after {day.day} {day:%b %Y}",
        metadata=subscription["metadata"],
        period={"end": end, "start": at},
        subscription=subscription["id"],
        subscription_item=item["id"],
        proration=True,
    )
