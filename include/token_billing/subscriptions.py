"""Which subscription item bills a tenant's usage at every instant: worked out from all that Stripe told, in whatever order. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from itertools import groupby, pairwise, permutations, zip_longest
from typing import Any, NamedTuple

from dateutil.relativedelta import relativedelta

from token_billing.periods import BillingPeriod

#: A renewal is told when Stripe gets to it: what it changes holds from the period's start if it was told within this time (a belief).
RENEWAL_LAG = timedelta(hours=3)

#: Periods that are worked out backwards from the one Stripe shows: usage older than 35 days can be billed no more.
EARLIER_PERIODS = 2

#: Of so many events of one second every order is tried.
MOST_ORDERED = 6


class Told(IntEnum):
    """How a snapshot came, in the order in which those of one second happened; reading is later than every event that made us read."""

    CREATED = 0
    UPDATED = 1
    DELETED = 2
    READ = 3


@dataclass(frozen=True)
class ItemSnapshot:
    """A subscription item as it was: its price, that price's meter (None: none, or the legacy billing system's), and its period then."""

    id: str
    price_id: str
    meter_id: str | None
    is_metered: bool
    created: datetime
    period: BillingPeriod
    interval: relativedelta


@dataclass(frozen=True)
class Snapshot:
    """A subscription as it was at `taken_at`. `before`: its items as they were just before, where the event tells."""

    subscription_id: str
    customer_id: str
    told: Told
    taken_at: datetime
    event_id: str
    start: datetime
    end: datetime | None
    anchor: datetime
    items: tuple[ItemSnapshot, ...]
    before: tuple[ItemSnapshot, ...] | None


class BilledPeriod(NamedTuple):
    """An item at a price bills usage of `[billed_from, billed_until)`, a part of a billing period, or all of it."""

    subscription_id: str
    customer_id: str
    usage_item_id: str
    price_id: str
    meter_id: str | None
    period: BillingPeriod
    billed_from: datetime
    billed_until: datetime


#: Which of the metered items bills usage; None: none of them does.
Choice = Callable[[Sequence[ItemSnapshot]], ItemSnapshot | None]


def snapshot_of(
    subscription: Mapping[str, Any], told: Told, taken_at: datetime, event_id: str = "", previous: Mapping[str, Any] | None = None
) -> Snapshot:
    """A subscription's JSON as a snapshot; raises KeyError, TypeError or ValueError where it is not as Stripe describes it."""
    customer = subscription["customer"]
    ended = subscription.get("ended_at") or subscription.get("cancel_at")
    start = subscription.get("start_date") or subscription["created"]
    items_before = (previous or {}).get("items")
    anchor = _time(subscription.get("billing_cycle_anchor") or start)
    return Snapshot(
        subscription_id=subscription["id"],
        customer_id=customer if isinstance(customer, str) else customer["id"],
        told=told,
        taken_at=taken_at,
        event_id=event_id,
        start=_time(start),
        end=_time(ended) if ended else None,
        anchor=anchor,
        items=_items(subscription, subscription["items"]["data"], anchor, taken_at),
        before=_items({**subscription, **(previous or {})}, items_before["data"], anchor, taken_at) if items_before else None,
    )


def billed_periods(snapshots: Iterable[Snapshot], choose: Choice) -> list[BilledPeriod]:
    """When which item of one subscription bills usage, in time order and without overlap; the same for the same snapshots, whatever
    their order and however often each is given."""
    states = list(_states(_in_order(snapshots)))
    found = [part for (since, until, state, items) in states for part in _parts(since, until, state, items, choose)]
    return list(_joined(_cut_short(found)))


def timeline(subscriptions: Sequence[Sequence[BilledPeriod]]) -> tuple[list[BilledPeriod], list[tuple[str, str]]]:
    """A tenant's subscriptions, the one that prevails first, as one timeline without overlap; and pairs of subscriptions that would have
    billed at once, the prevailing one first."""
    taken: list[BilledPeriod] = []
    overlapping: dict[tuple[str, str], None] = {}
    for periods in subscriptions:
        rest = list(periods)
        for earlier in list(taken):
            kept: list[BilledPeriod] = []
            for one in rest:
                if one.billed_from < earlier.billed_until and earlier.billed_from < one.billed_until:
                    overlapping[earlier.subscription_id, one.subscription_id] = None
                    if one.billed_from < earlier.billed_from:
                        kept.append(one._replace(billed_until=earlier.billed_from))
                    if earlier.billed_until < one.billed_until:
                        kept.append(one._replace(billed_from=earlier.billed_until))
                else:
                    kept.append(one)
            rest = kept
        taken += rest
    return sorted(taken, key=lambda one: one.billed_from), list(overlapping)


