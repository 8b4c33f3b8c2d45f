"""invoice_news: whether events told of invoices that became final, so that they are compared at once and not in the morning."""

from datetime import datetime, timedelta

from token_billing.adapters import invoices, ledger
from token_billing.adapters.database import Connect, session
from token_billing.model import Clock

#: Where nobody was ever told: what is older is compared by the daily run.
LOOKS_BACK = timedelta(days=1)


def final_until(connect: Connect, told_until: datetime | None, clock: Clock) -> datetime | None:
    """The time of the newest handled event about an invoice that became final, or was paid or voided, handled since `told_until`; None
    where there is none."""
    with session(connect) as db:
        ledger.identity(db)
        return invoices.final_invoices_told(db, told_until or clock() - LOOKS_BACK)
