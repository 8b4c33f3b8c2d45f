"""cancel_surplus: events that Stripe counts beside the ones that count are found and cancelled, within the 24 hours Stripe allows.

A worker may be stopped right before it writes, for days; meanwhile its report is proven absent and sent under a new identifier; then
the worker goes on, and Stripe has both. It tells so itself (a late answer), or, where it died, the summary of the report's minute does.
Note the cancellation (commit) → cancel → record (commit); no transaction is open while anything is on the network."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from aiolimiter import AsyncLimiter

from token_billing import metering
from token_billing.adapters import ledger, surplus
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.stripe_gateway import StripeGateway, StripeTarget, stripe_gateway
from token_billing.errors import StripeRefusesKey, StripeUnavailable, SurplusAtStripe
from token_billing.model import Clock
from token_billing.settings import PushSettings
from token_billing.surplus import Cancellation, Cancelled, StillSurplus, Surplus
from token_billing.windows import MINUTE

log = logging.getLogger(__name__)

#: Minutes that one run reads: half a minute's worth at the default rate. Reports sent anew are few; after a large outage, runs take turns.
MOST_LOOKS = 600

#: Cancellations without a usable answer that one run waits for; the next ones begin with those that were tried least.
MOST_TROUBLES = 5


def cancel_surplus(connect: Connect, target: StripeTarget, clock: Clock, settings: PushSettings, most_looks: int = MOST_LOOKS) -> int:
    """Cancels every surplus that is known or that the minutes due to be read show; returns how many were cancelled.

    Safe to run twice at once, and beside any push. Without anything to look at, Stripe is not called. Raises, after everything else is
    done and recorded: StripeRefusesKey or StripeUnavailable where something is left for the next run, and SurplusAtStripe, naming
    tenants and tokens, for what Stripe will not cancel and nobody has settled, and for what a minute holds beyond all that is ours."""
    return asyncio.run(_cancel_surplus(connect, target, clock, settings, most_looks))


async def _cancel_surplus(connect: Connect, target: StripeTarget, clock: Clock, settings: PushSettings, most_looks: int) -> int:
    with session(connect) as db:
        identity = ledger.identity(db)
        ended, unexplained = dict[Surplus, Cancellation](), Counter[str]()
        known = surplus.surplus_to_cancel(db)
        if known or surplus.given_up_reports(db, clock(), most=1):
            async with stripe_gateway(target) as stripe:
                ledger.pin_account(db, identity.account, await stripe.account(), clock())
                calls = AsyncLimiter(settings.reads_per_second, 1)
                ended = await _cancel(db, stripe, known, calls, clock)  # before anything else: its hours are counted
                unexplained = await _look(db, stripe, calls, clock, most_looks)
                asked = {one.id for one in known}
                ended |= await _cancel(db, stripe, [one for one in surplus.surplus_to_cancel(db) if one.id not in asked], calls, clock)
        return _conclude(ended, surplus.given_up_tokens(db), unexplained)


async def _cancel(
    db: Connection, stripe: StripeGateway, known: Sequence[Surplus], calls: AsyncLimiter, clock: Clock
) -> dict[Surplus, Cancellation]:
    """Asks Stripe once to cancel each of them, until too many got no usable answer; returns how each that was asked for ended."""
    ended = dict[Surplus, Cancellation]()
    for one in known:
        if sum(isinstance(cancellation, StillSurplus) for cancellation in ended.values()) == MOST_TROUBLES:
            break
        await calls.acquire()
        surplus.note_cancellation(db, one, clock())
        answer = await stripe.cancel_usage(one.event_name, one.identifier, metering.cancellation_key(one.identifier, one.key_number))
        ended[one] = metering.classify_cancellation(answer)
        surplus.record_cancellation(db, one, ended[one], clock())
    return ended


async def _look(db: Connection, stripe: StripeGateway, calls: AsyncLimiter, clock: Clock, most: int) -> Counter[str]:
    """Reads the minutes that are due and notes what Stripe has too much; returns, by tenant, unexplained tokens that are news."""
    unexplained = Counter[str]()
    for report in surplus.given_up_reports(db, clock(), most):
        await calls.acquire()
        counted = await stripe.summed_usage(report.customer_id, report.meter_id, report.minute, report.minute + MINUTE)
        surplus_count, unexplained_tokens = (0, report.unexplained_tokens) if counted is None else metering.surplus_in(report, counted)
        with db.transaction():
            surplus.note_look(db, report, surplus_count, unexplained_tokens, clock())
        if unexplained_tokens not in (0, report.unexplained_tokens):
            unexplained[report.tenant_id] += unexplained_tokens
    return unexplained


def _conclude(ended: dict[Surplus, Cancellation], given_up: dict[str, int], unexplained: dict[str, int]) -> int:
    for one, cancellation in ended.items():
        told = "cancelled" if isinstance(cancellation, Cancelled) else cancellation.message
        log.warning("tenant %r: Stripe had %d tokens twice, by event %s too: %s", one.tenant_id, one.token_count, one.identifier, told)
    left = [cancellation for cancellation in ended.values() if isinstance(cancellation, StillSurplus)]
    troubles = [f"{tokens} tokens of tenant {tenant!r} too much, which it does not cancel" for tenant, tokens in given_up.items()]
    troubles += [f"{tokens} tokens of tenant {tenant!r} that no event of this ledger explains" for tenant, tokens in unexplained.items()]
    to_settle = f'Stripe counts {"; ".join(troubles)}. Settle them as the runbook says under "Surplus at Stripe".' if troubles else ""
    if refused := [trouble for trouble in left if trouble.http_status in metering.KEY_REFUSED]:
        raise StripeRefusesKey(
            f"the secret key of connection `stripe_default` may not cancel {len(refused)} events that Stripe counts too much; give it "
            "write access to meter event adjustments and clear the task: Stripe cancels events for 24 hours only. "
            f"Stripe said: {refused[0].message} {to_settle}"
        )
    if left:
        raise StripeUnavailable(
            f"Stripe (connection `stripe_default`) gave no usable answer to the cancellation of {len(left)} events that it counts too "
            f"much, for instance: {left[0].message}. The task's retries and the next runs ask again. {to_settle}"
        )
    if to_settle:
        raise SurplusAtStripe(to_settle)
    return len(ended)
