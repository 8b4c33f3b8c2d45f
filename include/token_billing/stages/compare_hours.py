"""Hours of customers' meters against our accepted reports."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from token_billing import meter_reconciliation as rules
from token_billing.adapters import discrepancies, meter_reconciliation
from token_billing.adapters.database import Connection, retry_serialization
from token_billing.adapters.meter_reconciliation import DifferingHour
from token_billing.meter_reconciliation import CounterHour, CounterSpan, NotTold, Verdict
from token_billing.model import Clock
from token_billing.reconciliation import Difference
from token_billing.stages.meter_reads import MeterReads, each
from token_billing.windows import MINUTE

log = logging.getLogger(__name__)

#: Counters that are read, and then recorded, together: what a crash loses is read again.
CHUNK = 200


@dataclass
class _Found:
    """What one chunk's comparison came to."""

    agreeing: list[CounterHour] = field(default_factory=list)
    differing: list[DifferingHour] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    #: Scopes whose discrepancies are brought to what was found.
    scopes: list[str] = field(default_factory=list)


async def compare_hours(db: Connection, reads: MeterReads, due: Sequence[CounterSpan], clock: Clock) -> Counter[str]:
    """Compares the counters in their order, until this run has read enough; returns counts."""
    counts = Counter[str]()
    for n in range(0, len(due), CHUNK):
        if reads.are_spent:
            counts["left_for_next_run"] += len(due) - n
            break
        counts += await _compare_chunk(db, reads, due[n : n + CHUNK], clock)
    return counts


async def _compare_chunk(db: Connection, reads: MeterReads, chunk: Sequence[CounterSpan], clock: Clock) -> Counter[str]:
    began = clock()
    by_counter = defaultdict[rules.Counter, list[CounterHour]](list)
    for hour in meter_reconciliation.hours(db, chunk, began):
        # safeguard: an hour in doubt waits
        if not hour.in_doubt:
            by_counter[hour.counter].append(hour)
    asked = list(by_counter)
    told, trouble = await each(asked, [reads.by_hour(one, [hour.window.start for hour in by_counter[one]]) for one in asked])
    found, counts, to_explain = _Found(), Counter[str](), dict[CounterHour, int]()
    for counter, by_hour in told.items():
        found.scopes.append(counter.scope)
        if isinstance(by_hour, NotTold):
            _note_not_told(reads, found, counter, by_counter[counter], by_hour)
            continue
        for hour in by_counter[counter]:
            counted = by_hour.get(hour.window.start, 0)
            verdict = hour.verdict(counted, clock())
            counts[f"hours_{verdict.replace(' ', '_')}"] += 1
            if verdict is Verdict.AGREES:
                found.agreeing.append(hour)
            elif verdict is Verdict.TO_EXPLAIN:
                to_explain[hour] = counted
            else:
                found.differing.append(DifferingHour(hour, counted, is_concluded=False))
    explained, trouble_with_minutes = await _explain(db, reads, to_explain, clock)
    counts["reports_confirmed"] = _record(db, list(told), found, to_explain, explained, clock)
    if trouble or trouble_with_minutes:
        raise trouble or trouble_with_minutes  # type: ignore[misc]
    return counts


def _note_not_told(reads: MeterReads, found: _Found, counter: rules.Counter, hours: Sequence[CounterHour], why: NotTold) -> None:
    if why.is_unknown_customer:
        found.differences.append(rules.unknown_customer(counter, hours, why.message))
    else:
        found.scopes.remove(counter.scope)
        reads.not_told.append(why.message)


async def _explain(
    db: Connection, reads: MeterReads, to_explain: Mapping[CounterHour, int], clock: Clock
) -> tuple[dict[CounterHour, list[Difference]], Exception | None]:
    """The causes of the hours that can be told now, from the minutes of our reports."""
    explained, first_trouble = dict[CounterHour, list[Difference]](), None
    for hour, counted in to_explain.items():
        reports = meter_reconciliation.reports_of(db, hour)
        minutes = sorted({report.minute for report in reports})
        told, trouble = await each(minutes, [reads.total(hour.counter, minute, minute + MINUTE) for minute in minutes])
        first_trouble = first_trouble or trouble
        by_minute = {minute: tokens for minute, tokens in told.items() if tokens is not None}
        if len(by_minute) == len(minutes) and (causes := rules.explain(hour, counted, reports, by_minute, clock())):
            explained[hour] = causes
    return explained, first_trouble


@retry_serialization
def _record(
    db: Connection,
    counters: Sequence[rules.Counter],
    found: _Found,
    to_explain: Mapping[CounterHour, int],
    explained: Mapping[CounterHour, list[Difference]],
    clock: Clock,
) -> int:
    """All of a chunk in one transaction; returns how many reports were confirmed."""
    if not counters:
        return 0
    now = clock()
    with db.transaction():
        confirmed = meter_reconciliation.confirm(db, [report for hour in found.agreeing for report in hour.unconfirmed], now)
        recovered = [hour for hour in found.agreeing if hour.seen]
        meter_reconciliation.drop_differences(db, recovered)
        # safeguard: causes are those of the hour as it still is
        concluded = _unchanged(db, list(explained), now)
        looked_into = [DifferingHour(hour, counted, is_concluded=hour in concluded) for hour, counted in to_explain.items()]
        meter_reconciliation.keep_differences(db, [*found.differing, *looked_into], now)
        causes = [*found.differences, *(cause for hour in concluded for cause in explained[hour])]
        scopes = [*found.scopes, *(hour.scope for hour in (*recovered, *concluded))]
        news = discrepancies.note_differences(db, scopes, causes, now)
        meter_reconciliation.note_readings(db, counters, now)
    if news:
        log.warning("%d news: %s", news, "; ".join(f"{one.cause}: {one.details}" for one in causes[:20]))
    return confirmed


def _unchanged(db: Connection, explained: Sequence[CounterHour], now: datetime) -> list[CounterHour]:
    """Those hours of which our books say the same as when they were compared."""
    asked = [CounterSpan(hour.counter, hour.window.start, hour.window.start) for hour in explained]
    present = set(meter_reconciliation.hours(db, asked, now))
    return [hour for hour in explained if hour in present]
