"""decide_proposals: what a person decides about a proposal is written down, and what needs no call is done at once."""

import logging
from datetime import datetime
from typing import Any

from token_billing.adapters import audit, discrepancies, ledger, proposals, releases
from token_billing.adapters.database import Connect, Connection, session
from token_billing.errors import ProposalRefused
from token_billing.model import Clock, LedgerIdentity
from token_billing.proposals import OBJECT_PREFIXES, Decision, Kind, Proposal
from token_billing.stages.propose import bring_up_to_date
from token_billing.stages.release import let_go
from token_billing.windows import MINUTE

log = logging.getLogger(__name__)


def decide(connect: Connect, proposal_id: int, decision: Decision, by: str, clock: Clock) -> Proposal:
    """Writes the decision down in one transaction, with what it does to our own books: a release or a write-off is done by it, everything
    else is then `apply_proposals`'. Reports that it bills otherwise or writes off stay quarantined, and nobody can release them.

    Of several that decide at once, one does; told again by the same person, nothing changes. A decision stands, but where Stripe refused
    what was decided, it may be repeated, or another may take its place. Raises ProposalRefused, with nothing changed,
    and ReleaseRefused."""
    if not by.strip():
        raise ProposalRefused("say who decides: it is kept")
    with session(connect) as db:
        identity = ledger.identity(db)
        with db.transaction():
            now = clock()
            bring_up_to_date(db, identity, now)
            proposal = _decidable(db, proposal_id, decision, by)
            if proposal.decision == decision and proposal.refused_at is None:
                return proposal  # told again, by a task that is tried again for instance
            proposals.decide(db, proposal_id, decision, by, now)
            before = {"decision": proposal.decision, "decided_by": proposal.decided_by, "message": proposal.message}
            after: dict[str, Any] = {"decision": decision, "kind": proposal.what.kind, "report_ids": list(proposal.what.report_ids)}
            after |= {"token_count": proposal.what.token_count, "amount_cents": proposal.what.amount_cents}
            audit.write_down(db, "decide", f"proposal {proposal_id}", by, now, before=before, after=after)
            _carry_into_our_books(db, identity, proposal, decision, by, now)
            decided = proposals.lock_proposal(db, proposal_id)
    assert decided is not None
    log.info("proposal %d (%s) is %s", proposal_id, proposal.what.worth, decided[0].standing)
    return decided[0]


def resolve(connect: Connect, proposal_id: int, made_as: str | None, by: str, reason: str, clock: Clock) -> Proposal:
    """Writes down what a person found at Stripe of a proposal whose attempt was never answered, where Stripe does not list what it made: it
    is done as the object `made_as`, or nothing was made, and the next attempt, under the same idempotency key, makes it. Raises
    ProposalRefused, with nothing changed, where nothing is in doubt, for an object of another kind, and while a run is at it."""
    if not by.strip() or not reason.strip():
        raise ProposalRefused("say who looked, and what was seen: both are kept")
    with session(connect) as db:
        ledger.identity(db)
        with proposals.alone_at(db, proposal_id, MINUTE) as is_mine, db.transaction():
            found = proposals.lock_proposal(db, proposal_id)
            # safeguard: only what is in doubt is resolved by hand
            if found is None or not found[0].is_in_doubt:
                raise ProposalRefused(f"nothing is in doubt about proposal {proposal_id}; `proposals --all` tells how far each is")
            proposal, now = found[0], clock()
            if not is_mine:
                raise ProposalRefused(f"proposal {proposal_id} is being carried out by a run at this moment; look again in a minute")
            if made_as is not None and not made_as.startswith(prefix := OBJECT_PREFIXES[proposal.decision or ""]):
                raise ProposalRefused(f"{made_as} is no {proposal.decision}: the id of one begins with {prefix}")
            told = {"made_as": made_as, "reason": reason}
            audit.write_down(db, "resolve", f"proposal {proposal_id}", by, now, before={"may_have_arrived": True}, after=told)
            if made_as is not None:
                finish(db, proposal, made_as, by, now)
            else:
                proposals.note_not_made(db, proposal, f"{by} has looked at Stripe: nothing was made", now)
            resolved = proposals.lock_proposal(db, proposal_id)
    assert resolved is not None
    log.info("proposal %d was resolved by %s: %s", proposal_id, by, made_as or "nothing was made")
    return resolved[0]


def finish(db: Connection, proposal: Proposal, stripe_id: str | None, by: str, now: datetime) -> bool:
    """Notes that a decided proposal is done, what it was about is settled, and who decided it; False where that is noted already. To be
    called in a transaction."""
    if not proposals.note_applied(db, proposal.id, stripe_id, now):
        return False
    # A resend settles nothing: the next comparison says whether Stripe counts the report now.
    if proposal.what.discrepancy_id is not None and proposal.what.kind != Kind.RESEND:
        discrepancies.settle(db, proposal.what.discrepancy_id, by, now)
        discrepancies.settle_missing_hour(db, proposal.what.discrepancy_id, proposal.what.usage_item_id, by, now)
    audit.write_down(
        db, "apply", f"proposal {proposal.id}", by, now, before={"applied_at": None}, after={"applied_at": now, "stripe_id": stripe_id}
    )
    return True


def _decidable(db: Connection, proposal_id: int, decision: Decision, by: str) -> Proposal:
    found = proposals.lock_proposal(db, proposal_id)
    if found is None:
        raise ProposalRefused(f"there is no proposal {proposal_id}; `python -m billing_airflow proposals` lists those that wait")
    proposal, withdrawn_at = found
    if withdrawn_at is not None:
        raise ProposalRefused(
            f"proposal {proposal_id} is withdrawn: its cause went away or its figures changed. Nothing was done; "
            "`python -m billing_airflow proposals` lists what is proposed now"
        )
    # safeguard: a decision about a proposal stands
    told_again = (proposal.decision, proposal.decided_by) == (decision, by)
    if not proposal.is_open and not told_again and not proposal.may_be_reconsidered:
        raise ProposalRefused(f"proposal {proposal_id} is {proposal.standing} already, and a decision stands")
    if decision not in proposal.what.choices:
        raise ProposalRefused(f"proposal {proposal_id} cannot be decided as {decision}; it takes {', '.join(proposal.what.choices)}")
    return proposal


def _carry_into_our_books(db: Connection, identity: LedgerIdentity, proposal: Proposal, decision: Decision, by: str, now: datetime) -> None:
    what = proposal.what
    if decision == Decision.DECLINED:
        releases.unsettle(db, proposal.id)
    if decision == Decision.RELEASE:
        let_go(db, identity, what.report_ids, by, f"proposal {proposal.id}: {what.evidence}", now)
    if decision in (Decision.INVOICE_ITEM, Decision.WRITE_OFF) and what.report_ids:
        told = f"proposal {proposal.id}: {decision}"
        # safeguard: all or none of a proposal's reports are settled
        if releases.settle(db, what.report_ids, proposal.id, by, told, now) != len(what.report_ids):
            raise ProposalRefused(f"some reports of proposal {proposal.id} are not quarantined any more, or settled otherwise")
    nothing_to_bill = decision in OBJECT_PREFIXES and what.amount_cents == 0
    if decision in (Decision.RELEASE, Decision.WRITE_OFF) or nothing_to_bill:
        finish(db, proposal, None, by, now)
