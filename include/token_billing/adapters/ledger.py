"""The ledger in Postgres: typed functions over `sql/`. None of them opens or ends a transaction; the stages do."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg

from token_billing.adapters.database import Connection
from token_billing.adapters.queries import queries, sql_path
from token_billing.errors import LedgerNotReady, WrongStripeAccount
from token_billing.model import (
    Accepted,
    AttemptResult,
    Conservation,
    Destination,
    Disagreement,
    DoubtfulReport,
    LedgerIdentity,
    Meter,
    MeteredItem,
    QuarantineReason,
    Rejected,
    ReportState,
    SendableReport,
    Shard,
    StripeAccount,
    Undelivered,
    UsageTotal,
)
from token_billing.windows import Side, Window

FREEZE = queries("freeze.sql")
PUSH = queries("push.sql")
MARK = queries("mark_billed.sql")
LEDGER = queries("ledger.sql")
CONSERVATION = queries("conservation.sql")

#: The migration this code was written for.
NEWEST_MIGRATION = max(path.name.removesuffix(".sql") for path in sql_path("migrations").iterdir() if path.name.endswith(".sql"))

#: How to make a database ready; every refusal below ends with it.
ADOPT = '`python -m billing_airflow adopt` makes it ready (see the runbook, "Adopting a database")'


def identity(db: Connection) -> LedgerIdentity:
    """What this ledger is pinned to; raises LedgerNotReady where there is none, where it is not the one this code was written for,
    or where it was carried to another cluster, in which its fences would mean other rows."""
    try:
        found = db.execute(LEDGER["identity"]).fetchone()
    except psycopg.errors.UndefinedTable as missing:
        raise LedgerNotReady(f"the database behind `billing_db` has no ledger; {ADOPT}") from missing
    if found is None:
        raise LedgerNotReady(f"the adoption of the database behind `billing_db` was not finished; {ADOPT}")
    ledger_id, account_id, livemode, cut_over, pinned_cluster, this_cluster, migration = found
    if migration != NEWEST_MIGRATION:
        raise LedgerNotReady(f"the ledger is at migration {migration}, this code needs {NEWEST_MIGRATION}; {ADOPT}")
    if pinned_cluster != this_cluster:
        raise LedgerNotReady(
            f"this ledger was made in database cluster {pinned_cluster} but lies in {this_cluster}: it is a restored or copied "
            "database, its fences no longer tell which rows were billed. Point `billing_db` at the original cluster; do not bill here."
        )
    account = None if livemode is None else StripeAccount(account_id, livemode)
    return LedgerIdentity(ledger_id, account, cut_over)


def exists(db: Connection) -> bool:
    """Whether this database has been adopted, if not necessarily to the end."""
    return db.execute(LEDGER["exists"]).fetchone() == (True,)


def check_application_tables(db: Connection, columns: Mapping[str, Mapping[str, Sequence[str] | None]]) -> None:
    """Raises LedgerNotReady where a table or column is missing or of a type that cannot be billed from; None takes any type."""
    for table, wanted in columns.items():
        found: dict[str, str] = dict(db.execute(LEDGER["column_types"], {"table": table}).fetchall())
        if not found:
            raise LedgerNotReady(
                f"the database behind `billing_db` has no table {table}; point the connection at the application's database"
            )
        for column, types in wanted.items():
            if column not in found:
                raise LedgerNotReady(f"table {table} has no column {column}; add it as the README's contract describes it")
            if types is not None and found[column].split("(")[0] not in types:
                raise LedgerNotReady(f"column {table}.{column} is {found[column]}; it must be {' or '.join(types)} to be billed from")


def check_rows(db: Connection, cut_over: datetime | None) -> None:
    """Raises LedgerNotReady for rows that no report could hold, and for a cut-over hour that is missing where another job billed."""
    if cut_over is None and db.execute(LEDGER["anything_billed"]).fetchone() == (True,):
        raise LedgerNotReady(
            "some rows of token_usage are billed already, so another job bills from it: stop that job, then adopt the database with "
            "--cut-over and the first hour that it did not bill, for instance --cut-over 2026-01-31T14:00Z"
        )
    if broken := db.execute(LEDGER["unbillable_rows"], {"cut_over": cut_over}).fetchall():
        raise LedgerNotReady(
            f"token_usage rows {', '.join(str(row) for (row,) in broken)} have a negative token count, no count, no tenant, no time or no "
            "billed flag, so no report could hold them; mend or remove them, then adopt again"
        )


def create(db: Connection, cut_over: datetime | None, now: datetime) -> None:
    """Makes the ledger's identity, once."""
    db.execute(LEDGER["create"], {"cut_over": cut_over, "now": now})


