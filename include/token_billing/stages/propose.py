"""propose: what could be done about late usage, overbilled invoices, absent reports and mended quarantines is put to people."""

import logging
from collections.abc import Collection
from datetime import datetime, timedelta

from token_billing.adapters import ledger, proposals
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.proposals import Which
from token_billing.model import Clock, LedgerIdentity
from token_billing.proposals import Candidate, Decision, Proposal

log = logging.getLogger(__name__)

#: An unanswered question is asked again after so long.
ASK_AGAIN_AFTER = timedelta(hours=24)


def propose(connect: Connect, clock: Clock, which: Which = "open") -> list[Proposal]:
    """Brings the proposals up to what the books say now; returns those that were asked for, which wait for a decision if nothing is said.
    Stripe is not asked. Safe to run twice at once."""
    with session(connect) as db:
        identity = ledger.identity(db)
        with db.transaction():
            bring_up_to_date(db, identity, clock())
        return proposals.proposals(db, which)


def take_questions(connect: Connect, clock: Clock) -> list[Proposal]:
    """The open proposals, as the books say now, that nobody is being asked about; from now on somebody is. Several runs at once never take
    the same one."""
    waiting = propose(connect, clock)
    with session(connect) as db:
        now = clock()
        taken = proposals.take_questions(db, now - ASK_AGAIN_AFTER, now)
    return [one for one in waiting if one.id in taken]


def bring_up_to_date(db: Connection, identity: LedgerIdentity, now: datetime) -> None:
    """Withdraws what has no cause any more, or other figures, and proposes what is new; what people declined comes back with other figures
    only, and nothing is proposed beside a decision that is being carried out. To be called in a transaction, which then is the only one
    that proposes or decides."""
    proposals.take_turn(db)
    found = {one.identity: one for one in proposals.candidates(db, identity, now)}
    waiting = proposals.proposals(db, "open")
    gone = [one for one in waiting if one.what.identity not in found]
    proposals.withdraw(db, [one.id for one in gone], now)
    known = {one.what.identity for one in waiting}
    standing = proposals.proposals(db, "standing")
    for candidate in found.values():
        if candidate.identity not in known and not _is_decided(candidate, standing):
            proposals.add(db, candidate, now)
            log.info("proposed: %s (%s): %s", candidate.kind, candidate.worth, candidate.evidence)
    for one in gone:
        log.info("proposal %d is withdrawn: its cause is gone, or its figures changed", one.id)


def _is_decided(candidate: Candidate, standing: Collection[Proposal]) -> bool:
    about_it = [one for one in standing if (one.what.kind, one.what.subject) == (candidate.kind, candidate.subject)]
    return any(one.decision != Decision.DECLINED or one.what.identity == candidate.identity for one in about_it)
