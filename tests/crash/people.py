"""What people do in a history, through the product's own commands: pause and resume, decide, relink, and give back what was disowned."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime

from crash.oracle import Allowed
from crash.plans import Act, Decide, Pause, Relink, Resume, Revoke
from crash.stripe_account import Link
from crash.workers import Connection
from token_billing.errors import DecisionRefused, NotRevocable, PauseRefused
from token_billing.model import Disowned, RevocationCause
from token_billing.stages.hold import decide, held_reports
from token_billing.stages.pause import pause_sending, resume_sending
from token_billing.stages.revoke import revoke

WHO = "a person"


class People:
    """They notice what Stripe disowns, and remember what they decided."""

    def __init__(self, figures: Counter[str], links: Mapping[str, tuple[Link, ...]], allowed: Allowed) -> None:
        self.noticed: set[str] = set()
        self.unnoticed: set[str] = set()
        #: Each tenant's customers of its group's, the one it is linked to first.
        self.links = dict(links)
        self._figures, self._allowed = figures, allowed

    def do(self, act: Act, connect: Callable[[], Connection], clock: Callable[[], datetime]) -> None:
        """Whatever comes too late, because somebody did it already or nothing asks for it, is refused and changes nothing."""
        self._figures["acts of people"] += 1
        match act:
            case Pause():
                with suppress(PauseRefused):
                    pause_sending(connect, WHO, "for a reason", clock)
                    self._figures["pauses"] += 1
            case Resume():
                with suppress(PauseRefused):
                    resume_sending(connect, WHO, clock)
            case Decide(approvals):
                self._decide(approvals, connect, clock)
            case Relink(tenant):
                self._relink(tenant, connect)
            case Revoke(resend):
                self._revoke(resend, connect, clock)

    def notice_everything(self) -> None:
        self.noticed |= self.unnoticed
        self.unnoticed.clear()

    def _decide(self, approvals: tuple[bool, ...], connect: Callable[[], Connection], clock: Callable[[], datetime]) -> None:
        for number, held in enumerate(held_reports(connect)):
            approve = approvals[number % len(approvals)]
            if not approve:
                self._allowed.refused_ids.add(held.report_id)
            try:
                decide(connect, held.report_id, approve=approve, by=WHO, clock=clock)
            except DecisionRefused as refusal:
                if "restored" in str(refusal):
                    with suppress(DecisionRefused):
                        decide(connect, held.report_id, approve=True, by=WHO, clock=clock)
                continue
            self._figures["held reports approved" if approve else "held reports refused"] += 1

    def _relink(self, tenant: str, connect: Callable[[], Connection]) -> None:
        present, other = self.links[tenant]
        with connect() as db:
            db.execute(
                "UPDATE tenants SET stripe_customer_id = %s, stripe_subscription_id = %s, stripe_usage_item_id = %s WHERE id = %s",
                (other.customer_id, other.subscription_id, other.usage_item_id, tenant),
            )
        self.links[tenant] = (other, present)
        self._figures["tenants relinked"] += 1

    def _revoke(self, resend: bool, connect: Callable[[], Connection], clock: Callable[[], datetime]) -> None:
        """As the runbook says: the report is found by the identifier that was disowned; what is not accepted yet waits."""
        for identifier in sorted(self.noticed):
            with connect() as db:
                found = db.execute(
                    "SELECT report.id, report.identifier, report.state FROM billing.push_attempt attempt "
                    "JOIN billing.usage_report report ON report.id = attempt.report_id WHERE attempt.identifier = %s",
                    (identifier,),
                ).fetchone()
            if found is None:  # a restored database does not know it, yet
                continue
            report_id, current, state = found
            if current == identifier and state in ("sending", "unresolved"):
                continue
            if not resend:
                self._allowed.kept_aside_ids.add(report_id)
            news = Disowned(report_id, RevocationCause.ERROR_REPORT, "meter_event_customer_not_found: No such customer", identifier)
            with suppress(NotRevocable):
                done = revoke(connect, news, clock, revoked_by=WHO, resend=resend)
                self._figures["reports revoked" if done.reason is None else "reports revoked and kept aside"] += 1
            self.noticed.discard(identifier)
