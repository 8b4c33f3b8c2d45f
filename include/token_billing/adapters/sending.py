"""Reports on their way to Stripe: typed functions over `sql/push.sql`. None of them opens or ends a transaction; the stages do."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from psycopg.types.json import Jsonb

from token_billing.adapters.database import Connection, storable
from token_billing.adapters.price_rows import price_row
from token_billing.adapters.queries import queries
from token_billing.adapters.surplus import note_late_answers
from token_billing.doubtful import DoubtfulReport
from token_billing.model import (
    Accepted,
    AttemptResult,
    Destination,
    Meter,
    MeteredItem,
    QuarantineReason,
    Rejected,
    ReportState,
    SendableReport,
    Shard,
    Undelivered,
)
from token_billing.periods import BillingPeriod
from token_billing.rating import Price
from token_billing.windows import Side, Window

PUSH = queries("push.sql")


def accept_zero_totals(db: Connection, window: Window, now: datetime) -> int:
    """Accepts the window's reports of no tokens, which need no call; returns how many."""
    return db.execute(PUSH["accept_zero_totals"], {"window_start": window.start, "now": now}).rowcount


def items_in_the_way(db: Connection, window: Window, shard: Shard, now: datetime) -> set[str | None]:
    """Subscription items whose meter or present billing period is not known, and None where a tenant has no item: with any of them,
    reports of the shard cannot be sent yet."""
    parameters = {"window_start": window.start, "now": now, **shard.parameters}
    return {item for (item,) in db.execute(PUSH["items_in_the_way"], parameters)}


def set_metered_items(db: Connection, items: Iterable[MeteredItem], now: datetime) -> None:
    """Remembers what Stripe said of subscription items and their meters; in one order, so that two runs at once cannot wait for
    each other."""
    by_id = sorted(items, key=lambda item: item.usage_item_id)
    add_prices(db, [(item.meter, item.price) for item in by_id], now)
    for item in by_id:
        said = {
            "usage_item_id": item.usage_item_id,
            "price_id": item.price_id,
            "meter_id": item.meter and item.meter.id,
            "problem": item.problem,
            "subscription_id": item.subscription_id,
            "period_start": item.period and item.period.start,
            "period_end": item.period and item.period.end,
            "is_first_period": item.is_first_period,
            "now": now,
        }
        db.execute(PUSH["set_metered_item"], said)
        if item.price_id and not item.problem:
            db.execute(PUSH["note_item_reading"], said)


def add_prices(db: Connection, found: Iterable[tuple[Meter | None, Price | None]], now: datetime) -> None:
    """Remembers what Stripe said of meters and of prices, which never change."""
    known = list(found)
    for meter in sorted({meter for meter, _ in known if meter is not None}):
        db.execute(PUSH["add_meter"], meter._asdict())
    prices = {price.id: price for _, price in known if price is not None}
    for price_id in sorted(prices):
        db.execute(PUSH["add_price"], {**price_row(prices[price_id]), "now": now})


def quarantine_unlinked(db: Connection, window: Window, shard: Shard, now: datetime) -> int:
    """Quarantines the shard's reports that lead to no metered subscription item; returns how many."""
    return db.execute(PUSH["quarantine_unlinked"], {"window_start": window.start, "now": now, **shard.parameters}).rowcount


def reports_to_read_back(db: Connection, window: Window, shard: Shard, attempted_before: datetime) -> list[DoubtfulReport]:
    """The shard's reports that may have arrived and were first attempted before that time, or may have been without our knowledge."""
    parameters = {"window_start": window.start, "attempted_before": attempted_before, **shard.parameters}
    found = []
    for row in db.execute(PUSH["reports_to_read_back"], parameters):
        report_id, tenant_id, side_start, side_end, span_start, span_end, customer_id, item_id, *rest = row
        destination = _destination(customer_id, item_id, rest[:4])
        found.append(DoubtfulReport(report_id, tenant_id, Side(side_start, side_end), Side(span_start, span_end), destination, *rest[4:]))
    return found


