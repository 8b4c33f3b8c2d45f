"""What it means that Stripe's meters count what they count: an hour agrees, is not settled yet, or has a cause. Pure.

A *counter* is what adds reports up at Stripe: a meter of one customer, whichever tenants share that customer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from token_billing.metering import ABSENCE, CANCEL_WINDOW, SETTLING
from token_billing.periods import BillingPeriod
from token_billing.reconciliation import Cause, Difference
from token_billing.windows import HOUR, Window

#: A summary that is read sooner after an acceptance mostly tells that it lags behind.
EARLIEST = timedelta(minutes=10)

#: What differs was looked at minute by minute; the same figures are looked at again after so long.
EXPLAIN_EVERY = CANCEL_WINDOW / 2

#: Hours that one reading covers.
LONGEST_SPAN = 100 * HOUR


class Counter(NamedTuple):
    """A meter of a customer's."""

    customer_id: str
    meter_id: str

    @property
    def scope(self) -> str:
        """What discrepancies about the counter as a whole are filed under."""
        return f"{self.customer_id} {self.meter_id}"


class CounterSpan(NamedTuple):
    """Windows of a counter, from the first to the last."""

    counter: Counter
    first: datetime
    last: datetime


class NamedReport(NamedTuple):
    """A report under the identifier it had when it was compared."""

    id: int
    identifier: str


@dataclass(frozen=True)
class SeenDifference:
    """An hour that differed before: since when, by which totals when it was last seen, and when its cause was last looked for."""

    first_seen_at: datetime
    our_tokens: int
    stripe_tokens: int
    concluded_at: datetime | None


class Verdict(StrEnum):
    """What to do about an hour that was compared."""

    AGREES = "agrees"
    NOT_SETTLED = "not settled"
    KNOWN = "known"
    TO_EXPLAIN = "to explain"


@dataclass(frozen=True)
class CounterHour:
    """What our books say of a counter's hour: the tokens of its accepted reports, and those of events that Stripe is known to have beside
    them and will not cancel. `in_doubt`: some report or surplus of the hour may or may not have arrived. `unconfirmed`: the reports that
    agreement confirms."""

    counter: Counter
    window: Window
    token_count: int
    surplus_tokens: int
    in_doubt: bool
    unconfirmed: tuple[NamedReport, ...]
    last_accepted_at: datetime | None
    seen: SeenDifference | None

    @property
    def scope(self) -> str:
        """What discrepancies about the hour are filed under."""
        return f"{self.counter.scope} {self.window}"

    @property
    def expected_tokens(self) -> int:
        """What Stripe should count."""
        return self.token_count + self.surplus_tokens

    def verdict(self, counted_tokens: int, now: datetime) -> Verdict:
        """What it means that Stripe counts so many tokens in the hour. A difference says nothing before it has lasted for SETTLING, and
        no report of the hour was accepted for so long."""
        # safeguard: an hour agrees to the token
        if counted_tokens in (self.token_count, self.expected_tokens):
            return Verdict.AGREES
        # safeguard: a difference settles first
        if self.seen is None or now < self.seen.first_seen_at + SETTLING:
            return Verdict.NOT_SETTLED
        # safeguard: what was just accepted may not show yet
        if self.last_accepted_at is not None and now < self.last_accepted_at + SETTLING:
            return Verdict.NOT_SETTLED
        return Verdict.KNOWN if self._is_explained(self.seen, counted_tokens, now) else Verdict.TO_EXPLAIN

    def _is_explained(self, seen: SeenDifference, counted_tokens: int, now: datetime) -> bool:
        """Whether the same figures, of the same reports, were explained not long ago."""
        if seen.concluded_at is None or now >= seen.concluded_at + EXPLAIN_EVERY:
            return False
        same = (seen.our_tokens, seen.stripe_tokens) == (self.expected_tokens, counted_tokens)
        return same and (self.last_accepted_at is None or self.last_accepted_at <= seen.concluded_at)


