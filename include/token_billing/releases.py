"""Releasing what is quarantined: when its cause is gone and it can still be billed. Pure."""

from dataclasses import dataclass
from datetime import datetime

from token_billing import metering
from token_billing.model import LedgerIdentity, QuarantineReason, ReportState, Sink
from token_billing.windows import Side, Window

#: Reasons that go away by themselves, once somebody mends what is missing; then a release is proposed. About all others a person
#: speaks first.
MENDABLE = (
    QuarantineReason.UNKNOWN_TENANT,
    QuarantineReason.NO_CUSTOMER,
    QuarantineReason.NO_SUBSCRIPTION_ITEM,
    QuarantineReason.ITEM_NOT_METERED,
    QuarantineReason.BEFORE_SUBSCRIPTION,
    QuarantineReason.AFTER_SUBSCRIPTION,
    QuarantineReason.ITEM_ENDED,
    QuarantineReason.CUSTOMER_DELETED,
    QuarantineReason.EXCLUDED_TENANT,
)

#: Usage with these reasons is on no invoice and can get on none but as an invoice item.
TOO_LATE = (QuarantineReason.PERIOD_INVOICED, QuarantineReason.TOO_OLD)

#: About these a person speaks first; once their period's invoice is final, it can only be about an invoice item.
LATE_AT_LAST = (QuarantineReason.DISOWNED,)


@dataclass(frozen=True)
class AsideReport:
    """A report locked for its release, and what stands in its way. `leads_nowhere`: why it could not be sent today; `invoice_id`: the
    final invoice of its period; `settled_by`: the proposal that billed it otherwise or wrote it off."""

    id: int
    tenant_id: str
    window: Window
    side: Side
    revision: int
    generation: int
    state: ReportState
    sink: Sink | None
    reason: str | None
    attempt_count: int
    may_have_arrived: bool
    forgotten: bool
    token_count: int
    used_at: datetime
    leads_nowhere: str | None
    invoice_id: str | None
    settled_by: int | None
    quarantined_at: datetime | None


def why_not(report: AsideReport, identity: LedgerIdentity, now: datetime) -> str | None:
    """Why the report must not be released, and what to do instead; None where it may be."""
    if report.state != ReportState.QUARANTINED:
        return f"it is {report.state}, not quarantined"
    # safeguard: what was settled stays aside
    if report.settled_by is not None:
        return f"proposal {report.settled_by} has billed it otherwise or written it off"
    # safeguard: what may have been forgotten is not released
    if report.forgotten or report.may_have_arrived or identity.may_have_forgotten(report.window):
        return (
            "this database was restored and may have forgotten what became of it since; look in Stripe whether it counts, or was billed by "
            "an invoice item, then acknowledge it"
        )
    if report.leads_nowhere:
        return f"its cause stands: {report.leads_nowhere}; mend that first"
    # safeguard: nothing is released into a final period
    if report.invoice_id is not None:
        return f"invoice {report.invoice_id} of its period is final; `python -m billing_airflow proposals` shows how it can be billed"
    if reason := metering.cannot_be_sent(report.token_count, report.used_at, now, report.sink or Sink.BILLING_METERS):
        return f"Stripe takes it no more: {reason}; `python -m billing_airflow proposals` shows how it can be billed"
    return None


def next_identifier(report: AsideReport, ledger_id: str) -> str | None:
    """A report that was attempted before goes on as a new generation, so that its first attempt is dated anew; None where it need not: a
    usage record keeps its name for ever."""
    if report.attempt_count == 0 or report.sink is not Sink.BILLING_METERS:
        return None
    return metering.identifier(ledger_id, report.tenant_id, report.window, report.side, report.revision, report.generation + 1)
