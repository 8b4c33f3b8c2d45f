"""accruals: what had been used by an instant and was on no final invoice then, for the books."""

import logging
from collections import Counter
from datetime import datetime

from token_billing.accruals import Accrual, Standing, valued
from token_billing.adapters import accruals as adapter
from token_billing.adapters import ledger
from token_billing.adapters.database import Connect, repeatable_read, session
from token_billing.catalog import PURE
from token_billing.errors import WindowStillOpen
from token_billing.model import Clock

log = logging.getLogger(__name__)


def accruals(connect: Connect, instant: datetime, clock: Clock) -> list[Accrual]:
    """Every tenant's usage before the instant by bill, as it stood at the instant, and what was open of it in money: accrued, unbilled and
    quarantined. As of a past instant, what became of usage since is left out; usage that was recorded since, and used before, is unbilled.

    All tokens used before the instant are in the list once; base fees, paid in advance, are not. Changes nothing. Raises WindowStillOpen
    for an instant that has not come yet."""
    if instant > clock():
        raise WindowStillOpen(f"{instant.isoformat()} has not come yet, so what is used before it is not known; ask again afterwards")
    with session(connect) as db:
        ledger.identity(db)
        with repeatable_read(db):
            used = adapter.used_before(db, instant)
    totals = Counter[str]()
    for usage in used:
        totals.update(usage.tokens)
    told = " + ".join(f"{totals[standing]:,} {standing}" for standing in Standing)
    log.info("used before %s: %s = %s tokens", instant.isoformat(), told, f"{totals.total():,}")
    # What leads to no subscription item is worth the list price of tokens without a base, as in the list of quarantined usage.
    found = valued(usage.or_at(PURE.terms) for usage in used)
    return sorted(found, key=lambda one: (one.usage.tenant_id, one.usage.period, one.usage.plan or "", one.usage.usage_item_id or ""))
