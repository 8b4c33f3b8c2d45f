"""Rows of invoiced periods that no longer add up to what was reported: changed, deleted or marked behind the ledger's back."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from token_billing.adapters import invoice_comparison, ledger
from token_billing.adapters.database import Connection
from token_billing.charges import Charge, Facts
from token_billing.model import Conservation
from token_billing.periods import BillingPeriod
from token_billing.reconciliation import Cause, Difference

DAY = timedelta(days=1)


def changed_rows(db: Connection, charges: Sequence[Charge], facts: Facts, now: datetime) -> list[Difference]:
    """Every hour of the charges' periods for whose tenants the conservation law does not hold, a day at a time, so that no query runs for
    long; what a report's own discrepancy tells of already is left out."""
    billed = [
        (tenant_id, charge.invoice.id, _since(facts.agreed_period(charge), facts.cut_over))
        for charge in charges
        for tenant_id in facts.tenants_of(charge)
    ]
    told = invoice_comparison.rows_told_of(db)
    found = {}
    for day in _days([period for *_, period in billed], now):
        tenants = {tenant_id for tenant_id, _, period in billed if period.start < day + DAY and period.end > day}
        for one in ledger.conservation(db, day, day + DAY, tenants):
            where = (one.tenant_id, one.window.start)
            if one.holds or where in told or not (one.row_tokens or ledger.has_rows_until(db, one.window)):
                continue
            for tenant_id, invoice_id, period in billed:
                if tenant_id == one.tenant_id and period.start < one.window.end and period.end > one.window.start:
                    found[where] = _difference(one, invoice_id)
    return list(found.values())


def _since(period: BillingPeriod, cut_over: datetime | None) -> BillingPeriod:
    """What of a period is ours."""
    return BillingPeriod(max(period.start, cut_over or period.start), period.end)


def _days(periods: Sequence[BillingPeriod], now: datetime) -> list[datetime]:
    """The days that some of the periods touch, by their beginnings."""
    return sorted({day for period in periods for day in _touched(period) if day < now})


def _touched(period: BillingPeriod) -> Iterator[datetime]:
    day = period.start.replace(hour=0, minute=0, second=0, microsecond=0)
    while day < period.end:
        yield day
        day += DAY


def _difference(one: Conservation, invoice_id: str) -> Difference:
    reported = one.billed_tokens + one.pending_tokens + one.unfrozen_tokens + one.quarantined_tokens
    what, expected, found = "rows", reported, one.row_tokens
    if expected == found:
        what, expected, found = "rows marked billed", one.billed_tokens, one.marked_tokens
    details = (
        f"invoice {invoice_id}: the {what} of {one.window} hold {found:,} tokens, the reports {expected:,}; usage was changed, deleted or "
        "marked behind the ledger's back"
    )
    hour = one.window.start
    return Difference(Cause.ROWS_CHANGED, invoice_id, details, one.tenant_id, invoice_id, None, hour, expected, found)
