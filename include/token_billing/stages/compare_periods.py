"""Whole billing periods of customers' meters, once each after their end: what others reported in hours without usage of ours shows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from token_billing.adapters import meter_reconciliation
from token_billing.adapters.database import Connection, retry_serialization
from token_billing.adapters.meter_reconciliation import DifferingHour, EndedPeriod
from token_billing.meter_reconciliation import CounterHour, CounterSpan, NotTold
from token_billing.model import Clock
from token_billing.stages.meter_reads import MeterReads, each
from token_billing.windows import HOUR, Window

#: Periods that are read, and then recorded, together.
CHUNK = 100


async def compare_periods(db: Connection, reads: MeterReads, periods: Sequence[EndedPeriod], clock: Clock) -> Counter[str]:
    """Compares totals, one call each; only where they differ, the period's hours. An hour that differs becomes a difference like any
    other, which the next runs see settle or explain. Returns counts."""
    counts = Counter[str]()
    for n in range(0, len(periods), CHUNK):
        if reads.are_spent:
            counts["periods_left_for_next_run"] = len(periods) - n
            break
        counts += await _compare_chunk(db, reads, periods[n : n + CHUNK], clock)
    return counts


async def _compare_chunk(db: Connection, reads: MeterReads, chunk: Sequence[EndedPeriod], clock: Clock) -> Counter[str]:
    ours = {one: meter_reconciliation.hours(db, [_span(one)], clock(), every_hour=True) for one in chunk}
    totals, trouble = await each(chunk, [reads.total(one.counter, *_bounds(one)) for one in chunk])
    in_question = [one for one, total in totals.items() if total is not None and total != sum(hour.expected_tokens for hour in ours[one])]
    told, trouble_with_hours = await each(in_question, [reads.by_hour(one.counter, _windows(one)) for one in in_question])
    differing, compared = list[DifferingHour](), [one for one, total in totals.items() if total is not None and one not in in_question]
    for one, by_hour in told.items():
        if isinstance(by_hour, NotTold):
            reads.not_told.append(by_hour.message)
        else:
            compared.append(one)
            differing += _differing(one, ours[one], by_hour)
    _record(db, compared, differing, clock())
    if trouble or trouble_with_hours:
        raise trouble or trouble_with_hours  # type: ignore[misc]
    return Counter(periods_compared=len(compared), hours_not_settled=len(differing))


def _differing(one: EndedPeriod, ours: Sequence[CounterHour], by_hour: Mapping[datetime, int]) -> list[DifferingHour]:
    """Hours of the period that differ, those without any usage of ours among them."""
    known = {hour.window.start: hour for hour in ours}
    nothing = {start: CounterHour(one.counter, Window(start), 0, 0, False, (), None, None) for start in by_hour if start not in known}
    return [
        DifferingHour(hour, by_hour.get(start, 0), is_concluded=False)
        for start, hour in (known | nothing).items()
        if not hour.in_doubt and by_hour.get(start, 0) not in (hour.token_count, hour.expected_tokens)
    ]


@retry_serialization
def _record(db: Connection, compared: Sequence[EndedPeriod], differing: Sequence[DifferingHour], now: datetime) -> None:
    with db.transaction():
        meter_reconciliation.keep_differences(db, differing, now)
        meter_reconciliation.note_periods(db, compared, now)


def _bounds(one: EndedPeriod) -> tuple[datetime, datetime]:
    """The whole hours that hold the period; all that a customer used in them is compared, of whichever period it is."""
    return _hour_of(one.since), _hour_of(one.period.end - timedelta(microseconds=1)) + HOUR


def _span(one: EndedPeriod) -> CounterSpan:
    start, end = _bounds(one)
    return CounterSpan(one.counter, start, end - HOUR)


def _windows(one: EndedPeriod) -> list[datetime]:
    start, end = _bounds(one)
    return [start + n * HOUR for n in range((end - start) // HOUR)]


def _hour_of(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)
