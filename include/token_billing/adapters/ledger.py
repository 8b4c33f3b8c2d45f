"""The ledger in Postgres: typed functions over `sql/`. None of them opens or ends a transaction; the stages do."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from token_billing.adapters.database import Connection
from token_billing.adapters.queries import queries, sql_path
from token_billing.errors import LedgerNotReady, RestoredDatabase, WrongStripeAccount
from token_billing.model import (
    Conservation,
    Disagreement,
    LedgerCopy,
    LedgerIdentity,
    LedgerMark,
    QuarantineReason,
    SplittableReport,
    StripeAccount,
    UsageTotal,
)
from token_billing.windows import Side, Window

FREEZE = queries("freeze.sql")
MARK = queries("mark_billed.sql")
LEDGER = queries("ledger.sql")
CONSERVATION = queries("conservation.sql")
LATE_USAGE = queries("late_usage.sql")
PAUSE = queries("pause.sql")

#: The migration this code was written for.
NEWEST_MIGRATION = max(path.name.removesuffix(".sql") for path in sql_path("migrations").iterdir() if path.name.endswith(".sql"))

#: How to make a database ready; every refusal below ends with it.
ADOPT = '`python -m billing_airflow adopt` makes it ready (see the runbook, "Adopting a database")'

#: What to do about a database that is not the one that was billed from last.
RECOVER = (
    "Point `billing_db` at the original, or, where that is gone for good, let this one take its place: "
    '`python -m billing_airflow recover` (see the runbook, "Restored databases")'
)


def identity(db: Connection) -> LedgerIdentity:
    """What this ledger is pinned to; raises LedgerNotReady where there is none, where it is not the one this code was written for,
    and RestoredDatabase where it was carried to another cluster, in which its fences would mean other rows."""
    copy = this_copy(db)
    # safeguard: the cluster of the fences
    if copy.pinned_cluster != copy.this_cluster:
        raise RestoredDatabase(
            f"this ledger was made in database cluster {copy.pinned_cluster} but lies in {copy.this_cluster}: it is a restored or "
            f"copied database, whose fences mean other rows here. {RECOVER}"
        )
    return copy.identity


def this_copy(db: Connection) -> LedgerCopy:
    """The ledger as it lies here; raises LedgerNotReady where there is none, or where it is not the one this code was written for."""
    try:
        found = db.execute(LEDGER["identity"]).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as missing:
        raise LedgerNotReady(f"the database behind `billing_db` has no ledger, or one from before the first release; {ADOPT}") from missing
    if found is None:
        raise LedgerNotReady(f"the adoption of the database behind `billing_db` was not finished; {ADOPT}")
    ledger_id, account_id, livemode, cut_over, pinned_cluster, this_cluster, migration, epoch, noted_attempts, recovered_at = found
    # safeguard: the ledger this code was written for
    if migration != NEWEST_MIGRATION:
        raise LedgerNotReady(f"the ledger is at migration {migration}, this code needs {NEWEST_MIGRATION}; {ADOPT}")
    account = None if livemode is None else StripeAccount(account_id, livemode)
    pinned = LedgerIdentity(ledger_id, account, cut_over, recovered_at)
    return LedgerCopy(pinned, LedgerMark(epoch, noted_attempts), pinned_cluster, this_cluster)


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
    # safeguard: a job that billed before needs a cut-over hour
    if cut_over is None and db.execute(LEDGER["anything_billed"]).fetchone() == (True,):
        raise LedgerNotReady(
            "some rows of token_usage are billed already, so another job bills from it: stop that job, then adopt the database with "
            "--cut-over and the first hour that it did not bill, for instance --cut-over 2026-01-31T14:00Z"
        )
    # safeguard: rows that no report could hold
    if broken := db.execute(LEDGER["unbillable_rows"], {"cut_over": cut_over}).fetchall():
        raise LedgerNotReady(
            f"token_usage rows {', '.join(str(row) for (row,) in broken)} have a negative token count, no count, no tenant, no time or no "
            "billed flag, so no report could hold them; mend or remove them, then adopt again"
        )


def create(db: Connection, cut_over: datetime | None, now: datetime) -> None:
    """Makes the ledger's identity, once."""
    db.execute(LEDGER["create"], {"cut_over": cut_over, "now": now})


