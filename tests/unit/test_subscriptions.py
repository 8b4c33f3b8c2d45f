"""Which item bills when, whatever the order in which Stripe's news comes."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise, permutations
from typing import Any

from token_billing.periods import BillingPeriod
from token_billing.subscriptions import BilledPeriod, Snapshot, Told, billed_periods, differ_from, snapshot_of, timeline

START = datetime(2026, 1, 31, 10, 0, tzinfo=UTC)
MONTHS = [START, datetime(2026, 2, 28, 10, tzinfo=UTC), datetime(2026, 3, 31, 10, tzinfo=UTC), datetime(2026, 4, 30, 10, tzinfo=UTC)]
BUNDLED, PURE = "price_bundled", "price_pure"


def item(price: str, period: int = 0, item_id: str = "si_1", created: datetime = START, metered: bool = True) -> dict[str, Any]:
    recurring = {"interval": "month", "interval_count": 1, "usage_type": "metered" if metered else "licensed", "meter": f"mtr_{price}"}
    return {
        "id": item_id,
        "created": created.timestamp(),
        "current_period_start": MONTHS[period].timestamp(),
        "current_period_end": MONTHS[period + 1].timestamp(),
        "price": {"id": price, "recurring": recurring},
    }


def subscription(*items: dict[str, Any], ended_at: datetime | None = None, cancel_at: datetime | None = None) -> dict[str, Any]:
    return {
        "id": "sub_1",
        "customer": "cus_1",
        "created": START.timestamp(),
        "start_date": START.timestamp(),
        "billing_cycle_anchor": START.timestamp(),
        "ended_at": ended_at and ended_at.timestamp(),
        "cancel_at": cancel_at and cancel_at.timestamp(),
        "items": {"data": list(items)},
    }


def told(told: Told, at: datetime, *items: dict[str, Any], before: list[dict[str, Any]] | None = None, **rest: Any) -> Snapshot:
    previous = {"items": {"data": before}} if before else None
    return snapshot_of(subscription(*items, **rest), told, at, f"evt_{told.name}_{at:%d%H%M%S}_{items[0]['price']['id']}", previous)


def spans(snapshots: list[Snapshot]) -> list[tuple[str, datetime, datetime, BillingPeriod]]:
    periods = billed_periods(snapshots, lambda items: items[0] if items else None)
    return [(one.price_id, one.billed_from, one.billed_until, one.period) for one in periods]


def period(number: int) -> BillingPeriod:
    return BillingPeriod(MONTHS[number], MONTHS[number + 1])


CREATED = told(Told.CREATED, START, item(BUNDLED))
CHANGE = START + timedelta(days=9, minutes=20)
CHANGED = told(Told.UPDATED, CHANGE, item(PURE), before=[item(BUNDLED)])
BACK = told(Told.UPDATED, CHANGE + timedelta(minutes=10), item(BUNDLED), before=[item(PURE)])
RENEWED = told(Told.UPDATED, MONTHS[1] + timedelta(minutes=40), item(BUNDLED, 1), before=[item(BUNDLED, 0)])
END = MONTHS[1] + timedelta(days=3)
DELETED = told(Told.DELETED, END, item(BUNDLED, 1), ended_at=END)
READ = told(Told.READ, END + timedelta(hours=1), item(BUNDLED, 1), ended_at=END)


def test_a_subscription_bills_from_its_start_and_one_period_beyond_the_one_shown() -> None:
    assert spans([CREATED]) == [(BUNDLED, *period(0), period(0)), (BUNDLED, *period(1), period(1))]


def test_a_plan_held_for_ten_minutes_is_there() -> None:
    found = spans([CREATED, CHANGED, BACK])
    assert found[:3] == [
        (BUNDLED, START, CHANGE, period(0)),
        (PURE, CHANGE, CHANGE + timedelta(minutes=10), period(0)),
        (BUNDLED, CHANGE + timedelta(minutes=10), MONTHS[1], period(0)),
    ]


def test_a_period_begins_where_it_begins_however_late_that_is_told() -> None:
    assert spans([CREATED, RENEWED])[:2] == [(BUNDLED, *period(0), period(0)), (BUNDLED, *period(1), period(1))]


def test_a_plan_that_changes_with_the_renewal_holds_from_its_start() -> None:
    renewal = told(Told.UPDATED, MONTHS[1] + timedelta(minutes=40), item(PURE, 1), before=[item(BUNDLED, 0)])
    assert spans([CREATED, renewal])[1] == (PURE, *period(1), period(1))


def test_nothing_is_billed_after_the_end() -> None:
    assert spans([CREATED, RENEWED, DELETED])[-1] == (BUNDLED, MONTHS[1], END, period(1))


def test_a_cancellation_to_come_ends_it_already() -> None:
    ends = told(Told.UPDATED, CHANGE, item(BUNDLED), cancel_at=MONTHS[1])
    assert spans([CREATED, ends]) == [(BUNDLED, *period(0), period(0))]


def test_what_was_before_the_first_news_is_told_by_the_news() -> None:
    assert spans([CHANGED])[:2] == [(BUNDLED, START, CHANGE, period(0)), (PURE, CHANGE, MONTHS[1], period(0))]


def test_earlier_periods_follow_the_calendar() -> None:
    read = told(Told.READ, MONTHS[2] + timedelta(days=1), item(BUNDLED, 2))
    assert [one[3] for one in spans([read])] == [
        period(0),
        period(1),
        period(2),
        BillingPeriod(MONTHS[3], datetime(2026, 5, 31, 10, tzinfo=UTC)),
    ]


def test_a_cycle_begun_anew_ends_the_period_before() -> None:
    anew = item(PURE)
    anew["current_period_start"] = CHANGE.timestamp()
    anew["current_period_end"] = (CHANGE + timedelta(days=28)).timestamp()
    found = spans([CREATED, told(Told.UPDATED, CHANGE, anew, before=[item(BUNDLED)])])
    assert found[0] == (BUNDLED, START, CHANGE, BillingPeriod(START, CHANGE))
    assert found[1][3].start == CHANGE


def test_an_item_that_was_replaced_bills_from_when_the_new_one_was_made() -> None:
    """Found by reading alone: the event is not known yet."""
    read = told(Told.READ, CHANGE + timedelta(hours=2), item(PURE, item_id="si_2", created=CHANGE))
    assert spans([CREATED, read])[:2] == [(BUNDLED, START, CHANGE, period(0)), (PURE, CHANGE, MONTHS[1], period(0))]


def test_events_of_one_second_stand_behind_the_one_whose_outcome_they_found() -> None:
    second = told(Told.UPDATED, CHANGE, item(BUNDLED), before=[item(PURE)])
    for order in ([CREATED, CHANGED, second], [CREATED, second, CHANGED]):
        assert [one[0] for one in spans(order)] == [BUNDLED, BUNDLED]


def test_a_reading_by_a_clock_that_is_slow_is_later_than_what_it_followed_from() -> None:
    """It was made because the event was known."""
    read = told(Told.READ, CHANGE - timedelta(minutes=3), item(PURE))
    assert spans([CREATED, CHANGED, read]) == spans([CREATED, CHANGED])
    anew = item(PURE, item_id="si_2", created=CHANGE)
    assert spans([CREATED, told(Told.READ, CHANGE - timedelta(minutes=3), anew)])[0] == (BUNDLED, START, CHANGE, period(0))
    ended = told(Told.READ, END - timedelta(minutes=3), item(BUNDLED, 1), ended_at=END)
    assert spans([CREATED, RENEWED, DELETED, ended]) == spans([CREATED, RENEWED, DELETED])


def test_a_renewal_and_a_change_of_one_second_happen_one_after_the_other() -> None:
    """Both found the same item at the same price; only its periods tell which came first."""
    boundary = MONTHS[1]
    renewal = told(Told.UPDATED, boundary, item(BUNDLED, 1), before=[item(BUNDLED, 0)])
    change = told(Told.UPDATED, boundary, item("price_a", 1), before=[item(BUNDLED, 1)])
    for order in ([CREATED, renewal, change], [CREATED, change, renewal]):
        assert spans(order)[:2] == [(BUNDLED, START, boundary, period(0)), ("price_a", boundary, MONTHS[2], period(1))]


def test_every_event_of_one_second_finds_its_place() -> None:
    """Of two that could come first, the one that leaves the other's way open."""
    there = told(Told.UPDATED, CHANGE, item("price_a"), before=[item(BUNDLED)])
    back = told(Told.UPDATED, CHANGE, item(BUNDLED), before=[item("price_a")])
    away = told(Told.UPDATED, CHANGE, item("price_0"), before=[item(BUNDLED)])
    assert {spans([CREATED, *order])[1][0] for order in permutations([there, back, away])} == {"price_0"}


