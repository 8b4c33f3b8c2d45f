"""What people do in a history, through the product's own commands: pause and resume, decide, relink, and give back what was disowned."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import combinations
from typing import NamedTuple

from crash.oracle import Allowed, of_this_ledger
from crash.plans import Act, Decide, Pause, Relink, Resume, Revoke
from crash.stripe_account import Link, StripeAccount
from crash.workers import Connection
from token_billing.errors import DecisionRefused, NotRevocable, PauseRefused
from token_billing.model import Disowned, RevocationCause
from token_billing.stages.hold import decide, held_reports
from token_billing.stages.pause import pause_sending, resume_sending
from token_billing.stages.revoke import revoke

WHO = "a person"

#: The reports of a report's customer, meter and hour that Stripe may count.
REPORTS_OF_ITS_HOUR = """
SELECT other.id, other.customer_id, other.event_name, other.window_start, date_trunc('minute', other.event_time, 'UTC'), other.state,
       other.token_count, first.message LIKE 'the database was restored%%',
       ARRAY(SELECT identifier FROM billing.push_attempt WHERE report_id = other.id)
FROM billing.usage_report report
JOIN billing.usage_report other USING (customer_id, event_name, window_start)
JOIN billing.push_attempt first ON first.report_id = other.id AND first.attempt = 1
WHERE report.id = %s AND other.state IN ('sending', 'accepted', 'billed', 'unresolved')
"""


class ReportOfItsHour(NamedTuple):
    """A report of the same customer, meter and hour."""

    id: int
    customer_id: str
    event_name: str
    window_start: datetime
    minute: datetime
    state: str
    token_count: int
    #: Whether the time that a restore lost may have dated it otherwise.
    dated_anew: bool | None
    #: Under which it was sent, as far as this database knows.
    identifiers: list[str]


class People:
    """They notice what Stripe disowns, and remember what they decided."""

    def __init__(self, figures: Counter[str], links: Mapping[str, tuple[Link, ...]], allowed: Allowed, account: StripeAccount) -> None:
        self.noticed: set[str] = set()
        self.unnoticed: set[str] = set()
        self._dealt_with: set[str] = set()
        #: Each tenant's customers of its group's, the one it is linked to first.
        self.links = dict(links)
        self._figures, self._allowed, self._account = figures, allowed, account

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

    def hear_everything_again(self) -> None:
        """Stripe, or whoever looks through its news, tells a restored database once more what was disowned."""
        self.noticed |= self._dealt_with
        self._dealt_with.clear()

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
            try:
                self._take_back(news, resend, connect, clock)
            except NotRevocable as refusal:
                if "--missing-in-summary" in str(refusal):
                    missing = self._is_missing(report_id, connect)
                    if missing is None:
                        continue
                    self._figures[f"restored reports found {'missing' if missing else 'counted'} at Stripe"] += 1
                    if missing:
                        self._take_back(replace(news, cause=RevocationCause.SETTLED_SUMMARY), resend, connect, clock)
            self.noticed.discard(identifier)
            self._dealt_with.add(identifier)

    def _take_back(self, news: Disowned, resend: bool, connect: Callable[[], Connection], clock: Callable[[], datetime]) -> None:
        done = revoke(connect, news, clock, revoked_by=WHO, resend=resend)
        self._figures["reports revoked" if done.reason is None else "reports revoked and kept aside"] += 1

    def _is_missing(self, report_id: int, connect: Callable[[], Connection]) -> bool | None:
        """As the runbook says: which reports make up what Stripe counts in the report's minute, or in its hour where its minute is not
        sure? Whether this one is not among them; None where that cannot be told yet."""
        with connect() as db:
            of_its_hour = [ReportOfItsHour(*row) for row in db.execute(REPORTS_OF_ITS_HOUR, (report_id,))]
        (report,) = (report for report in of_its_hour if report.id == report_id)
        start, span = (report.window_start, timedelta(hours=1)) if report.dated_anew else (report.minute, timedelta(minutes=1))
        there = [other for other in of_its_hour if report.dated_anew or other.minute == report.minute]
        if any(other.state == "sending" for other in there):
            return None
        doubtful = [other for other in there if other.state == "unresolved" or not self.noticed.isdisjoint(other.identifiers)]
        sure = sum(other.token_count for other in there if other not in doubtful)
        counted = self._counted(report, start, span)
        for how_many in range(len(doubtful) + 1):
            for some in combinations(doubtful, how_many):
                if sure + sum(other.token_count for other in some) == counted:
                    return report not in some
        return None

    def _counted(self, report: ReportOfItsHour, start: datetime, span: timedelta) -> int:
        """What Stripe counts in that time, without what another system reported, which that one's owner knows."""
        return sum(
            int(event["value"])
            for event in of_this_ledger(self._account.meter_events())
            if (event["customer"], event["event_name"], event["status"]) == (report.customer_id, report.event_name, "accepted")
            and start.timestamp() <= event["timestamp"] < (start + span).timestamp()
        )
