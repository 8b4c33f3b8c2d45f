"""apply_proposals: what people decided is carried out at Stripe, once. Note the attempt (commit) → call → record (commit); no transaction
is open while anything is on the network."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from token_billing import metering
from token_billing.adapters import ledger, proposals
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.adapters.stripe_gateway.connection import open_gateway
from token_billing.adapters.stripe_gateway.corrections import CorrectionGateway
from token_billing.errors import (
    BillingError,
    NotRevocable,
    ProposalRefused,
    ReportsDisagree,
    SendingPaused,
    StripeRefusesKey,
    StripeUnavailable,
)
from token_billing.model import Accepted, Answer, Clock, Disowned, LedgerIdentity, Rejected, RevocationCause, Undelivered, Unresolved
from token_billing.proposals import Decision, Proposal, credit_note, forgotten, idempotency_key, invoice_item, recognised
from token_billing.settings import PushSettings
from token_billing.stages.decide_proposals import finish
from token_billing.stages.revoke import revoke
from token_billing.windows import MINUTE

log = logging.getLogger(__name__)


def apply_proposals(connect: Connect, target: StripeTarget, clock: Clock, settings: PushSettings, only: int | None = None) -> int:
    """Carries out every decision that is not done and that Stripe has not refused, or that about one proposal; returns how many are done
    now. Safe to run twice at once, and after being killed anywhere. Without anything to do, Stripe is not called.

    Raises, after all that could be done is recorded, SendingPaused, StripeRefusesKey, StripeUnavailable, WrongStripeAccount, and
    ProposalRefused where Stripe refuses what was decided or nothing can come of it: a person decides again."""
    with session(connect) as db:
        identity = ledger.identity(db)
        decided = [one for one in proposals.proposals(db, "to_apply") if only in (None, one.id)]
        if decided and (pause := ledger.current_pause(db)):
            raise SendingPaused(f"sending is paused {pause}; what was decided is carried out after `python -m billing_airflow resume`")
        if not decided:
            return 0
    return asyncio.run(_apply_all(connect, target, identity, [one.id for one in decided], clock, settings))


async def _apply_all(
    connect: Connect, target: StripeTarget, identity: LedgerIdentity, numbers: list[int], clock: Clock, settings: PushSettings
) -> int:
    done, troubles = 0, list[BillingError]()
    with session(connect) as db:
        async with open_gateway(CorrectionGateway, target) as stripe:
            ledger.pin_account(db, identity.account, await stripe.account(), clock())
            for number in numbers:
                with proposals.alone_at(db, number, settings.lease) as is_mine:
                    try:
                        if not is_mine:
                            raise StripeUnavailable(f"proposal {number} is being carried out by another run; look again in a minute")
                        done += await _apply(connect, db, stripe, identity, number, clock)
                    except BillingError as trouble:
                        troubles.append(trouble)
    for kind in (StripeRefusesKey, StripeUnavailable, ProposalRefused):
        if mine := [str(trouble) for trouble in troubles if isinstance(trouble, kind)]:
            raise kind("; ".join(mine))
    if troubles:
        raise troubles[0]
    return done


async def _apply(connect: Connect, db: Connection, stripe: CorrectionGateway, identity: LedgerIdentity, number: int, clock: Clock) -> bool:
    """Carries one decision out, for the holder of its lease; whether it is done now."""
    found = proposals.lock_proposal(db, number)
    if found is None or (proposal := found[0]).applied_at is not None or proposal.refused_at is not None:
        return False
    if proposal.decision == Decision.RESEND:
        return await _resend(connect, db, stripe, proposal, clock)
    if not proposal.decision or proposal.decision == Decision.DECLINED:
        return False
    what, doubt = proposal.what, proposal.may_have_arrived
    of = what.customer_id if proposal.decision == Decision.INVOICE_ITEM else what.invoice_id
    # safeguard: what may have been made is looked for
    if doubt or (identity.recovered_at is not None and proposal.not_made_at is None):
        try:
            made = await stripe.made(proposal.decision, of or "", identity.ledger_id)
        except ProposalRefused as cannot_look:
            proposals.note_answer(db, proposal, str(cannot_look), clock(), may_have_arrived=doubt, refused=not doubt)
            raise ProposalRefused(f"proposal {number} is not carried out: {cannot_look}") from cannot_look
        if stripe_id := recognised(proposal, made):
            return _done(db, proposal, stripe_id, clock)
        if other := forgotten(proposal, made) if identity.recovered_at else None:
            refusal = f"{other} at Stripe is about the same, and this restored database has forgotten it"
            raise _refused(db, proposal, refusal, clock)
        doubt = doubt and proposal.attempted_at is not None and clock() < proposal.attempted_at + metering.ABSENCE
    wanted = proposal.request or await _request(stripe, proposal, identity)
    request = proposals.note_attempt(db, proposal, wanted, clock())
    if request is None:
        return False  # somebody has decided otherwise
    noted = proposals.lock_proposal(db, number)
    assert noted is not None
    answer = await stripe.make(proposal.decision, request, idempotency_key(proposal, identity.ledger_id))
    outcome = metering.classify(answer, may_have_arrived=doubt)
    match outcome:
        case Accepted():
            return _done(db, proposal, answer.object_id if isinstance(answer, Answer) else None, clock)
        case Rejected(message):
            proposals.note_answer(db, noted[0], message, clock(), may_have_arrived=False, refused=True, new_key=True)
            raise ProposalRefused(
                f"Stripe refuses proposal {number} as {proposal.decision}: {message} Nothing was made. Mend what it complains of and "
                f"decide so again, or decide otherwise: `python -m billing_airflow decide-proposal {number}`"
            )
        case Undelivered(message, status):
            proposals.note_answer(db, noted[0], message, clock(), may_have_arrived=doubt, in_doubt_since=proposal.attempted_at)
            if status in metering.KEY_REFUSED:
                raise StripeRefusesKey(
                    "the secret key of connection `stripe_default` may not make invoice items or credit notes; give it write access to "
                    f"both and run this again. Stripe said: {message}"
                )
        case Unresolved(message, _, may_have_arrived, _, new_key):
            # What this attempt came to may be known; what the one before did is not, and its day goes on.
            alone = metering.classify(answer, may_have_arrived=False)
            since = None if isinstance(alone, Unresolved) and alone.may_have_arrived else proposal.attempted_at
            # safeguard: what was made without an answer stays in doubt
            proposals.note_answer(db, noted[0], message, clock(), may_have_arrived=may_have_arrived, new_key=new_key, in_doubt_since=since)
    raise StripeUnavailable(f"Stripe gave no usable answer about proposal {number}, the next run looks what became of it: {message}")


async def _request(stripe: CorrectionGateway, proposal: Proposal, identity: LedgerIdentity) -> Mapping[str, Any]:
    """What to ask Stripe for, as things stand there now."""
    what = proposal.what
    if proposal.decision == Decision.CREDIT_NOTE:
        return credit_note(proposal, identity.ledger_id, is_paid=await stripe.is_paid(what.invoice_id or ""))
    lives = what.subscription_id is not None and await stripe.takes_items(what.subscription_id)
    return invoice_item(proposal, identity.ledger_id, what.subscription_id if lives else None)


def _done(db: Connection, proposal: Proposal, stripe_id: str | None, clock: Clock) -> bool:
    with db.transaction():
        finish(db, proposal, stripe_id, proposal.decided_by or "", clock())
    log.info("proposal %d (%s) is done: %s", proposal.id, proposal.what.worth, stripe_id or "nothing had to be made")
    return True


async def _resend(connect: Connect, db: Connection, stripe: CorrectionGateway, proposal: Proposal, clock: Clock) -> bool:
    """Takes the report back, so that the next push sends it under a new identifier, if its minute lacks it still."""
    (report_id,), identifier = proposal.what.report_ids, proposal.what.subject
    if proposals.was_revoked(db, identifier):  # by a run that was killed before it could say so
        return _done(db, proposal, None, clock)
    report = proposals.absent_report(db, report_id, clock())
    refusal = None
    if report is None or report.identifier != identifier:
        refusal = f"report {report_id} has gone on, or Stripe's meter shows it by now"
    # safeguard: nothing is sent anew into a final period
    elif report.invoice_id is not None:
        refusal = f"invoice {report.invoice_id} of the report's period is final by now; `proposals` shows how it can be billed"
    else:
        counted = await stripe.summed_usage(report.customer_id, report.meter_id, report.minute, report.minute + MINUTE)
        # safeguard: absence is looked at right before a resend
        if report.others_in_doubt or counted != report.other_tokens:
            refusal = f"the report's minute should hold {report.other_tokens} tokens without it, and holds {counted}"
    if refusal is None:
        evidence = f"proposal {proposal.id}: {proposal.what.evidence}; its minute lacks it"
        try:
            revoke(
                connect,
                Disowned(report_id, RevocationCause.SETTLED_SUMMARY, evidence, identifier),
                clock,
                revoked_by=proposal.decided_by or "",
            )
            return _done(db, proposal, None, clock)
        except (ReportsDisagree, NotRevocable) as why_not:
            refusal = str(why_not)
    raise _refused(db, proposal, refusal, clock)


def _refused(db: Connection, proposal: Proposal, why: str, clock: Clock) -> ProposalRefused:
    """Nothing can come of the decision for a reason of our own: a person decides again."""
    proposals.note_answer(db, proposal, why, clock(), may_have_arrived=False, refused=True)
    return ProposalRefused(f"proposal {proposal.id} is not carried out: {why}. Nothing was changed; decline it, or try again later")