def ensure_time_index(db: Connection) -> None:
    """Sees to it that an hour of token_usage can be found without reading the whole table."""
    if db.execute(LEDGER["has_time_index"]).fetchone() == (False,):
        db.execute(LEDGER["add_time_index"])


def windows_before(db: Connection, cut_over: datetime) -> list[Window]:
    """The windows before the cut-over hour that hold unbilled rows."""
    return [Window(start) for (start,) in db.execute(LEDGER["windows_before"], {"cut_over": cut_over})]


def pin_account(db: Connection, account: StripeAccount, now: datetime) -> None:
    """Pins the ledger to the account at first contact; raises WrongStripeAccount where it is pinned to another."""
    db.execute(LEDGER["pin_account"], {"account_id": account.id, "livemode": account.livemode, "now": now})
    pinned = identity(db).account
    assert pinned is not None
    if pinned.livemode != account.livemode or (pinned.id and account.id and pinned.id != account.id):
        raise WrongStripeAccount(
            f"connection `stripe_default` leads to {account}, but this ledger bills {pinned}. Give the connection the key of the "
            "pinned account; another account needs another database."
        )


# --- freeze -----------------------------------------------------------------------------------------------------------


def take_freezing_turn(db: Connection) -> None:
    """Waits until no other freeze runs; must be the first statement of its transaction."""
    db.execute(FREEZE["take_turn"])


def last_fence(db: Connection, window: Window) -> tuple[int, str] | None:
    """Revision and snapshot of the window's latest fence."""
    return db.execute(FREEZE["last_fence"], {"window_start": window.start}).fetchone()


def unfrozen_totals(db: Connection, window: Window, last_snapshot: str | None) -> list[UsageTotal]:
    """What no fence of the window has seen, per tenant; the whole window is one side."""
    bounds = {"window_start": window.start, "window_end": window.end, "last_snapshot": last_snapshot}
    return [UsageTotal(tenant, window.whole, rows, tokens) for tenant, rows, tokens in db.execute(FREEZE["unfrozen_totals"], bounds)]


def set_fence(db: Connection, window: Window, revision: int, now: datetime) -> None:
    """Fixes what this transaction sees as what the revision holds."""
    db.execute(FREEZE["set_fence"], {"window_start": window.start, "revision": revision, "now": now})


def add_reports(
    db: Connection,
    window: Window,
    revision: int,
    totals: Sequence[UsageTotal],
    identifiers: Sequence[str],
    reason: QuarantineReason | None,
    now: datetime,
) -> None:
    """One report for each total, under the identifier at the same place; quarantined from the start where a reason is given."""
    db.execute(
        FREEZE["add_reports"],
        {
            "window_start": window.start,
            "revision": revision,
            "now": now,
            "reason": reason,
            "tenant_ids": [total.tenant_id for total in totals],
            "side_starts": [total.side.start for total in totals],
            "side_ends": [total.side.end for total in totals],
            "identifiers": list(identifiers),
            "row_counts": [total.row_count for total in totals],
            "token_counts": [total.token_count for total in totals],
        },
    )


def window_counts(db: Connection, window: Window) -> tuple[int, int]:
    """How many reports of the window wait to be pushed, and how many are quarantined."""
    return db.execute(FREEZE["window_counts"], {"window_start": window.start}).fetchone()  # type: ignore[return-value]


# --- push -------------------------------------------------------------------------------------------------------------


def accept_zero_totals(db: Connection, window: Window, now: datetime) -> int:
    """Accepts the window's reports of no tokens, which need no call; returns how many."""
    return db.execute(PUSH["accept_zero_totals"], {"window_start": window.start, "now": now}).rowcount


def items_to_look_up(db: Connection, window: Window, shard: Shard) -> list[str]:
    """Subscription items of the shard's tenants whose meter is not known yet."""
    return [item for (item,) in db.execute(PUSH["items_to_look_up"], {"window_start": window.start, **shard.parameters})]


def set_metered_items(db: Connection, items: Iterable[MeteredItem], now: datetime) -> None:
    """Remembers what Stripe said of subscription items and their meters."""
    for item in items:
        meter = item.meter
        if meter is not None:
            db.execute(
                PUSH["add_meter"],
                {
                    "meter_id": meter.id,
                    "event_name": meter.event_name,
                    "customer_payload_key": meter.customer_payload_key,
                    "value_payload_key": meter.value_payload_key,
                },
            )
        db.execute(
            PUSH["set_metered_item"],
            {
                "usage_item_id": item.usage_item_id,
                "price_id": item.price_id,
                "meter_id": meter and meter.id,
                "problem": item.problem,
                "now": now,
            },
        )


