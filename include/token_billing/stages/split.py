"""split: facts that arrive after a window was frozen divide what was never attempted of it; what was sent stays as it was sent."""

import logging

from token_billing import metering
from token_billing.adapters import ledger
from token_billing.adapters.database import Connection
from token_billing.model import Clock, LedgerIdentity, SplittableReport
from token_billing.windows import Side, Window

log = logging.getLogger(__name__)


def split_at_boundaries(db: Connection, identity: LedgerIdentity, window: Window, clock: Clock) -> int:
    """Divides the window's reports that were never attempted at the boundaries that are known now, with the rows that they hold; returns
    how many were divided. Where a restored database may have forgotten attempts, nothing counts as never attempted."""
    boundaries = ledger.boundaries(db, window)
    # safeguard: what may have been forgotten is not split
    if not boundaries or identity.may_have_forgotten(window):
        return 0
    divided = {tenant: window.divided(instants) for tenant, instants in boundaries.items()}
    if not any(_inside(report, divided[report.tenant_id]) for report in ledger.reports_to_split(db, window, list(divided))):
        return 0
    split = 0
    with db.transaction():
        ledger.take_freezing_turn(db)
        for report in ledger.reports_to_split(db, window, list(divided)):
            if sides := _inside(report, divided[report.tenant_id]):
                split += _split(db, identity, window, report, sides, clock)
    return split


def _inside(report: SplittableReport, sides: list[Side]) -> list[Side]:
    """The parts of the report's side, where boundaries run through it."""
    parts = [
        Side(max(side.start, report.side.start), min(side.end, report.side.end))
        for side in sides
        if side.start < report.side.end and report.side.start < side.end
    ]
    return parts if len(parts) > 1 else []


def _split(db: Connection, identity: LedgerIdentity, window: Window, report: SplittableReport, sides: list[Side], clock: Clock) -> bool:
    totals = ledger.side_totals(db, window, {report.tenant_id: sides}, report.snapshot, report.earlier_snapshot)
    # safeguard: a divided report loses nothing
    if (sum(one.row_count for one in totals), sum(one.token_count for one in totals)) != (report.row_count, report.token_count):
        log.warning("report %d does not agree with its rows any more, so it is not divided; mark_billed will say what changed", report.id)
        return False
    ledger.void_report(db, report.id)
    identifiers = [metering.identifier(identity.ledger_id, one.tenant_id, window, one.side, report.revision) for one in totals]
    ledger.add_reports(db, window, report.revision, totals, identifiers, None, clock())
    log.info(
        "window %s: report %d of tenant %r is divided at %s",
        window,
        report.id,
        report.tenant_id,
        ", ".join(f"{one.start}" for one in sides[1:]),
    )
    return True
