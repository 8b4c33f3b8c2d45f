"""People of the months: they see to what Stripe disowned, and decide about what is proposed to them."""

from collections import Counter
from random import Random

from months.settings import SETTINGS
from token_billing.adapters.database import Connect
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.errors import ReleaseRefused
from token_billing.model import Clock
from token_billing.proposals import Decision
from token_billing.stages.apply_proposals import apply_proposals
from token_billing.stages.decide_proposals import decide
from token_billing.stages.propose import propose
from token_billing.stages.release import acknowledge, release

WHO = "a person"

#: Reports that Stripe did not count after all, as its error reports said, and that nobody has seen to.
DISOWNED = """
SELECT id FROM billing.usage_report
WHERE state = 'quarantined' AND quarantine_reason = 'disowned'
  AND NOT EXISTS (SELECT FROM billing.acknowledgement WHERE report_id = usage_report.id)
"""


class People:
    """What they do they do through the product's own commands. `decides`: about proposals, too; where errors are planted, they let them
    stand."""

    def __init__(self, rng: Random, figures: Counter[str], *, decides: bool) -> None:
        self._rng, self._figures, self._decides = rng, figures, decides

    def act(self, connect: Connect, target: StripeTarget, clock: Clock) -> None:
        """Releases what was disowned, its cause being gone, and decides about every proposal, one way or another."""
        with connect() as db:
            disowned = [report_id for (report_id,) in db.execute(DISOWNED)]
        for report_id in disowned:
            try:
                release(connect, [report_id], by=WHO, reason="the customer is there again", clock=clock)
                self._figures["disowned reports released"] += 1
            except ReleaseRefused:
                acknowledge(connect, [report_id], by=WHO, reason="seen", clock=clock)
                self._figures["disowned reports acknowledged"] += 1
        for proposal in propose(connect, clock) if self._decides else ():
            decision = self._rng.choice([one for one in proposal.what.choices if one != Decision.DECLINED])
            decide(connect, proposal.id, decision, WHO, clock)
            self._figures[f"decided: {decision}"] += 1
        apply_proposals(connect, target, clock, SETTINGS)
