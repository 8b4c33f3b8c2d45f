"""Usage records of the legacy metered billing system: Stripe tells an item's total by billing period, so whole periods are compared."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from token_billing import meter_reconciliation as rules
from token_billing.adapters import discrepancies, meter_reconciliation
from token_billing.adapters.database import Connection, retry_serialization
from token_billing.adapters.stripe_gateway import Counted
from token_billing.model import Clock
from token_billing.reconciliation import Difference
from token_billing.stages.meter_reads import MeterReads, each

log = logging.getLogger(__name__)

#: Items that are read, and then recorded, together.
CHUNK = 200


async def compare_items(db: Connection, reads: MeterReads, items: Sequence[str], clock: Clock) -> Counter[str]:
    """Compares the items in their order, until this run has read enough; returns counts."""
    counts = Counter[str]()
    for n in range(0, len(items), CHUNK):
        if reads.are_spent:
            counts["left_for_next_run"] += len(items) - n
            break
        chunk, began = items[n : n + CHUNK], clock()
        told, trouble = await each(chunk, [reads.by_period(item) for item in chunk])
        if told:
            counts += _record(db, told, began, clock())
        if trouble:
            raise trouble
    return counts


@retry_serialization
def _record(db: Connection, told: Mapping[str, list[Counted]], began: datetime, now: datetime) -> Counter[str]:
    """All of a chunk in one transaction."""
    counts, scopes, found = Counter[str](), list[str](), list[Difference]()
    with db.transaction():
        for usage_item_id, periods in told.items():
            for period, counted_tokens in ((one.period, one.token_count) for one in periods if one.period):
                ours = meter_reconciliation.item_period(db, usage_item_id, period, began)
                # safeguard: a period in doubt waits
                if ours.in_doubt:
                    continue
                if counted_tokens == ours.token_count:
                    counts["reports_confirmed"] += meter_reconciliation.confirm(db, ours.unconfirmed, now)
                    scopes.append(rules.item_scope(usage_item_id, period))
                elif one := rules.judge_period(usage_item_id, period, ours.token_count, counted_tokens, ours.tenant_id, now):
                    scopes.append(one.scope)
                    found.append(one)
                else:
                    counts["periods_not_settled"] += 1
        news = discrepancies.note_differences(db, scopes, found, now)
        meter_reconciliation.note_readings(db, [rules.Counter("", item) for item in told], now)
    if news:
        log.warning("%d news: %s", news, "; ".join(f"{one.cause}: {one.details}" for one in found[:20]))
    return counts