class MinuteReport(NamedTuple):
    """A report as it shows in its minute. `counts`: Stripe accepted it; else it was set aside although it may have arrived.
    `surplus_tokens`: what is known to count beside it. `was_rejected`: Stripe told that it, or an event of its meter that it did not name,
    was not counted after all. `customer_is_gone`: its customer was deleted."""

    id: int
    tenant_id: str
    minute: datetime
    token_count: int
    counts: bool
    attempt_count: int
    surplus_tokens: int
    was_rejected: bool
    customer_is_gone: bool

    @property
    def why_missing(self) -> Cause:
        if self.customer_is_gone:
            return Cause.UNKNOWN_CUSTOMER
        return Cause.REJECTED_ASYNCHRONOUSLY if self.was_rejected else Cause.MISSING_AT_STRIPE


@dataclass
class _Sum:
    """Minutes that differ for one cause."""

    expected_tokens: int = 0
    found_tokens: int = 0
    tenants: frozenset[str] = frozenset()
    details: tuple[str, ...] = ()

    def add(self, expected_tokens: int, found_tokens: int, reports: Iterable[MinuteReport], details: str) -> None:
        self.expected_tokens += expected_tokens
        self.found_tokens += found_tokens
        self.tenants |= {report.tenant_id for report in reports}
        self.details += (details,)


def explain(
    hour: CounterHour, counted_tokens: int, reports: Sequence[MinuteReport], counted_by_minute: Mapping[datetime, int], now: datetime
) -> list[Difference] | None:
    """Why Stripe counts so many tokens in the hour, from what it counts in the minutes of our reports, each of which has one of its own:
    one difference for each report that does not show, and one for each other cause. Together they come to the hour's difference. None
    where the minutes and the hour tell different things, because Stripe's totals moved between two readings."""
    found = list[Difference]()
    sums = {cause: _Sum() for cause in (Cause.MISSING_AT_STRIPE, Cause.SURPLUS_AT_STRIPE, Cause.FOREIGN_IDENTIFIER)}
    for minute, group in groupby(sorted(reports, key=lambda report: report.minute), key=lambda report: report.minute):
        inside, counted = list(group), counted_by_minute[minute]
        expected = sum(report.token_count * report.counts + report.surplus_tokens for report in inside)
        if counted < expected:
            if missing := _missing_among(inside, expected, counted):
                found += [_missing(hour, report, now) for report in missing]
            else:
                told = f"{minute:%H:%M} holds {counted} of {expected} tokens"
                sums[Cause.MISSING_AT_STRIPE].add(expected, counted, inside, told)
        elif counted > expected:
            twice = _counted_again(inside, counted - expected)
            cause = Cause.FOREIGN_IDENTIFIER if twice is None else Cause.SURPLUS_AT_STRIPE
            told = f"{minute:%H:%M} holds {counted} tokens instead of {expected}"
            sums[cause].add(expected, counted, inside if twice is None else [twice], told + ("" if twice is None else _why_again(twice)))
    elsewhere = counted_tokens - sum(counted_by_minute.values())
    # safeguard: minutes and hour tell the same
    if elsewhere < 0:
        return None
    if elsewhere:
        sums[Cause.FOREIGN_IDENTIFIER].add(0, elsewhere, reports, f"{elsewhere} tokens in minutes that no report of ours uses")
    found += [_summed(hour, cause, one) for cause, one in sums.items() if one.details]
    return found or None


def unknown_customer(counter: Counter, hours: Sequence[CounterHour], message: str) -> Difference:
    """Stripe does not know the customer that reports were accepted for."""
    expected = sum(hour.token_count for hour in hours)
    return Difference(Cause.UNKNOWN_CUSTOMER, counter.scope, message, stripe_id=counter.customer_id, expected_tokens=expected)


