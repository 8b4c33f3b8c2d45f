"""What is compared with Stripe's meters, and what came of it: typed functions over `sql/reconcile_meters.sql`. None of them opens or ends
a transaction; the stages do."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from token_billing import metering
from token_billing.adapters.database import Connection
from token_billing.adapters.discrepancies import FACTS_MATTER_FOR
from token_billing.adapters.queries import queries
from token_billing.meter_reconciliation import EARLIEST, Counter, CounterHour, CounterSpan, MinuteReport, NamedReport, SeenDifference
from token_billing.periods import LONGEST_GRACE, BillingPeriod
from token_billing.reconciliation import OF_METERS
from token_billing.windows import Window

METERS = queries("reconcile_meters.sql")


class DifferingHour(NamedTuple):
    """An hour that differs now, by its two totals. `is_concluded`: its cause was looked for just now."""

    hour: CounterHour
    counted_tokens: int
    is_concluded: bool


class EndedPeriod(NamedTuple):
    """A billing period whose total on a counter is to be compared. `since`: from when on it is ours to compare."""

    counter: Counter
    since: datetime
    period: BillingPeriod


class ItemPeriod(NamedTuple):
    """What our books say of a subscription item's billing period; `tenant_id` where it is one tenant's alone."""

    token_count: int
    in_doubt: bool
    unconfirmed: tuple[NamedReport, ...]
    tenant_id: str | None


def due_counters(db: Connection, now: datetime, *, most: int, early: int) -> tuple[list[CounterSpan], int]:
    """The counters to read, at most so many, filled up to `early` with those that are not due yet; and how many are due in all."""
    parameters = {
        "settling_since": now - metering.SETTLING,
        "drafts_since": now - LONGEST_GRACE,
        "shown_by": now - EARLIEST,
        "closely_since": now - metering.CLOSE_WATCH,
        "read_before": now - metering.LOOK_EVERY,
        "read_long_before": now - metering.LOOK_LATER_EVERY,
        "causes": list(OF_METERS),
        "oldest": now - FACTS_MATTER_FOR,
        "early": early,
        "most": most,
    }
    rows = db.execute(METERS["due_counters"], parameters).fetchall()
    return [CounterSpan(Counter(*counter), first, last) for *counter, first, last, _ in rows], rows[0][-1] if rows else 0


def hours(db: Connection, asked: Sequence[CounterSpan], now: datetime, *, every_hour: bool = False) -> list[CounterHour]:
    """The hours of counters in which something is to be compared, or every hour that holds anything of ours."""
    parameters = {
        "customer_ids": [span.counter.customer_id for span in asked],
        "meter_ids": [span.counter.meter_id for span in asked],
        "firsts": [span.first for span in asked],
        "lasts": [span.last for span in asked],
        "settling_since": now - metering.SETTLING,
        "every_hour": every_hour,
    }
    return [_hour(*row) for row in db.execute(METERS["counter_hours"], parameters)]


def _hour(
    customer_id: str,
    meter_id: str,
    window_start: datetime,
    token_count: int,
    surplus_tokens: int,
    in_doubt: bool,
    ids: list[int],
    identifiers: list[str],
    last_accepted_at: datetime | None,
    first_seen_at: datetime | None,
    *seen: Any,
) -> CounterHour:
    unconfirmed = tuple(map(NamedReport, ids, identifiers))
    difference = None if first_seen_at is None else SeenDifference(first_seen_at, *seen)
    counter = Counter(customer_id, meter_id)
    return CounterHour(counter, Window(window_start), token_count, surplus_tokens, in_doubt, unconfirmed, last_accepted_at, difference)


def reports_of(db: Connection, hour: CounterHour) -> list[MinuteReport]:
    """The reports that should show in the hour, or may."""
    parameters = {**hour.counter._asdict(), "window_start": hour.window.start}
    return [MinuteReport(*row) for row in db.execute(METERS["reports_of_hour"], parameters)]


def confirm(db: Connection, compared: Iterable[NamedReport], now: datetime) -> int:
    """Confirms reports that agree with Stripe, but for those that went on since they were compared; returns how many."""
    reports = list(compared)
    parameters = {"ids": [report.id for report in reports], "identifiers": [report.identifier for report in reports], "now": now}
    return db.execute(METERS["confirm"], parameters).rowcount


def note_readings(db: Connection, counters: Iterable[Counter], now: datetime) -> None:
    """These counters were compared."""
    customer_ids, names = zip(*counters, strict=True)
    db.execute(METERS["note_readings"], {"customer_ids": list(customer_ids), "counters": list(names), "now": now})


def keep_differences(db: Connection, differing: Sequence[DifferingHour], now: datetime) -> None:
    """These hours differ."""
    parameters = {
        **_keys(one.hour for one in differing),
        "ours": [one.hour.expected_tokens for one in differing],
        "stripes": [one.counted_tokens for one in differing],
        "concluded": [one.is_concluded for one in differing],
        "now": now,
    }
    db.execute(METERS["keep_differences"], parameters)


def drop_differences(db: Connection, agreeing: Iterable[CounterHour]) -> None:
    """These hours agree again."""
    db.execute(METERS["drop_differences"], _keys(agreeing))


def _keys(of: Iterable[CounterHour]) -> dict[str, list[Any]]:
    listed = list(of)
    return {
        "customer_ids": [hour.counter.customer_id for hour in listed],
        "meter_ids": [hour.counter.meter_id for hour in listed],
        "windows": [hour.window.start for hour in listed],
    }


def ended_periods(db: Connection, now: datetime, most: int) -> list[EndedPeriod]:
    """Billing periods that have ended and settled, and were not compared as a whole yet."""
    parameters = {"oldest": now - FACTS_MATTER_FOR, "settled_by": now - metering.SETTLING, "most": most}
    return [
        EndedPeriod(Counter(customer_id, meter_id), since, BillingPeriod(start, end))
        for customer_id, meter_id, since, end, start in db.execute(METERS["ended_periods"], parameters)
    ]


def note_periods(db: Connection, compared: Sequence[EndedPeriod], now: datetime) -> None:
    """These periods were compared as a whole."""
    parameters = {
        "customer_ids": [one.counter.customer_id for one in compared],
        "meter_ids": [one.counter.meter_id for one in compared],
        "starts": [one.period.start for one in compared],
        "ends": [one.period.end for one in compared],
        "now": now,
    }
    db.execute(METERS["note_periods"], parameters)


def due_items(db: Connection, now: datetime, most: int) -> list[str]:
    """Subscription items whose usage records wait to be confirmed."""
    parameters = {"read_before": now - metering.LOOK_EVERY, "shown_by": now - EARLIEST, "most": most}
    return [usage_item_id for (usage_item_id,) in db.execute(METERS["due_items"], parameters)]


def item_period(db: Connection, usage_item_id: str, period: BillingPeriod, began: datetime) -> ItemPeriod:
    """What the item's usage records of the period come to; those accepted since Stripe was asked are in doubt."""
    parameters = {"usage_item_id": usage_item_id, "start": period.start, "end": period.end, "began": began}
    tokens, in_doubt, ids, identifiers, tenant_id = db.execute(METERS["item_period"], parameters).fetchone() or (0, False, [], [], None)
    return ItemPeriod(tokens, in_doubt, tuple(map(NamedReport, ids, identifiers)), tenant_id)
