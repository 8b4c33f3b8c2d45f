"""split: facts that arrive after a window was frozen divide what was never attempted of it; what was sent stays as it was sent."""

import logging
from collections.abc import Mapping
from itertools import groupby

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
        crossed = [report for report in ledger.reports_to_split(db, window, list(divided)) if _inside(report, divided[report.tenant_id])]
        for _, of_revision in groupby(sorted(crossed, key=lambda one: one.revision), key=lambda one: one.revision):
            split += _split(db, identity, window, list(of_revision), divided, clock)
    return split


def _inside(report: SplittableReport, sides: list[Side]) -> list[Side]:
    """The parts of the report's side, where boundaries run through it."""
    parts = [
        Side(max(side.start, report.side.start), min(side.end, report.side.end))
        for side in sides
        if side.start < report.side.end and report.side.start < side.end
    ]
    return parts if len(parts) > 1 else []


def _split(
    db: Connection,
    identity: LedgerIdentity,
    window: Window,
    reports: list[SplittableReport],
    divided: Mapping[str, list[Side]],
    clock: Clock,
) -> int:
    """Divides reports of one revision, whose rows are read once for all of them."""
    revision, snapshot, earlier = reports[0].revision, reports[0].snapshot, reports[0].earlier_snapshot
    parts = {report.id: _inside(report, divided[report.tenant_id]) for report in reports}
    of_tenant: dict[str, list[Side]] = {}
    for report in reports:
        of_tenant.setdefault(report.tenant_id, []).extend(parts[report.id])
    totals = ledger.side_totals(db, window, of_tenant, snapshot, earlier)
    split = 0
    for report in reports:
        mine = [one for one in totals if one.tenant_id == report.tenant_id and one.side in parts[report.id]]
        # safeguard: a divided report loses nothing
        if (sum(one.row_count for one in mine), sum(one.token_count for one in mine)) != (report.row_count, report.token_count):
            log.warning("report %d does not agree with its rows any more, so it is not divided; mark_billed says what changed", report.id)
            continue
        ledger.void_report(db, report.id)
        identifiers = [metering.identifier(identity.ledger_id, one.tenant_id, window, one.side, revision) for one in mine]
        ledger.add_reports(db, window, revision, mine, identifiers, None, clock())
        starts = ", ".join(f"{side.start:%H:%M:%S}" for side in parts[report.id][1:])
        log.info("window %s: report %d of tenant %r is divided at %s", window, report.id, report.tenant_id, starts)
        split += 1
    return split
