"""Which ended billing periods' invoices are final: Stripe bills nothing more in those, whatever it still accepts."""

import asyncio
import logging

from aiolimiter import AsyncLimiter

from token_billing.adapters import invoiced_periods
from token_billing.adapters.database import Connection
from token_billing.adapters.stripe_gateway import StripeGateway
from token_billing.model import Clock, Shard
from token_billing.periods import FinalPeriods, InvoicedPeriod
from token_billing.settings import PushSettings
from token_billing.windows import Window

log = logging.getLogger(__name__)


async def final_periods(
    db: Connection, stripe: StripeGateway, window: Window, shard: Shard, clock: Clock, settings: PushSettings
) -> FinalPeriods:
    """The final periods that open reports of the shard may fall into. While every report lies in its item's present period, Stripe is
    not asked; else once an item, and not again where the invoice is known to be final. What cannot be found out counts as not final.

    Raises StripeUnavailable or StripeRefusesKey, before anything is sent."""
    # safeguard: usage outside its present period
    outside = dict(invoiced_periods.items_outside_their_period(db, window, shard, clock()))
    if not outside:
        return FinalPeriods()
    known = [one for one in invoiced_periods.invoiced_periods(db, list(outside), window) if one.is_known(clock())]
    unknown = sorted(outside.items() - {(one.usage_item_id, outside[one.usage_item_id]) for one in known if _whole(one, window)})
    reads = AsyncLimiter(settings.reads_per_second, 1)

    async def look(item: str, subscription: str) -> list[InvoicedPeriod]:
        await reads.acquire()
        return await stripe.invoiced_periods(item, subscription, window.start, clock())

    for n in range(0, len(unknown), settings.concurrency):
        found = await asyncio.gather(*(look(*one) for one in unknown[n : n + settings.concurrency]))
        with db.transaction():
            invoiced_periods.note_invoiced_periods(db, [one for periods in found for one in periods])
        known += [one for periods in found for one in periods]
    return FinalPeriods.among(known)


def _whole(invoiced: InvoicedPeriod, window: Window) -> bool:
    """Whether the period covers the whole window, so that no other invoice has a part of it."""
    return invoiced.period.holds(window.start) and window.end <= invoiced.period.end