def item_scope(usage_item_id: str, period: BillingPeriod) -> str:
    """What discrepancies about a subscription item's billing period are filed under."""
    return f"{usage_item_id} {period.start.isoformat()}"


def judge_period(
    usage_item_id: str, period: BillingPeriod, token_count: int, counted_tokens: int, tenant_id: str | None, now: datetime
) -> Difference | None:
    """What it means that Stripe counts another total of an item's usage records than we do. Nothing before the period has been over for a
    day, by when Stripe's total stands. Which record differs cannot be told."""
    # safeguard: a period settles for a day
    if now < period.end + ABSENCE:
        return None
    cause = Cause.MISSING_AT_STRIPE if counted_tokens < token_count else Cause.SURPLUS_AT_STRIPE
    return Difference(
        cause,
        item_scope(usage_item_id, period),
        f"item {usage_item_id}, period {period.start:%Y-%m-%dT%H:%MZ} to {period.end:%Y-%m-%dT%H:%MZ}: "
        f"usage records of {token_count} tokens were accepted, Stripe counts {counted_tokens}",
        tenant_id,
        usage_item_id,
        window_start=period.start,
        expected_tokens=token_count,
        found_tokens=counted_tokens,
    )


def spans(windows: Iterable[datetime]) -> Iterator[tuple[datetime, datetime]]:
    """Spans `[start, end)` of whole hours, each short enough for one page, that cover the windows."""
    start: datetime | None = None
    end = None
    for window in sorted(windows):
        if start is None or window + HOUR > start + LONGEST_SPAN:
            if start is not None and end is not None:
                yield start, end
            start = window
        end = window + HOUR
    if start is not None and end is not None:
        yield start, end


@dataclass(frozen=True)
class NotTold:
    """Why Stripe does not tell what a counter holds."""

    message: str
    is_unknown_customer: bool = False


def _missing_among(inside: Sequence[MinuteReport], expected: int, counted: int) -> list[MinuteReport]:
    """The reports of a minute that Stripe certainly lacks; none where that cannot be told."""
    counting = [report for report in inside if report.counts]
    if counted == 0:
        return counting
    fitting = [report for report in counting if report.token_count == expected - counted and len(counting) > 1]
    return fitting if len(fitting) == 1 else []


def _counted_again(inside: Sequence[MinuteReport], excess: int) -> MinuteReport | None:
    """The report of which so many tokens too much are whole events, no more of them than were ever attempted."""
    for report in inside:
        count, rest = divmod(excess, report.token_count)
        if rest == 0 and 1 <= count <= max(1, report.attempt_count):
            return report
    return None


def _why_again(report: MinuteReport) -> str:
    if not report.counts:
        return f": report {report.id}, which was set aside, arrived after all"
    return f": report {report.id} counts more than once"


def _missing(hour: CounterHour, report: MinuteReport, now: datetime) -> Difference:
    since = hour.seen.first_seen_at if hour.seen else now
    proven = "; proven: its absence has lasted for a day" if now >= since + ABSENCE else ""
    details = (
        f"window {hour.window}: report {report.id}, {report.token_count} tokens, does not show in its minute, {report.minute:%H:%M}; "
        f"the hour has differed since {since:%Y-%m-%dT%H:%MZ}{proven}"
    )
    return Difference(
        report.why_missing,
        hour.scope,
        details,
        report.tenant_id,
        hour.counter.customer_id,
        report.id,
        hour.window.start,
        expected_tokens=report.token_count,
        found_tokens=0,
    )


def _summed(hour: CounterHour, cause: Cause, one: _Sum) -> Difference:
    return Difference(
        cause,
        hour.scope,
        f"window {hour.window} of meter {hour.counter.meter_id}: {'; '.join(one.details)}",
        next(iter(one.tenants)) if len(one.tenants) == 1 else None,
        hour.counter.customer_id,
        window_start=hour.window.start,
        expected_tokens=one.expected_tokens,
        found_tokens=one.found_tokens,
    )
