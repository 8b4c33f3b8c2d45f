"""close_billing_periods: a draft is held until all usage of its periods is on it, then let go; somebody is told of each that is finalised
without. What is to be told and done is noted (commit) → the draft's time is set at Stripe → that is recorded (commit)."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from aiolimiter import AsyncLimiter

from token_billing.adapters import closings, discrepancies, ledger
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.adapters.stripe_gateway.connection import open_gateway
from token_billing.adapters.stripe_gateway.drafts import DraftGateway
from token_billing.closing import GRACE_SCOPE, Looked, incomplete, is_final_soon, next_step, short_grace
from token_billing.errors import BillingError, InvoicesNotListed, PeriodsIncomplete, StripeRefusesKey, StripeUnavailable
from token_billing.model import Clock
from token_billing.settings import PushSettings, ReconcileSettings
from token_billing.stages.look_at_drafts import look_at_drafts

log = logging.getLogger(__name__)

#: What was begun to be told is told again by the next run, and once more a day later as long as nobody deals with it.
A_MOMENT, TOLD_AGAIN = timedelta(minutes=15), timedelta(days=1)


@dataclass(frozen=True)
class ClosedPeriods:
    """How many invoices are drafts still, and how many were held now, let go now, and are told of as incomplete."""

    draft_count: int
    held_count: int
    released_count: int
    incomplete_count: int


def hold_and_release(
    connect: Connect, target: StripeTarget, clock: Clock, pace: PushSettings, settings: ReconcileSettings
) -> ClosedPeriods:
    """Looks at every draft of ours and at what became of those of before; holds what is incomplete, lets go what is complete or has waited
    for as long as it may. Safe to run twice at once.

    Raises StripeUnavailable, StripeRefusesKey, WrongStripeAccount, and InvoicesNotListed where Stripe's invoices cannot be read or
    understood; what somebody has to be told, and what can be done about all others, is noted and done by then."""
    return asyncio.run(_hold_and_release(connect, target, clock, pace, settings))


def check_closings(connect: Connect, clock: Clock) -> None:
    """Raises PeriodsIncomplete where an invoice is, or is about to be, finalised without all usage of its periods: at once, and then once a
    day until somebody has settled that."""
    with session(connect) as db:
        ledger.identity(db)
        news = closings.take_news(db, clock(), A_MOMENT, TOLD_AGAIN)
    if news:
        raise PeriodsIncomplete(
            f"{len(news)} invoices lack usage of their periods. {' '.join(news[:10])} `python -m billing_airflow discrepancies` lists all "
            'of them; the runbook says what to do, under "Closing billing periods".'
        )


async def _hold_and_release(
    connect: Connect, target: StripeTarget, clock: Clock, pace: PushSettings, settings: ReconcileSettings
) -> ClosedPeriods:
    with session(connect) as db:
        identity = ledger.identity(db)
        async with open_gateway(DraftGateway, target) as stripe:
            account = await stripe.account()
            ledger.pin_account(db, identity.account, account, clock())
            looked = await look_at_drafts(db, stripe, pace, clock)
            now = clock()
            steps = [(one, next_step(one, settings.longest_hold, now)) for one in looked]
            with db.transaction():
                # safeguard: told before it is let go
                _note_incomplete(db, {one: step.is_told for one, step in steps}, now)
                _note_grace(db, account.id or "account", now)
                for one, step in steps:
                    closings.note_step(db, one.closing.invoice_id, step, one.missing, one.final_at)
            trouble = await _carry_out(db, stripe, [(one, step.move_to) for one, step in steps if step.move_to], pace, clock)
    done = ClosedPeriods(
        sum(one.final_at is None for one in looked),
        sum(step.move_to is not None and step.released_as is None for _, step in steps),
        sum(step.released_as is not None for _, step in steps),
        sum(step.is_told for _, step in steps),
    )
    log.info("%s", done)
    if trouble := trouble or _unreadable(stripe):
        raise trouble
    return done


def _unreadable(stripe: DraftGateway) -> InvoicesNotListed | None:
    if not stripe.unreadable:
        return None
    return InvoicesNotListed(
        f"{'; '.join(dict.fromkeys(stripe.unreadable[:10]))}. Such drafts are not held until all usage of their periods is on them, and "
        "nobody is told what they lack; all others were looked at. See that connection `stripe_default` leads to an account with Billing, "
        "and look at those invoices there."
    )


async def _carry_out(
    db: Connection, stripe: DraftGateway, moves: Sequence[tuple[Looked, datetime]], pace: PushSettings, clock: Clock
) -> BillingError | None:
    """Sets drafts' times at Stripe; where one that is finalised soon cannot be held, that is told. Returns what was in the way."""
    writes = AsyncLimiter(pace.reads_per_second, 1)  # Stripe's limit for one endpoint, as for reads
    trouble: BillingError | None = None

    async def move(one: Looked, time: datetime) -> datetime | BillingError | None:
        await writes.acquire()
        try:
            return await stripe.finalise_at(one.closing.invoice_id, time)
        except (StripeUnavailable, StripeRefusesKey) as refusal:
            return refusal

    for n in range(0, len(moves), pace.concurrency):
        some = moves[n : n + pace.concurrency]
        answers = await asyncio.gather(*(move(*one) for one in some))
        with db.transaction():
            for (one, _), answer in zip(some, answers, strict=True):
                if isinstance(answer, datetime):
                    closings.note_moved(db, one.closing.invoice_id, answer, clock())
                # safeguard: told where it cannot be held
                elif one.missing and one.invoice and is_final_soon(one.invoice, clock()):
                    _note_incomplete(db, {one: True}, clock())
        trouble = trouble or next((answer for answer in answers if isinstance(answer, BillingError)), None)
    return trouble


def _note_incomplete(db: Connection, is_told: Mapping[Looked, bool], now: datetime) -> None:
    """What is told of these invoices from now on, and no more of those that lack nothing any more."""
    found = [incomplete(one) for one, told in is_told.items() if told]
    for difference in found:
        log.warning("%s", difference.details)
    discrepancies.note_differences(db, [one.closing.scope for one in is_told], found, now)


def _note_grace(db: Connection, account_id: str, now: datetime) -> None:
    """The warning fails no run."""
    warning = short_grace(closings.newest_draft(db), account_id)
    discrepancies.note_differences(db, [GRACE_SCOPE], [warning] if warning else [], now)
