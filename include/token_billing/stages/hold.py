"""hold: reports whose totals look wrong wait for a person. Push holds them; a decision sends them, or puts them in quarantine."""

import logging
from datetime import timedelta

from token_billing.adapters import holds, ledger
from token_billing.adapters.database import Connect, session
from token_billing.errors import DecisionRefused
from token_billing.model import Clock, HeldReport

log = logging.getLogger(__name__)

#: An unanswered question is asked again after so long.
ASK_AGAIN_AFTER = timedelta(hours=24)


def held_reports(connect: Connect) -> list[HeldReport]:
    """Every report that waits for a decision, oldest window first."""
    with session(connect) as db:
        ledger.identity(db)
        return holds.held_reports(db)


def take_questions(connect: Connect, clock: Clock) -> list[HeldReport]:
    """The held reports that nobody is being asked about; from now on somebody is. Several runs at once never take the same one."""
    with session(connect) as db:
        ledger.identity(db)
        now = clock()
        return holds.take_questions(db, now - ASK_AGAIN_AFTER, now)


def decide(connect: Connect, report_id: int, *, approve: bool, by: str, clock: Clock) -> None:
    """An approved report is sent by the next push of its window, a refused one is quarantined; who decided is kept. Raises
    DecisionRefused where the report is not held, or is decided, and for a refusal where a restored database may have forgotten that it
    was approved and sent."""
    decision = "approved" if approve else "refused"
    with session(connect) as db:
        identity = ledger.identity(db)
        # safeguard: no refusal of what may have been sent
        if not approve and any(held.report_id == report_id and identity.may_have_forgotten(held.window) for held in holds.held_reports(db)):
            raise DecisionRefused(
                f"this database was restored and may have forgotten that report {report_id} was approved and sent, so it is not refused; "
                "approve it to have its hour read back at Stripe first, or leave it held"
            )
        if not holds.decide(db, report_id, decision, by, clock()):
            made = holds.decision(db, report_id)
            raise DecisionRefused(
                f"report {report_id} was {made} already, and a decision stands"
                if made
                else f"report {report_id} is not held; `python -m billing_airflow held` lists those that are"
            )
    log.info("report %d is %s by %s", report_id, decision, by)