def quarantine_unlinked(db: Connection, window: Window, shard: Shard, now: datetime) -> int:
    """Quarantines the shard's reports that lead to no metered subscription item; returns how many."""
    return db.execute(PUSH["quarantine_unlinked"], {"window_start": window.start, "now": now, **shard.parameters}).rowcount


def reports_to_read_back(db: Connection, window: Window, shard: Shard, attempted_before: datetime) -> list[DoubtfulReport]:
    """The shard's reports that may have arrived and were first attempted before that time."""
    parameters = {"window_start": window.start, "attempted_before": attempted_before, **shard.parameters}
    return [
        DoubtfulReport(report_id, tenant_id, Side(side_start, side_end), *rest)
        for report_id, tenant_id, side_start, side_end, *rest in db.execute(PUSH["reports_to_read_back"], parameters)
    ]


def accept_read_back(db: Connection, report: DoubtfulReport, now: datetime) -> None:
    """Stripe's summary holds the report."""
    db.execute(PUSH["accept_read_back"], {"id": report.id, "generation": report.generation, "now": now})


def note_absence(db: Connection, report: DoubtfulReport, absent_since: datetime | None) -> None:
    """Stripe's summary does not hold the report, since then; None where it holds something that fits neither case."""
    db.execute(PUSH["note_absence"], {"id": report.id, "generation": report.generation, "absent_since": absent_since})


def begin_generation(db: Connection, report: DoubtfulReport, identifier: str, now: datetime) -> None:
    """Lets a report that is proven absent be sent again, under a new identifier."""
    db.execute(PUSH["begin_generation"], {"id": report.id, "generation": report.generation, "identifier": identifier, "now": now})


def waiting_reports(db: Connection, window: Window, shard: Shard, after_id: int, limit: int) -> list[tuple[int, Destination]]:
    """The shard's next reports that want sending, by id, and where each would go."""
    parameters = {"window_start": window.start, "after_id": after_id, "limit": limit, **shard.parameters}
    return [
        (report_id, Destination(customer_id, usage_item_id, Meter(*meter)))
        for report_id, customer_id, usage_item_id, *meter in db.execute(PUSH["waiting_reports"], parameters)
    ]


def lease_customers(db: Connection, destinations: Iterable[Destination], holder: str, lease: timedelta) -> tuple[set[tuple[str, str]], int]:
    """Leases the customers and meters that nobody else holds; returns them as (customer id, event name), and how many holders
    live, this one included."""
    wanted = [(destination.customer_id, destination.meter.event_name) for destination in destinations]
    parameters = {
        "holder": holder,
        "lease": lease,
        "customer_ids": [customer for customer, _ in wanted],
        "event_names": [event_name for _, event_name in wanted],
    }
    leased = db.execute(PUSH["lease_customers"], parameters).fetchall()
    return {(customer, event_name) for customer, event_name, _ in leased}, max((count for *_, count in leased), default=1)


def release_leases(db: Connection, holder: str) -> None:
    """Gives back everything the holder leased."""
    db.execute(PUSH["release_leases"], {"holder": holder})


def reports_to_send(db: Connection, wanted: Sequence[tuple[int, Destination]]) -> list[SendableReport]:
    """The wanted reports as they stand now, for a holder of their customers' leases; those settled meanwhile are left out."""
    destinations = dict(wanted)
    parameters = {
        "ids": list(destinations),
        "customer_ids": [destination.customer_id for destination in destinations.values()],
        "event_names": [destination.meter.event_name for destination in destinations.values()],
    }
    return [
        SendableReport(
            id=report_id,
            tenant_id=tenant_id,
            window=Window(window_start),
            side=Side(side_start, side_end),
            identifier=identifier,
            token_count=token_count,
            destination=destinations[report_id],
            attempt_count=attempt_count,
            first_attempted_at=first_attempted_at,
            may_have_arrived=may_have_arrived,
            event_time=event_time,
            used_event_times=tuple(used),
            key_number=key_number,
        )
        for (
            report_id,
            tenant_id,
            window_start,
            side_start,
            side_end,
            identifier,
            token_count,
            attempt_count,
            first_attempted_at,
            may_have_arrived,
            event_time,
            key_number,
            used,
        ) in db.execute(PUSH["reports_to_send"], parameters)
    ]


def note_attempts(db: Connection, reports: Sequence[SendableReport], now: datetime) -> None:
    """Writes down that the reports, each with its event time, may have been sent from now on."""
    db.execute(
        PUSH["note_attempts"],
        {
            "now": now,
            "ids": [report.id for report in reports],
            "may_have_arrived": [report.may_have_arrived for report in reports],
            "customer_ids": [report.destination.customer_id for report in reports],
            "usage_item_ids": [report.destination.usage_item_id for report in reports],
            "meter_ids": [report.destination.meter.id for report in reports],
            "event_names": [report.destination.meter.event_name for report in reports],
            "event_times": [report.event_time for report in reports],
        },
    )