def usage_in_period(db: Connection, report: DoubtfulReport, period: BillingPeriod) -> tuple[int, int]:
    """What the period of the report's subscription item holds without it, in tokens: those that Stripe has, and those in doubt."""
    parameters = {"usage_item_id": report.destination.usage_item_id, "start": period.start, "end": period.end, "id": report.id}
    known, doubtful = db.execute(PUSH["usage_in_period"], parameters).fetchone() or (0, 0)
    return int(known), int(doubtful)


def accept_read_back(db: Connection, report: DoubtfulReport, now: datetime) -> None:
    """Stripe's summary holds the report."""
    db.execute(PUSH["accept_read_back"], {"id": report.id, "generation": report.generation, "now": now})


def note_absence(db: Connection, report: DoubtfulReport, absent_since: datetime | None, now: datetime) -> None:
    """Stripe's summary does not hold the report, since then; None where it holds something that fits neither case."""
    db.execute(PUSH["note_absence"], {"id": report.id, "generation": report.generation, "absent_since": absent_since, "now": now})


def begin_again(db: Connection, report: DoubtfulReport) -> None:
    """Lets a usage record that is proven absent be set as if nothing had been sent, under its name and at its time."""
    db.execute(PUSH["begin_again"], {"id": report.id, "generation": report.generation})


def begin_generation(db: Connection, report: DoubtfulReport, identifier: str, now: datetime) -> None:
    """Lets a report that is proven absent be sent again, under a new identifier."""
    db.execute(PUSH["begin_generation"], {"id": report.id, "generation": report.generation, "identifier": identifier, "now": now})


def last_report(db: Connection, window: Window) -> int:
    """The window's latest report; 0 where it has none."""
    (report_id,) = db.execute(PUSH["last_report"], {"window_start": window.start}).fetchone() or (0,)
    return int(report_id)


def waiting_reports(db: Connection, window: Window, shard: Shard, last_report: int) -> list[tuple[int, Destination]]:
    """The shard's reports, up to the last one, that want sending, by id, and where each would go."""
    waiting = db.execute(PUSH["waiting_reports"], {"window_start": window.start, "last_report": last_report, **shard.parameters})
    return [(report_id, _destination(customer_id, item_id, meter)) for report_id, customer_id, item_id, *meter in waiting]


def _destination(customer_id: str, usage_item_id: str, meter: Sequence[str | None]) -> Destination:
    """`meter`: its columns, all of them None where the item has none."""
    return Destination(customer_id, usage_item_id, Meter(*meter) if meter[0] is not None else None)  # type: ignore[arg-type]


def lease_customers(
    db: Connection, customers: Iterable[tuple[str, str]], holder: str, lease: timedelta
) -> tuple[set[tuple[str, str]], int]:
    """Leases the counters, as `Destination.lease` names them, that nobody else holds; returns them, and how many holders live, this one
    included."""
    wanted = list(customers)
    parameters = {
        "holder": holder,
        "lease": lease,
        "customer_ids": [customer for customer, _ in wanted],
        "counters": [counter for _, counter in wanted],
    }
    leased = db.execute(PUSH["lease_customers"], parameters).fetchall()
    return {(customer, counter) for customer, counter, _ in leased}, max((count for *_, count in leased), default=1)


def release_leases(db: Connection, holder: str, still_needed: Iterable[tuple[str, str]]) -> None:
    """Gives back what the holder leased, except the counters it still needs."""
    needed = list(still_needed)
    parameters = {"holder": holder, "customer_ids": [one for one, _ in needed], "counters": [one for _, one in needed]}
    db.execute(PUSH["release_leases"], parameters)


def reports_to_send(db: Connection, wanted: Sequence[tuple[int, Destination]]) -> list[SendableReport]:
    """The wanted reports as they stand now, for a holder of their customers' leases; those settled meanwhile are left out."""
    destinations = dict(wanted)
    parameters = {
        "ids": list(destinations),
        "customer_ids": [destination.lease[0] for destination in destinations.values()],
        "counters": [destination.lease[1] for destination in destinations.values()],
    }
    rows = db.execute(PUSH["reports_to_send"], parameters)
    return [
        SendableReport(
            report_id, Side(start, end), identifier, tokens, destinations[report_id], attempts, first, arrived, key, event_time, tuple(used)
        )
        for report_id, start, end, identifier, tokens, attempts, first, arrived, key, event_time, used in rows
    ]