def ensure_time_index(db: Connection) -> None:
    """Sees to it that an hour of token_usage can be found without reading the whole table; inserts wait while it is built."""
    db.execute(LEDGER["take_adoption_turn"])
    if db.execute(LEDGER["has_time_index"]).fetchone() == (False,):
        db.execute(LEDGER["add_time_index"])


def windows_before(db: Connection, cut_over: datetime) -> list[Window]:
    """The windows before the cut-over hour that hold unbilled rows."""
    return [Window(start) for (start,) in db.execute(LEDGER["windows_before"], {"cut_over": cut_over})]


def pin_account(db: Connection, pinned: StripeAccount | None, account: StripeAccount, now: datetime) -> None:
    """Pins the ledger to the account at first contact (`pinned` is None); raises WrongStripeAccount where it is pinned to another."""
    if pinned is None:
        db.execute(LEDGER["pin_account"], {"account_id": account.id, "livemode": account.livemode, "now": now})
        pinned = identity(db).account
    assert pinned is not None
    # safeguard: the pinned account and mode
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


def boundaries(db: Connection, window: Window) -> dict[str, list[datetime]]:
    """The instants inside the window at which a tenant's billing begins, changes or ends, by tenant; of those that have any."""
    return dict(db.execute(FREEZE["boundaries"], {"window_start": window.start, "window_end": window.end}).fetchall())


def unfrozen_totals(db: Connection, window: Window, last_snapshot: str | None, divided: Mapping[str, Sequence[Side]]) -> list[UsageTotal]:
    """What no fence of the window has seen, per tenant and side: the whole window is one side but for the divided tenants."""
    bounds = {"window_start": window.start, "window_end": window.end, "last_snapshot": last_snapshot, "divided": list(divided)}
    whole = window.whole
    totals = [UsageTotal(tenant, whole, rows, tokens) for tenant, rows, tokens in db.execute(FREEZE["unfrozen_totals"], bounds)]
    return totals + side_totals(db, window, divided, None, last_snapshot)


def side_totals(
    db: Connection, window: Window, divided: Mapping[str, Sequence[Side]], snapshot: str | None, earlier_snapshot: str | None
) -> list[UsageTotal]:
    """Unbilled usage of tenants' sides that the one snapshot sees (None: all) and the other does not."""
    sides = [(tenant, side.start, side.end) for tenant, of_tenant in divided.items() for side in of_tenant]
    if not sides:
        return []
    tenant_ids, starts, ends = map(list, zip(*sides, strict=True))
    parameters = {
        "window_start": window.start,
        "window_end": window.end,
        "tenant_ids": tenant_ids,
        "side_starts": starts,
        "side_ends": ends,
        "snapshot": snapshot,
        "last_snapshot": earlier_snapshot,
    }
    found = db.execute(FREEZE["unfrozen_side_totals"], parameters)
    return [UsageTotal(tenant, Side(start, end), rows, tokens) for tenant, start, end, rows, tokens in found]


def reports_to_split(db: Connection, window: Window, tenant_ids: Sequence[str]) -> list[SplittableReport]:
    """The tenants' reports of the window that were never attempted, locked."""
    found = db.execute(FREEZE["reports_to_split"], {"window_start": window.start, "tenant_ids": list(tenant_ids)})
    return [SplittableReport(report_id, tenant, Side(start, end), *rest) for report_id, tenant, start, end, *rest in found]


