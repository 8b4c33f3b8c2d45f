"""What an hour's totals mean."""

from collections import Counter as Sums
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_billing.adapters.stripe_gateway.summaries import whole_tokens
from token_billing.meter_reconciliation import (
    LONGEST_SPAN,
    Counter,
    CounterHour,
    MinuteReport,
    SeenDifference,
    Verdict,
    explain,
    judge_period,
    spans,
)
from token_billing.periods import BillingPeriod
from token_billing.reconciliation import Cause
from token_billing.windows import HOUR, MINUTE, Window

WINDOW = Window(datetime(2026, 3, 10, 14, tzinfo=UTC))
NOON = datetime(2026, 3, 11, 12, tzinfo=UTC)


def hour(tokens: int = 10, *, surplus: int = 0, accepted: float | None = 20.0, seen: float | None = 20.0, figures: int = 4) -> CounterHour:
    """Accepted, and first seen to differ, so many hours before noon."""
    known = None if seen is None else SeenDifference(NOON - seen * HOUR, tokens + surplus, figures, None)
    accepted_at = None if accepted is None else NOON - accepted * HOUR
    return CounterHour(Counter("cus", "mtr"), WINDOW, tokens, surplus, False, (), accepted_at, known)


def report(number: int, tokens: int, minute: int = 0, **known: object) -> MinuteReport:
    told: dict[str, object] = {"counts": True, "attempt_count": 1, "surplus_tokens": 0, "was_rejected": False, "customer_is_gone": False}
    return MinuteReport(number, f"tenant {number}", WINDOW.start + minute * MINUTE, tokens, **(told | known))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("compared", "counted", "verdict"),
    [
        (hour(seen=None), 10, Verdict.AGREES),
        (hour(surplus=3), 13, Verdict.AGREES),
        (hour(surplus=3), 10, Verdict.AGREES),  # cancelled after all
        (hour(seen=None), 9, Verdict.NOT_SETTLED),
        (hour(seen=None), 11, Verdict.NOT_SETTLED),
        (hour(seen=5.9), 9, Verdict.NOT_SETTLED),
        (hour(accepted=5.9), 9, Verdict.NOT_SETTLED),
        (hour(accepted=6, seen=6), 9, Verdict.TO_EXPLAIN),
        (hour(accepted=None), 9, Verdict.TO_EXPLAIN),  # nothing of ours in it
    ],
)
def test_a_difference_says_nothing_before_it_has_settled(compared: CounterHour, counted: int, verdict: Verdict) -> None:
    assert compared.verdict(counted, NOON) is verdict


def test_the_same_figures_are_explained_twice_a_day_and_others_at_once() -> None:
    concluded = CounterHour(
        Counter("cus", "mtr"), WINDOW, 10, 0, False, (), None, SeenDifference(NOON - 40 * HOUR, 10, 4, NOON - 11 * HOUR)
    )
    assert concluded.verdict(4, NOON) is Verdict.KNOWN
    assert concluded.verdict(3, NOON) is Verdict.TO_EXPLAIN
    assert concluded.verdict(4, NOON + HOUR) is Verdict.TO_EXPLAIN


