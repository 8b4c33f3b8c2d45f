"""mark_billed: the rows of accepted reports become billed, if they still are what was frozen."""

import logging
from functools import partial
from typing import Any

import psycopg

from token_billing.adapters import ledger
from token_billing.adapters.database import Connect, Connection, read_beside, repeatable_read, retry_serialization, session
from token_billing.errors import ReportsDisagree
from token_billing.model import Clock, Disagreement, MarkedWindow
from token_billing.windows import Window

log = logging.getLogger(__name__)


def mark_billed(connect: Connect, window: Window, clock: Clock) -> MarkedWindow:
    """Marks the rows of the window's accepted reports, one transaction per revision. Safe to run twice at once.

    A report whose rows changed since they were frozen becomes a discrepancy and holds no other up; ReportsDisagree then
    ends the stage, naming the tenants."""
    report_count = row_count = 0
    disagreeing: list[Disagreement] = []
    with session(connect) as db:
        ledger.identity(db)
        for revision in ledger.accepted_revisions(db, window):
            reports, rows, differing = _mark_revision(connect, db, revision, clock)
            report_count, row_count, disagreeing = report_count + reports, row_count + rows, disagreeing + differing
    log.info("window %s: %d rows of %d reports marked billed", window, row_count, report_count)
    if disagreeing:
        first = disagreeing[0]
        raise ReportsDisagree(
            f"window {window}: {len(disagreeing)} accepted reports no longer agree with their rows and were not marked, for instance "
            f"report {first.report_id} of tenant {first.tenant_id!r}: frozen {first.expected_token_count} tokens of "
            f"{first.expected_row_count} rows, found {first.found_token_count} of {first.found_row_count}. "
            'Somebody changed, deleted or billed rows; see billing.discrepancy, and the runbook under "Rows changed".'
        )
    return MarkedWindow(window, report_count, row_count)


# safeguard: a marking that met another is tried again
@retry_serialization
def _mark_revision(connect: Connect, db: Connection, revision: dict[str, Any], clock: Clock) -> tuple[int, int, list[Disagreement]]:
    # safeguard: one snapshot to mark
    with repeatable_read(db):
        ledger.lock_accepted(db, revision)
        with read_beside(connect, db, partial(ledger.disagreements, revision=revision)) as comparison, db.transaction() as savepoint:
            marked_rows = ledger.mark_rows(db, revision)
            if comparison.result():
                # safeguard: marking on trial
                raise psycopg.Rollback(savepoint)
        if disagreeing := comparison.result():
            marked_rows = ledger.mark_rows(db, revision, disagreeing)
        report_count, held_rows = ledger.mark_reports(db, revision, disagreeing, clock())
        # safeguard: as many rows as the reports hold
        if marked_rows != held_rows:
            raise AssertionError(f"{marked_rows} rows marked for reports that hold {held_rows}; nothing was committed")
        ledger.note_disagreements(db, disagreeing, clock())
    return report_count, held_rows, disagreeing
