"""revoke: Stripe disowned a report that it had accepted; its rows are given back, and it is sent anew or quarantined."""

import logging

from token_billing import metering
from token_billing.adapters import discrepancies, ledger, revocation
from token_billing.adapters.database import Connect, repeatable_read, retry_serialization, session
from token_billing.errors import NotRevocable, ReportsDisagree
from token_billing.model import (
    Clock,
    Disowned,
    LedgerIdentity,
    QuarantineReason,
    ReportState,
    RevocableReport,
    Revocation,
    RevocationCause,
)
from token_billing.reconciliation import Cause

log = logging.getLogger(__name__)


# safeguard: a revocation that met another is tried again
@retry_serialization
def revoke(connect: Connect, disowned: Disowned, clock: Clock, *, revoked_by: str, resend: bool = True) -> Revocation:
    """Clears `billed` of exactly the rows the report holds and ends its generation, in one transaction that leaves a row in
    billing.revocation. The report then waits to be sent by the next push under a new identifier, its time and destination as they
    were; or it is quarantined: as disowned where `resend` is false, or because it can be sent no more.

    Safe to run twice at once, and beside mark_billed: the second finds the report gone on. Raises, with nothing changed,
    NotRevocable, ReportsDisagree where its rows are not what was frozen, and LedgerNotReady."""
    # safeguard: a revocation needs evidence and a name
    if not disowned.evidence.strip() or not revoked_by.strip():
        raise NotRevocable("a revocation needs evidence and a name: say what Stripe disowned, in its own words, and who decided it")
    with session(connect) as db:
        identity = ledger.identity(db)
        with repeatable_read(db):
            report = _revocable(revocation.lock_report(db, disowned.report_id), disowned, identity)
            # safeguard: what was billed otherwise is not taken back
            if (proposal := revocation.billed_otherwise(db, report.id)) is not None:
                raise NotRevocable(
                    f"proposal {proposal} has billed what the invoice lacked of report {report.id}'s usage otherwise, or written it off; "
                    "sent anew, it could be billed a second time. Nothing was changed; settle the discrepancy that tells of it."
                )
            _require_its_rows(report, *revocation.held_rows(db, report))
            cleared_rows = revocation.disown(db, report)
            # safeguard: cleared rows are the report's
            if cleared_rows != (report.row_count if report.was_billed else 0):
                raise AssertionError(f"{cleared_rows} rows cleared of a report that holds {report.row_count}; nothing was committed")
            reason = metering.cannot_be_sent(report.token_count, report.event_time, clock()) if resend else QuarantineReason.DISOWNED
            revocation.note_revocation(db, report, disowned, revoked_by, resent=reason is None, now=clock())
            identifier = metering.identifier(
                identity.ledger_id, report.tenant_id, report.window, report.side, report.revision, report.generation + 1
            )
            revocation.begin_generation(db, report, identifier, reason, clock())
            if reason is None:
                discrepancies.settle_about_report(db, Cause.METER_ERROR, report.id, revoked_by, clock())
    after = f"is quarantined as {reason}" if reason else f"waits to be sent as {identifier}"
    what = (
        f"window {report.window}: report {report.id} of tenant {report.tenant_id!r}, {report.token_count} tokens of {report.row_count} rows"
    )
    log.warning("%s, was disowned (%s) and %s", what, disowned.cause, after)
    return Revocation(report, identifier, reason)


def _revocable(report: RevocableReport | None, disowned: Disowned, identity: LedgerIdentity) -> RevocableReport:
    """The report, if Stripe has accepted it, and under the identifier that was disowned. Where a restored database need not know that
    identifier, only a summary proves anything."""
    if report is None:
        cause = f"there is no report {disowned.report_id} in this ledger; look its id up in billing.usage_report or billing.push_attempt"
    # safeguard: only what was accepted is disowned
    elif report.state not in (ReportState.ACCEPTED, ReportState.BILLED):
        cause = (
            f"report {report.id} of tenant {report.tenant_id!r}, window {report.window}, is {report.state} (generation "
            f"{report.generation}), so there is nothing accepted to disown; billing.revocation tells whether it was revoked already"
        )
    # safeguard: nothing sent, nothing disowned
    elif report.attempt_count == 0:
        cause = f"report {report.id} is a total of zero, which Stripe was never sent; nothing is to be done"
    # safeguard: only the disowned identifier
    elif disowned.identifier not in (None, report.identifier):
        cause = (
            f"report {report.id} has gone on as {report.identifier}; what was disowned is {disowned.identifier}, see billing.revocation. "
            "Nothing is to be done, unless Stripe disowned the new one as well"
        )
    # safeguard: news of an identifier after a recovery
    elif (report.forgotten or identity.may_have_forgotten(report.window)) and disowned.cause != RevocationCause.SETTLED_SUMMARY:
        cause = (
            f"this database was restored, and Stripe may count report {report.id} of tenant {report.tenant_id!r}, window {report.window}, "
            "under another identifier, which this copy has never heard of: that one of its identifiers was disowned proves nothing. Look "
            f"at Stripe's summary, as the runbook says; only where it lacks the report's {report.token_count} tokens, revoke it with "
            "--missing-in-summary"
        )
    else:
        return report
    raise NotRevocable(f'{cause}. Nothing was changed; see the runbook under "Disowned reports".')


def _require_its_rows(report: RevocableReport, row_count: int, token_count: int) -> None:
    # safeguard: a revoked report still has its rows
    if (row_count, token_count) != (report.row_count, report.token_count):
        raise ReportsDisagree(
            f"report {report.id} of tenant {report.tenant_id!r}, window {report.window}, is {report.state} and no longer agrees with "
            f"its rows: frozen {report.token_count} tokens of {report.row_count} rows, found {token_count} of {row_count}. Nothing was "
            'changed. Somebody changed, deleted or marked rows, or retention deleted them; see the runbook under "Rows changed".'
        )