@pytest.mark.parametrize(
    ("reports", "minutes", "counted", "causes"),
    [
        ([report(1, 6), report(2, 4, 1)], [0, 4], 4, {(Cause.MISSING_AT_STRIPE, 1)}),
        ([report(1, 6, was_rejected=True), report(2, 4, 1)], [0, 4], 4, {(Cause.REJECTED_ASYNCHRONOUSLY, 1)}),
        ([report(1, 6, customer_is_gone=True, was_rejected=True)], [0], 0, {(Cause.UNKNOWN_CUSTOMER, 1)}),
        ([report(1, 6), report(2, 4)], [4], 4, {(Cause.MISSING_AT_STRIPE, 1)}),  # they share a minute
        ([report(1, 5), report(2, 5)], [5], 5, {(Cause.MISSING_AT_STRIPE, None)}),  # which of the two cannot be told
        ([report(1, 6)], [5], 5, {(Cause.MISSING_AT_STRIPE, None)}),
        ([report(1, 6)], [12], 12, {(Cause.SURPLUS_AT_STRIPE, None)}),
        ([report(1, 6, attempt_count=2)], [18], 18, {(Cause.SURPLUS_AT_STRIPE, None)}),
        ([report(1, 6)], [18], 18, {(Cause.FOREIGN_IDENTIFIER, None)}),  # sent once, it cannot count three times
        ([report(1, 6)], [13], 13, {(Cause.FOREIGN_IDENTIFIER, None)}),
        ([report(1, 6)], [0], 6, {(Cause.MISSING_AT_STRIPE, 1), (Cause.FOREIGN_IDENTIFIER, None)}),
        ([report(1, 6), report(2, 4, 1, counts=False)], [6, 4], 10, {(Cause.SURPLUS_AT_STRIPE, None)}),
        ([], [], 8, {(Cause.FOREIGN_IDENTIFIER, None)}),
    ],
)
def test_each_cause_is_told_apart_by_the_minutes(
    reports: list[MinuteReport], minutes: list[int], counted: int, causes: set[tuple[Cause, int | None]]
) -> None:
    by_minute = {WINDOW.start + n * MINUTE: tokens for n, tokens in enumerate(minutes)}
    found = explain(hour(), counted, reports, by_minute, NOON)
    assert found is not None and {(one.cause, one.report_id) for one in found} == causes


def test_minutes_and_hour_that_tell_different_things_explain_nothing() -> None:
    """Stripe's totals moved between two readings."""
    assert explain(hour(), 3, [report(1, 6)], {WINDOW.start: 6}, NOON) is None
    assert explain(hour(), 6, [report(1, 6)], {WINDOW.start: 6}, NOON) is None


REPORTS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9), st.booleans()), max_size=12)


@given(REPORTS, st.lists(st.integers(0, 60), min_size=10, max_size=10), st.integers(0, 30))
def test_the_causes_of_an_hour_come_to_its_difference(drawn: list[tuple[int, int, bool]], minutes: list[int], elsewhere: int) -> None:
    """To the token, whatever Stripe counts."""
    reports = [report(number, tokens, minute, counts=counts) for number, (tokens, minute, counts) in enumerate(drawn)]
    by_minute = {one.minute: minutes[(one.minute - WINDOW.start) // MINUTE] for one in reports}
    ours, counted = sum(one.token_count for one in reports if one.counts), sum(by_minute.values()) + elsewhere
    found = explain(hour(ours), counted, reports, by_minute, NOON) or []
    assert sum((one.found_tokens or 0) - (one.expected_tokens or 0) for one in found) == counted - ours
    assert max(Sums(one.report_id for one in found if one.report_id is not None).values(), default=1) == 1


@given(st.sets(st.integers(0, 2000), max_size=40))
def test_spans_cover_every_window_each_on_one_page(hours: set[int]) -> None:
    windows = [WINDOW.start + n * HOUR for n in hours]
    covered = list(spans(windows))
    assert all(end - start <= LONGEST_SPAN for start, end in covered)
    assert all(sum(start <= window < end for start, end in covered) == 1 for window in windows)


def test_a_legacy_period_says_nothing_before_it_has_been_over_for_a_day() -> None:
    period = BillingPeriod(NOON - timedelta(days=31), NOON)
    assert judge_period("si", period, 10, 4, "a", NOON + 23 * HOUR) is None
    missing, surplus = judge_period("si", period, 10, 4, "a", NOON + 24 * HOUR), judge_period("si", period, 10, 14, None, NOON + 24 * HOUR)
    assert missing and surplus and (missing.cause, surplus.cause) == (Cause.MISSING_AT_STRIPE, Cause.SURPLUS_AT_STRIPE)


@pytest.mark.parametrize(("told", "tokens"), [(0.0, 0), (5.0, 5), (5.5, 6), (float(2**53 - 1), 2**53 - 1)])
def test_a_total_is_whole_tokens(told: float, tokens: int) -> None:
    assert whole_tokens(told) == tokens


@pytest.mark.parametrize("told", [float(2**53), float(2**60)])
def test_a_total_beyond_what_a_float_holds_is_refused(told: float) -> None:
    with pytest.raises(ValueError, match="more than a float holds exactly"):
        whole_tokens(told)
