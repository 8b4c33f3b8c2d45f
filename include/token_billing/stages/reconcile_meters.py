"""reconcile_meters: what Stripe's meters count against our accepted reports, every customer and hour, to the token.

What agrees is confirmed. What differs waits until it has settled; then its cause is looked for, minute by minute, and becomes a
discrepancy. Read what to compare → read Stripe → record (commit): no transaction is open while anything is on the network."""

import asyncio
import logging
from collections import Counter
from datetime import timedelta

from token_billing.adapters import ledger, meter_reconciliation
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.meter_reconciliation import EndedPeriod
from token_billing.adapters.stripe_gateway import StripeTarget, stripe_gateway
from token_billing.errors import MetersNotTold
from token_billing.meter_reconciliation import CounterSpan
from token_billing.model import Clock
from token_billing.settings import PushSettings
from token_billing.stages.compare_hours import compare_hours
from token_billing.stages.compare_items import compare_items
from token_billing.stages.compare_periods import compare_periods
from token_billing.stages.meter_reads import MeterReads

log = logging.getLogger(__name__)

#: So long a run reads at most; the next one goes on with what has waited longest.
LONGEST_RUN = timedelta(minutes=20)

#: Counters that a run reads although they could wait: half a minute's worth at the default rate. Small accounts are confirmed hourly.
EARLY = 600


def reconcile_meters(
    connect: Connect, target: StripeTarget, clock: Clock, settings: PushSettings, most_reads: int | None = None, early: int = EARLY
) -> dict[str, int]:
    """Compares what is due; returns counts: reads, reports confirmed, hours by what was found, and counters left for the next run.

    Safe to run twice at once, and beside everything else; killed anywhere, it is finished by the next run. Where nothing waits to be
    confirmed, Stripe is not called. Raises, after what was read is recorded: StripeRefusesKey, StripeUnavailable, WrongStripeAccount,
    and MetersNotTold where Stripe does not tell what some counters hold. Discrepancies raise nothing here."""
    most = most_reads or int(settings.reads_per_second * LONGEST_RUN.total_seconds())
    return dict(asyncio.run(_reconcile_meters(connect, target, clock, settings, most, early)))


async def _reconcile_meters(
    connect: Connect, target: StripeTarget, clock: Clock, settings: PushSettings, most_reads: int, early: int
) -> Counter[str]:
    with session(connect) as db:
        identity = ledger.identity(db)
        due, due_count = meter_reconciliation.due_counters(db, clock(), most=most_reads, early=early)
        items = meter_reconciliation.due_items(db, clock(), most_reads)
        periods = meter_reconciliation.ended_periods(db, clock(), most_reads)
        if not due and not items and not periods:
            return Counter()
        async with stripe_gateway(target) as stripe:
            ledger.pin_account(db, identity.account, await stripe.account(), clock())
            reads = MeterReads(stripe, settings, most_reads)
            counts = await _compare(db, reads, due, items, periods, clock)
        counts += Counter(reads=reads.count, left_for_next_run=max(0, due_count - len(due)))
    told = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in sorted(counts.items()))
    log.info("compared with Stripe's meters: %s", told)
    if reads.not_told:
        raise MetersNotTold(
            f"Stripe does not tell what {len(reads.not_told)} customers used, so that their usage cannot be confirmed, for instance: "
            f'{reads.not_told[0]}. Everything else was compared and recorded. See the runbook under "Reconciliation".'
        )
    return counts


async def _compare(
    db: Connection, reads: MeterReads, due: list[CounterSpan], items: list[str], periods: list[EndedPeriod], clock: Clock
) -> Counter[str]:
    counts = await compare_hours(db, reads, due, clock)
    counts += await compare_items(db, reads, items, clock)
    counts += await compare_periods(db, reads, periods, clock)
    return counts
