"""release: a quarantined report whose cause is gone waits to be sent again; acknowledge: somebody has seen one and lets it be."""

import logging
from collections.abc import Sequence
from datetime import datetime

from token_billing.adapters import audit, discrepancies, ledger, releases
from token_billing.adapters.audit import AuditEntry
from token_billing.adapters.database import Connect, Connection, session
from token_billing.errors import ReleaseRefused
from token_billing.model import Clock, LedgerIdentity, ReportState
from token_billing.reconciliation import Cause
from token_billing.releases import AsideReport, next_identifier, why_not

log = logging.getLogger(__name__)


def release(connect: Connect, report_ids: Sequence[int], *, by: str, reason: str, clock: Clock) -> None:
    """Lets quarantined reports be sent by the next `report_late_usage`, all of them or none. Who decided it, and why, is kept. Raises
    ReleaseRefused for one whose cause stands, that was settled otherwise, that can be billed no more, or that may have been sent."""
    with session(connect) as db:
        identity = ledger.identity(db)
        with db.transaction():
            let_go(db, identity, report_ids, by, reason, clock())
    log.info("%d reports were released by %s; `report_late_usage` sends them", len(report_ids), by)


def let_go(db: Connection, identity: LedgerIdentity, report_ids: Sequence[int], by: str, reason: str, now: datetime) -> None:
    """The same inside a transaction."""
    _require_name_and_reason(by, reason)
    for report in _locked(db, report_ids, now):
        if refusal := why_not(report, identity, now):
            raise ReleaseRefused(f"{_named(report)} is not released: {refusal}. Nothing was changed.")
        releases.release(db, report.id, next_identifier(report, identity.ledger_id), now)
        discrepancies.settle_about_report(db, Cause.METER_ERROR, report.id, by, now)
        since = report.quarantined_at and report.quarantined_at.isoformat()
        before = {"state": report.state, "quarantine_reason": report.reason, "quarantined_at": since, "generation": report.generation}
        # safeguard: who releases is written down
        audit.write_down(db, "release", f"report {report.id}", by, now, before=before, after={"state": "frozen", "why": reason})


def acknowledge(connect: Connect, report_ids: Sequence[int], *, by: str, reason: str, clock: Clock) -> None:
    """Notes that somebody has seen quarantined or rejected reports and lets them be for the time being: no draft invoice waits for them.
    Raises ReleaseRefused for one that is neither, or that a proposal has settled."""
    _require_name_and_reason(by, reason)
    with session(connect) as db:
        ledger.identity(db)
        with db.transaction():
            now = clock()
            for report in _locked(db, report_ids, now):
                if report.state not in (ReportState.QUARANTINED, ReportState.REJECTED):
                    raise ReleaseRefused(f"{_named(report)} is {report.state}; only quarantined and rejected reports are acknowledged")
                if not releases.acknowledge(db, report.id, by, reason, now):
                    raise ReleaseRefused(f"{_named(report)} is settled by proposal {report.settled_by}, and that stands")
                before = {"state": report.state, "quarantine_reason": report.reason}
                audit.write_down(db, "acknowledge", f"report {report.id}", by, now, before=before, after={"acknowledged": reason})


def audit_trail(connect: Connect, subject: str | None = None, most: int = 1000) -> list[AuditEntry]:
    """What was decided, the newest first; about one subject (`report 4711`, `proposal 7`), or all."""
    with session(connect) as db:
        ledger.identity(db)
        return audit.entries(db, subject, most)


def _locked(db: Connection, report_ids: Sequence[int], now: datetime) -> list[AsideReport]:
    found = releases.lock_aside(db, report_ids, now)
    if missing := sorted(set(report_ids) - {report.id for report in found}):
        raise ReleaseRefused(f"there is no report {', '.join(map(str, missing))} in this ledger; look ids up in billing.usage_report")
    return found


def _named(report: AsideReport) -> str:
    return f"report {report.id} of tenant {report.tenant_id!r}, window {report.window},"


def _require_name_and_reason(by: str, reason: str) -> None:
    if not by.strip() or not reason.strip():
        raise ReleaseRefused("say who decides, and why: both are kept")