def quarantine_reports(db: Connection, reasons: dict[int, QuarantineReason], now: datetime) -> int:
    """Quarantines reports that no attempt can have delivered, by id; returns how many."""
    parameters = {"ids": list(reasons), "reasons": list(reasons.values()), "now": now}
    return db.execute(PUSH["quarantine_reports"], parameters).rowcount


def record_outcomes(db: Connection, results: Sequence[AttemptResult], now: datetime) -> None:
    """Writes down how attempts ended."""
    db.execute(
        PUSH["record_outcomes"],
        {
            "now": now,
            "ids": [result.report_id for result in results],
            "attempts": [result.attempt for result in results],
            "states": [_state_after(result) for result in results],
            "outcomes": [type(result.outcome).__name__.lower() for result in results],
            "may_have_arrived": [result.may_have_arrived for result in results],
            "key_numbers": [result.key_number for result in results],
            "http_statuses": [getattr(result.outcome, "http_status", None) for result in results],
            "messages": [getattr(result.outcome, "message", None) for result in results],
        },
    )


def _state_after(result: AttemptResult) -> ReportState:
    match result.outcome:
        case Accepted():
            return ReportState.ACCEPTED
        case Rejected():
            return ReportState.REJECTED
        case Undelivered() if not result.may_have_arrived:
            return ReportState.FROZEN
        case _:
            return ReportState.UNRESOLVED


def shard_states(db: Connection, window: Window, shard: Shard) -> dict[ReportState, tuple[int, str | None]]:
    """How many reports of the shard are in each state, with a message of Stripe's about one of them."""
    states = db.execute(PUSH["shard_states"], {"window_start": window.start, **shard.parameters})
    return {ReportState(state): (count, message) for state, count, message in states}


# --- mark_billed ------------------------------------------------------------------------------------------------------


def accepted_revisions(db: Connection, window: Window) -> list[dict[str, Any]]:
    """The revisions of the window that hold accepted reports, as the parameters that name their rows."""
    bounds = {"window_start": window.start, "window_end": window.end}
    return [
        {**bounds, "revision": revision, "snapshot": snapshot, "earlier_snapshot": earlier}
        for revision, snapshot, earlier in db.execute(MARK["accepted_revisions"], bounds)
    ]


def lock_accepted(db: Connection, revision: dict[str, Any]) -> None:
    """Keeps two runs from marking the same reports at once."""
    db.execute(MARK["lock_accepted"], revision)


def disagreements(db: Connection, revision: dict[str, Any]) -> list[Disagreement]:
    """The revision's accepted reports whose rows are no longer what was frozen."""
    return [Disagreement(*row) for row in db.execute(MARK["disagreements"], revision)]


def mark_rows(db: Connection, revision: dict[str, Any], disagreeing: Sequence[Disagreement]) -> int:
    """Flips the rows of the revision's accepted reports but the disagreeing ones; returns how many rows."""
    return db.execute(MARK["mark_rows"], {**revision, "disagreeing_ids": [one.report_id for one in disagreeing]}).rowcount


def mark_reports(db: Connection, revision: dict[str, Any], disagreeing: Sequence[Disagreement], now: datetime) -> tuple[int, int]:
    """Turns the same reports billed; returns how many, and how many rows they hold."""
    parameters = {**revision, "disagreeing_ids": [one.report_id for one in disagreeing], "now": now}
    return db.execute(MARK["mark_reports"], parameters).fetchone()  # type: ignore[return-value]


def note_disagreements(db: Connection, found: Sequence[Disagreement], now: datetime) -> None:
    """Makes the disagreements discrepancies, once each."""
    db.execute(
        MARK["note_disagreements"],
        {
            "now": now,
            "ids": [one.report_id for one in found],
            "expected_tokens": [one.expected_token_count for one in found],
            "found_tokens": [one.found_token_count for one in found],
            "expected_rows": [one.expected_row_count for one in found],
            "found_rows": [one.found_row_count for one in found],
        },
    )


# --- conservation -----------------------------------------------------------------------------------------------------


def conservation(db: Connection, start: datetime, end: datetime) -> list[Conservation]:
    """The conservation law's terms for every tenant and window of `[start, end)`, as of one instant."""
    return [
        Conservation(tenant_id, Window(window_start), *tokens)
        for tenant_id, window_start, *tokens in db.execute(CONSERVATION["conservation"], {"start": start, "end": end})
    ]