def differ_from(one: Sequence[BilledPeriod], other: Sequence[BilledPeriod]) -> datetime | None:
    """The earliest instant at which two timelines bill by different items, prices or periods; None where they never do."""
    for this, that in zip_longest(_changes(one), _changes(other)):
        if this != that:
            instants: list[datetime] = [change[0] for change in (this, that) if change]
            return min(instants)
    return None


def _changes(timeline: Sequence[BilledPeriod]) -> Iterator[tuple[datetime, tuple[object, ...] | None]]:
    """What bills from when on; None: nothing."""
    known, until = None, None
    for part in timeline:
        if until is not None and until < part.billed_from:
            yield until, None
            known = None
        by = part[:6]
        if by != known:
            yield part.billed_from, by
        known, until = by, part.billed_until
    if until is not None:
        yield until, None


# --- From snapshots to states -----------------------------------------------------------------------------------------


def _in_order(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """Each event once, as it happened, those of one second each behind the one whose outcome it found; of the readings only the latest,
    which is later than every event known when it was made."""
    events = {one.event_id: one for one in snapshots if one.told is not Told.READ}
    readings = sorted((one for one in snapshots if one.told is Told.READ), key=lambda one: one.taken_at)
    ordered: list[Snapshot] = []
    waiting = sorted(events.values(), key=lambda one: (one.taken_at, one.told, one.event_id))
    for _, at_once in groupby(waiting, key=lambda one: (one.taken_at, one.told)):
        ordered += _behind_one_another(ordered[-1:], list(at_once))
    return ordered + readings[-1:]


def _behind_one_another(known: list[Snapshot], at_once: list[Snapshot]) -> list[Snapshot]:
    """Events of one second in the order in which most of them found what the one before had left, periods included."""

    def found(order: Iterable[Snapshot]) -> tuple[int, int]:
        left = [(one.items, following.before) for one, following in pairwise([*known, *order]) if following.before is not None]
        return sum(before == items for items, before in left), sum(_same(before, items) for items, before in left)

    if len(at_once) == 1:
        return at_once
    # safeguard: events of one second in their order
    return list(max(permutations(at_once[:MOST_ORDERED]), key=found)) + at_once[MOST_ORDERED:]


def _states(ordered: list[Snapshot]) -> Iterator[tuple[datetime, datetime | None, Snapshot, tuple[ItemSnapshot, ...]]]:
    """From when until when (None: nobody knows) the subscription had which items."""
    if not ordered:
        return
    last = ordered[-1]
    beginnings: list[tuple[datetime, Snapshot, tuple[ItemSnapshot, ...]]] = []
    first = ordered[0]
    if first.told is not Told.CREATED and first.before is not None:
        beginnings.append((first.start, first, first.before))
    for one in ordered:
        if not beginnings:
            beginnings.append((one.start, one, one.items))
        else:
            known_since, _, known = beginnings[-1]
            # What is the same but for its period goes on: the newer period is known better. Our clock, by which a reading is dated, may be
            # behind Stripe's.
            # safeguard: states follow one another
            beginnings.append((max(known_since, _since(one, known)), one, one.items))
    for (since, snapshot, items), following in zip(beginnings, [*beginnings[1:], None], strict=True):
        until = following[0] if following else last.end
        if last.end is not None:
            until = last.end if until is None else min(until, last.end)
        since = max(since, last.start)
        if until is None or since < until:
            yield since, until, snapshot, items


def _since(one: Snapshot, known: tuple[ItemSnapshot, ...]) -> datetime:
    """From when on a snapshot's items hold: a change found by reading, since the new item was made; one told at a renewal, from there."""
    news = [item for item in one.items if item.id not in {before.id for before in known}]
    if one.told is Told.READ and news:
        return max(item.created for item in news)  # by Stripe's clock, which ours, by which the reading is dated, may be behind
    ends = {item.period.end for item in known}
    starts = {item.period.start for item in one.items}
    renewals = [start for start in starts & ends if start <= one.taken_at <= start + RENEWAL_LAG]
    return max(renewals, default=one.taken_at)


def _same(known: tuple[ItemSnapshot, ...], items: tuple[ItemSnapshot, ...]) -> bool:
    return [(item.id, item.price_id) for item in known] == [(item.id, item.price_id) for item in items]


# --- From states to periods -------------------------------------------------------------------------------------------


def _parts(
    since: datetime, until: datetime | None, state: Snapshot, items: Sequence[ItemSnapshot], choose: Choice
) -> Iterator[BilledPeriod]:
    """The billing periods of the item that bills, as far as they lie in `[since, until)`; an end that nobody knows lies one period
    after the one that Stripe shows."""
    item = choose([one for one in items if one.is_metered])
    if item is None:
        return
    for period in _periods_around(item, state.anchor, since, until):
        billed_from, billed_until = max(period.start, since), period.end if until is None else min(period.end, until)
        if billed_from < billed_until:
            yield BilledPeriod(
                state.subscription_id, state.customer_id, item.id, item.price_id, item.meter_id, period, billed_from, billed_until
            )


def _periods_around(item: ItemSnapshot, anchor: datetime, since: datetime, until: datetime | None) -> list[BillingPeriod]:
    """The item's period as Stripe shows it, those before it and after it by the calendar."""
    around = [item.period]
    while around[0].start > since and len(around) <= EARLIER_PERIODS:
        around.insert(0, BillingPeriod(max(since, _boundary(item, anchor, around[0].start, -1)), around[0].start))
    if around[0].start > since:  # older than anything that can be sent: its periods do not matter any more
        around.insert(0, BillingPeriod(since, around[0].start))
    while (around[-1].end < until) if until else around[-1] == item.period:
        around.append(BillingPeriod(around[-1].end, _boundary(item, anchor, around[-1].end, +1)))
    return around


def _boundary(item: ItemSnapshot, anchor: datetime, boundary: datetime, step: int) -> datetime:
    """The period boundary before or after one, counted from the anchor, so that the 31st comes back after a shorter month."""
    by_step: datetime = boundary + step * item.interval
    months, each = _months(anchor, by_step), item.interval.years * 12 + item.interval.months
    if not each:
        return by_step
    count = round(months / each)
    nearest: datetime = anchor + count * item.interval
    return nearest if abs(nearest - by_step) < timedelta(days=4) else by_step


def _months(start: datetime, end: datetime) -> float:
    return (end - start) / timedelta(days=30.436875)


def _cut_short(parts: Sequence[BilledPeriod]) -> Iterator[BilledPeriod]:
    """A period that another one begins within has ended there: the billing cycle was begun anew."""
    for one, following in pairwise([*parts, None]):
        if one is None:
            continue
        if following and one.period.start < following.period.start < one.period.end and one.billed_until <= following.period.start:
            one = one._replace(period=BillingPeriod(one.period.start, following.period.start))
        yield one


def _joined(parts: Iterable[BilledPeriod]) -> Iterator[BilledPeriod]:
    """Parts that follow each other and differ in nothing but their bounds are one."""
    joined: BilledPeriod | None = None
    for part in parts:
        if (
            joined
            and joined.billed_until == part.billed_from
            and joined == part._replace(billed_from=joined.billed_from, billed_until=joined.billed_until)
        ):
            joined = joined._replace(billed_until=part.billed_until)
            continue
        if joined:
            yield joined
        joined = part
    if joined:
        yield joined


# --- From JSON --------------------------------------------------------------------------------------------------------


def _items(subscription: Mapping[str, Any], items: Iterable[Mapping[str, Any]], anchor: datetime, at: datetime) -> tuple[ItemSnapshot, ...]:
    return tuple(sorted((_item(subscription, item, anchor, at) for item in items), key=lambda one: (one.created, one.id)))


def _item(subscription: Mapping[str, Any], item: Mapping[str, Any], anchor: datetime, at: datetime) -> ItemSnapshot:
    price = item["price"]
    recurring = price.get("recurring") or {}
    interval = relativedelta(**{f"{recurring.get('interval') or 'month'}s": int(recurring.get("interval_count") or 1)})
    # Periods belong to the subscription before API version 2025-03-31.basil, to its items since.
    start = item.get("current_period_start") or subscription.get("current_period_start")
    end = item.get("current_period_end") or subscription.get("current_period_end")
    return ItemSnapshot(
        id=item["id"],
        price_id=price["id"],
        meter_id=recurring.get("meter"),
        is_metered=recurring.get("usage_type") == "metered",
        created=_time(item["created"]),
        # Where Stripe, or what answers for it, tells of none, the calendar does.
        period=BillingPeriod(_time(start), _time(end)) if start and end and start < end else _period_of_calendar(interval, anchor, at),
        interval=interval,
    )


def _period_of_calendar(interval: relativedelta, anchor: datetime, at: datetime) -> BillingPeriod:
    count = 0
    while anchor + (count + 1) * interval <= at:
        count += 1
    while anchor + count * interval > at:
        count -= 1
    return BillingPeriod(anchor + count * interval, anchor + (count + 1) * interval)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
