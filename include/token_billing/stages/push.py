"""push: frozen reports go to Stripe. Note the attempt (commit) → send → record the outcome (commit); no transaction is open
while anything is on the network."""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from aiolimiter import AsyncLimiter

from token_billing.adapters import holds, ledger, sending
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.keeper import Keeper
from token_billing.adapters.stripe_gateway import StripeGateway, StripeTarget, stripe_gateway
from token_billing.errors import ReportsLeftOver
from token_billing.model import (
    Clock,
    PushedShard,
    ReportState,
    Shard,
)
from token_billing.settings import Gates, PushSettings
from token_billing.stages.delivery import Delivery
from token_billing.stages.final_periods import final_periods
from token_billing.stages.kept_mark import keep_mark
from token_billing.stages.quarantined import tell_of_quarantined
from token_billing.stages.read_back import read_back
from token_billing.stages.sender import Sender
from token_billing.stages.split import split_at_boundaries
from token_billing.windows import Window

log = logging.getLogger(__name__)

#: Reports in these states still want an answer.
OPEN = (ReportState.FROZEN, ReportState.SENDING, ReportState.UNRESOLVED)


def push(
    connect: Connect, target: StripeTarget, window: Window, shard: Shard, clock: Clock, settings: PushSettings, keeper: Keeper
) -> PushedShard:
    """Sends the shard's open reports, many customers at once and one call at a time per customer and meter.

    Whatever happens, an accepted report stays accepted and nothing is sent that Stripe might count twice. Raises, after all that
    could be done is recorded: SendingPaused, StripeRefusesKey, StripeUnavailable, WrongStripeAccount, and ReportsLeftOver where
    reports were refused or still have no answer."""
    return asyncio.run(_push(connect, target, window, shard, clock, settings, keeper))


async def _push(
    connect: Connect, target: StripeTarget, window: Window, shard: Shard, clock: Clock, settings: PushSettings, keeper: Keeper
) -> PushedShard:
    began = clock()
    with session(connect) as db:
        identity = ledger.identity(db)
        split_at_boundaries(db, identity, window, clock)
        last_report = sending.last_report(db, window)
        sending.accept_zero_totals(db, window, clock())
        if settings.gates != Gates() and (held := holds.hold_unusual(db, window, shard, settings.gates, clock())):
            log.warning("window %s: %d reports look wrong and are held until somebody decides", window, held)
        if any(state in OPEN for state in sending.shard_states(db, window, shard, last_report)):
            async with stripe_gateway(target) as stripe:
                ledger.pin_account(db, identity.account, await stripe.account(), clock())
                if in_the_way := sending.items_in_the_way(db, window, shard, clock()):
                    await _look_up_items(db, stripe, [item for item in in_the_way if item is not None], clock, settings)
                    sending.quarantine_unlinked(db, window, shard, clock())
                await read_back(db, stripe, identity, window, shard, clock, settings)
                sender = Sender(
                    db,
                    Delivery(stripe, clock, settings, target.timeout_s),
                    window,
                    shard,
                    clock,
                    settings,
                    last_report=last_report,
                    keep_mark=partial(keep_mark, db, keeper),
                    may_have_forgotten=identity.may_have_forgotten(window),
                    final_periods=await final_periods(db, stripe, window, shard, clock, settings),
                )
                await sender.send_all()
                if identity.may_have_forgotten(window):  # what was just found doubtful is looked for at once
                    await read_back(db, stripe, identity, window, shard, clock, settings)
        states = sending.shard_states(db, window, shard, last_report)
        if ReportState.QUARANTINED in states:
            tell_of_quarantined(db, window, shard, since=began)
        return _conclude(window, shard, states)


async def _look_up_items(db: Connection, stripe: StripeGateway, unknown: Sequence[str], clock: Clock, settings: PushSettings) -> None:
    """Asks Stripe, once for each subscription item and billing period, about its meter, price and period."""
    reads = AsyncLimiter(settings.reads_per_second, 1)
    for n in range(0, len(unknown), settings.concurrency):
        found = []
        for item in unknown[n : n + settings.concurrency]:
            await reads.acquire()
            found.append(asyncio.ensure_future(stripe.metered_item(item)))
        items = await asyncio.gather(*found)
        with db.transaction():  # one wait for the disk, not two an item
            sending.set_metered_items(db, items, clock())


def _conclude(window: Window, shard: Shard, states: dict[ReportState, tuple[int, str | None]]) -> PushedShard:
    counts = {state: count for state, (count, _) in states.items()}
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    log.info("window %s shard %d/%d: %s", window, shard.number + 1, shard.count, told)
    left = [state for state in (*OPEN, ReportState.REJECTED) if state in states]
    if left:
        examples = "; ".join(f"{states[state][0]} reports {state} ({states[state][1] or 'no answer recorded'})" for state in left)
        raise ReportsLeftOver(
            f"window {window}: {examples}. What Stripe accepted stays accepted. The task's retries, or clearing it, send the open "
            'ones again; a rejected one waits for a person (runbook, "Rejected reports").'
        )
    return PushedShard(window, shard, counts)