def note_attempts(db: Connection, reports: Sequence[SendableReport], now: datetime) -> None:
    """Writes down that the reports, each with its event time, may have been sent from now on."""
    attempts = [
        {
            "id": report.id,
            "may_have_arrived": report.may_have_arrived,
            "sink": report.destination.sink,
            "customer_id": report.destination.customer_id,
            "usage_item_id": report.destination.usage_item_id,
            "meter_id": report.destination.meter and report.destination.meter.id,
            "event_name": report.destination.meter and report.destination.meter.event_name,
            "event_time": report.event_time and report.event_time.isoformat(),
        }
        for report in reports
    ]
    db.execute(PUSH["note_attempts"], {"now": now, "attempts": Jsonb(attempts)})


def count_attempts(db: Connection, count: int) -> None:
    """Adds to the attempts that this ledger has ever noted; the last thing a transaction does, because others wait for it."""
    db.execute(PUSH["count_attempts"], {"count": count})


def doubt_reports(db: Connection, reports: Sequence[SendableReport], now: datetime) -> None:
    """Notes reports, each with its event time, as sent perhaps by attempts that a restored database has forgotten."""
    note_attempts(db, reports, now)
    db.execute(PUSH["doubt_reports"], {"ids": [report.id for report in reports], "now": now})


def quarantine_reports(db: Connection, reasons: dict[int, QuarantineReason], now: datetime) -> int:
    """Quarantines reports that no attempt can have delivered, by id; returns how many."""
    parameters = {"ids": list(reasons), "reasons": list(reasons.values()), "now": now}
    return db.execute(PUSH["quarantine_reports"], parameters).rowcount


def record_outcomes(db: Connection, results: Sequence[AttemptResult], now: datetime) -> None:
    """Writes down how attempts ended; what Stripe accepted under an identifier that its report has given up is noted as surplus, and
    what it refused as not for this sink is as if never attempted."""
    outcomes = [
        {
            "id": result.report_id,
            "attempt": result.attempt,
            "identifier": result.identifier,
            "state": _state_after(result),
            "outcome": type(result.outcome).__name__.lower(),
            "may_have_arrived": result.may_have_arrived,
            "key_number": result.key_number,
            "http_status": getattr(result.outcome, "http_status", None),
            "message": storable(getattr(result.outcome, "message", None) or "") or None,
        }
        for result in results
    ]
    recorded = db.execute(PUSH["record_outcomes"], {"now": now, "outcomes": Jsonb(outcomes)}).rowcount
    # safeguard: late answers are surplus
    if recorded < len(results):  # only now, and with a snapshot of its own: a generation may have begun while that one waited
        note_late_answers(db, [result for result in results if isinstance(result.outcome, Accepted)], now)
    if wrong := [result.report_id for result in results if isinstance(result.outcome, Undelivered) and result.outcome.wrong_sink]:
        db.execute(PUSH["take_back_attempts"], {"ids": wrong})


def _state_after(result: AttemptResult) -> ReportState:
    match result.outcome:
        case Accepted():
            return ReportState.ACCEPTED
        case Rejected():
            return ReportState.REJECTED
        # safeguard: undelivered after an unknown answer
        case Undelivered() if not result.may_have_arrived:
            return ReportState.FROZEN
        case _:
            return ReportState.UNRESOLVED


def shard_states(db: Connection, window: Window, shard: Shard, last_report: int) -> dict[ReportState, tuple[int, str | None]]:
    """How many reports of the shard are in each state, with a message of Stripe's about one of them."""
    states = db.execute(PUSH["shard_states"], {"window_start": window.start, "last_report": last_report, **shard.parameters})
    return {ReportState(state): (count, message) for state, count, message in states}