def void_report(db: Connection, report_id: int) -> None:
    """A report that was never attempted makes room for its sides."""
    db.execute(FREEZE["void_report"], {"id": report_id})


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
    reports = [
        [total.tenant_id, total.side.start.isoformat(), total.side.end.isoformat(), identifier, total.row_count, total.token_count]
        for total, identifier in zip(totals, identifiers, strict=True)
    ]
    parameters = {"window_start": window.start, "revision": revision, "now": now, "reason": reason, "reports": Jsonb(reports)}
    db.execute(FREEZE["add_reports"], parameters)


def window_counts(db: Connection, window: Window) -> tuple[int, int]:
    """How many reports of the window wait to be pushed, and how many are quarantined."""
    return db.execute(FREEZE["window_counts"], {"window_start": window.start}).fetchone()  # type: ignore[return-value]


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
    db.execute(MARK["join_by_hash"])
    return [Disagreement(*row) for row in db.execute(MARK["disagreements"], revision)]


def mark_rows(db: Connection, revision: dict[str, Any], disagreeing: Sequence[Disagreement] = ()) -> int:
    """Flips the rows of the revision's accepted reports but the disagreeing ones; returns how many rows."""
    all_accepted, held_rows = db.execute(MARK["whole_revision"], revision).fetchone() or (False, 0)
    if all_accepted and not disagreeing:
        with db.transaction() as savepoint:
            # safeguard: marking all at once marks what is held
            if db.execute(MARK["mark_all_rows"], revision).rowcount == held_rows:
                return int(held_rows)
            raise psycopg.Rollback(savepoint)  # the fence sees rows that are in no report: only those in one are marked
    db.execute(MARK["join_by_hash"])
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


def conservation(db: Connection, start: datetime, end: datetime, tenant_ids: Collection[str] | None = None) -> list[Conservation]:
    """The conservation law's terms for every tenant, or some, and window of `[start, end)`, as of one instant."""
    parameters = {"start": start, "end": end, "tenant_ids": None if tenant_ids is None else list(tenant_ids)}
    return [
        Conservation(tenant_id, Window(window_start), *tokens)
        for tenant_id, window_start, *tokens in db.execute(CONSERVATION["conservation"], parameters)
    ]


def has_rows_until(db: Connection, window: Window) -> bool:
    """Whether any usage of the window, or of before it, is kept: where it is not, retention has taken the window's away."""
    return db.execute(CONSERVATION["has_rows_until"], {"until": window.end}).fetchone() == (True,)


# --- late usage -------------------------------------------------------------------------------------------------------


def late_windows(db: Connection, closed_before: datetime, run_is_over_before: datetime, waiting_since: datetime, most: int) -> list[Window]:
    """Windows before a time that hold rows no fence has seen, or, from a time on, reports frozen before a time and not done yet; where
    there are more than `most`, both kinds in turn."""
    bounds = {"closed_before": closed_before, "run_is_over_before": run_is_over_before, "waiting_since": waiting_since, "most": most}
    return [Window(start) for (start,) in db.execute(LATE_USAGE["late_windows"], bounds)]


def future_usage(db: Connection, current_hour_ends: datetime) -> dict[str, tuple[int, int]]:
    """Rows and tokens by tenant dated at that time or later."""
    found = db.execute(LATE_USAGE["future_usage"], {"current_hour_ends": current_hour_ends})
    return {tenant_id: (rows, tokens) for tenant_id, rows, tokens in found}


# --- the switch -------------------------------------------------------------------------------------------------------


def current_pause(db: Connection) -> str | None:
    """Who paused all sending, when and why, in words; None where it is not paused."""
    found = db.execute(PAUSE["current_pause"]).fetchone()
    return "by {} since {:%Y-%m-%d %H:%M} UTC: {}".format(*found) if found else None


def pause(db: Connection, by: str, reason: str, now: datetime) -> bool:
    """Pauses all sending; False where it is paused already."""
    return db.execute(PAUSE["pause"], {"by": by, "reason": reason, "now": now}).rowcount == 1


def resume(db: Connection, by: str, now: datetime) -> bool:
    """Ends the pause; False where there is none."""
    return db.execute(PAUSE["resume"], {"by": by, "now": now}).rowcount == 1