def test_the_order_and_the_number_of_news_do_not_matter() -> None:
    """All orders of six, each ten times."""
    six = [CREATED, CHANGED, BACK, RENEWED, DELETED, READ]
    assert {str(spans(list(order) * 10)) for order in permutations(six)} == {str(spans(six))}


def test_without_a_metered_item_nothing_is_billed() -> None:
    dropped = told(Told.UPDATED, CHANGE, item("price_solo", item_id="si_9", created=CHANGE, metered=False), before=[item(BUNDLED)])
    assert spans([CREATED, dropped]) == [(BUNDLED, START, CHANGE, period(0))]


def test_of_two_subscriptions_at_once_one_prevails() -> None:
    first = billed_periods([CREATED, RENEWED, DELETED], lambda items: items[0])
    other = [one._replace(subscription_id="sub_2") for one in billed_periods([CREATED], lambda items: items[0])]
    merged, overlapping = timeline([first, other])
    assert overlapping == [("sub_1", "sub_2")]
    assert all(one.billed_until <= following.billed_from for one, following in pairwise(merged))
    assert merged[-1] == other[-1]._replace(billed_from=END)


def test_timelines_differ_from_the_first_instant_that_another_item_or_price_bills() -> None:
    def billed(snapshots: list[Snapshot]) -> list[BilledPeriod]:
        return billed_periods(snapshots, lambda items: items[0])

    before, after = billed([CREATED]), billed([CREATED, CHANGED])
    assert differ_from(before, after) == differ_from(after, before) == CHANGE
    assert differ_from([], before) == START
    assert differ_from(after, billed([CREATED, CHANGED, BACK])) == CHANGE + timedelta(minutes=10)
    assert differ_from(before, billed([CREATED, DELETED])) == END
    assert differ_from(before, before) is None
    assert differ_from(before, billed([CREATED, RENEWED])) == MONTHS[2]  # one more period is known


def test_where_nobody_tells_of_periods_the_calendar_does() -> None:
    """A stand-in for Stripe may leave them out."""
    without = item(BUNDLED)
    del without["current_period_start"], without["current_period_end"]
    read = told(Told.READ, MONTHS[1] + timedelta(days=1), without)
    assert [one[3] for one in spans([read])] == [period(0), period(1), period(2)]
