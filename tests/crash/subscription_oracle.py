"""The oracle of followed histories: what went where, judged by the record of what was done at Stripe and when.

It imports nothing of the product. What the ledger says of its reports is held against the events that Stripe accepted and against the
record; that a fact came too late for a report excuses it only where the ledger shows the report as an open discrepancy."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

import psycopg
from dateutil.relativedelta import relativedelta

from crash.plans import LINKED

REPORTS = """
SELECT report.id, report.tenant_id, report.identifier, report.state, report.quarantine_reason, report.quarantined_at, report.side_start,
       report.side_end, report.token_count, report.usage_item_id, report.first_attempted_at,
       EXISTS (SELECT FROM billing.discrepancy
               WHERE report_id = report.id AND cause IN ('boundary_inside_report', 'sent_elsewhere') AND resolved_at IS NULL),
       ARRAY(SELECT DISTINCT attempt.identifier FROM billing.push_attempt attempt WHERE attempt.report_id = report.id)
FROM billing.usage_report report
WHERE report.tenant_id = ANY(%s)
ORDER BY report.id
"""

#: Attempted, or kept aside: what becomes known later changes nothing of these.
SETTLED = "SELECT id FROM billing.usage_report WHERE attempt_count > 0 OR state = 'quarantined'"

#: Whoever leaves before buying again, and tells nothing that Stripe does not describe, gives no cause for these.
UNEXPECTED = """
SELECT cause, coalesce(tenant_id, stripe_id), details FROM billing.discrepancy
WHERE resolved_at IS NULL AND report_id IS NULL
  AND cause IN ('event_not_applied', 'link_conflict', 'overlapping_subscriptions', 'unknown_subscription', 'unknown_tenant')
"""

#: Reasons that follow from when subscriptions began, changed and ended; others are people's, or old age.
OF_SUBSCRIPTIONS = frozenset(
    {
        "no_customer",
        "no_subscription_item",
        "item_not_metered",
        "before_subscription",
        "after_subscription",
        "item_ended",
        "customer_deleted",
    }
)

OLDEST_EVENT = timedelta(days=35)

#: So far behind Stripe's may a worker's clock be, all that are wrong added up.
BEHIND = timedelta(minutes=110)

#: The event name of a plan whose usage nobody meters.
NO_METER = ""


class Report(NamedTuple):
    """A row of REPORTS."""

    id: int
    tenant_id: str
    identifier: str
    state: str
    quarantine_reason: str | None
    quarantined_at: datetime | None
    side_start: datetime
    side_end: datetime
    token_count: int
    usage_item_id: str | None
    first_attempted_at: datetime | None
    is_discrepancy: bool
    identifiers: list[str]


@dataclass(frozen=True)
class Tenure:
    """From when until when (None: still) an item had a price whose usage a meter counts under a name."""

    subscription_id: str
    customer_id: str
    usage_item_id: str
    event_name: str
    #: When the subscription began, and the first end of one of its billing periods.
    began: datetime
    first_end: datetime
    since: datetime
    until: datetime | None = None


class Cell(NamedTuple):
    """The part of a tenure that lies in one billing period: its usage belongs on one side. `closes_at`: when an invoice is made of it."""

    tenure: Tenure
    since: datetime
    until: datetime
    closes_at: datetime

    def same_bill(self, other: "Cell") -> bool:
        """Whether usage of both is one quantity on one invoice."""
        mine, others = self.tenure, other.tenure
        return (self.closes_at, mine.usage_item_id, mine.event_name) == (other.closes_at, others.usage_item_id, others.event_name)


@dataclass
class Fact:
    """Something changed at Stripe. `settled_ids`: reports that were settled when the product had learned of it, if it has."""

    at: datetime
    settled_ids: frozenset[int] | None = None


@dataclass
class Record:
    """What was done at Stripe, by tenant and in order, and when the product had learned of it."""

    grace: timedelta
    tenures: defaultdict[str, list[Tenure]] = field(default_factory=lambda: defaultdict(list))
    facts: defaultdict[str, list[Fact]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[str, datetime] = field(default_factory=dict)

    def begin(self, tenant: str, tenure: Tenure) -> None:
        """A tenure follows the one before, if that has not ended, from the same instant on."""
        if self.tenures[tenant] and self.tenures[tenant][-1].until is None:
            self.end(tenant, tenure.since)
        self.tenures[tenant].append(tenure)
        self.facts[tenant].append(Fact(tenure.since))

    def end(self, tenant: str, at: datetime, *, subscription: bool = False) -> None:
        """The tenant's tenure is over; `subscription`: with its subscription."""
        last = self.tenures[tenant].pop()
        self.tenures[tenant].append(Tenure(**{**vars(last), "until": at}))
        if subscription:
            self.ended[last.subscription_id] = at
            self.facts[tenant].append(Fact(at))

    def learned(self, db: psycopg.Connection[tuple[Any, ...]], before: datetime) -> None:
        """The product has learned of all that happened before then."""
        news = [fact for facts in self.facts.values() for fact in facts if fact.settled_ids is None and fact.at < before]
        if news:
            settled = frozenset(report_id for (report_id,) in db.execute(SETTLED))
            for fact in news:
                fact.settled_ids = settled

    def came_too_late(self, report: Report, until: datetime | None = None) -> bool:
        """Whether the product may have settled the report before it knew of what had happened by the report's end, or by then."""
        before = [fact for fact in self.facts[report.tenant_id] if fact.at < (until or report.side_end)]
        return any(fact.settled_ids is None or report.id in fact.settled_ids for fact in before)

    def cells(self, tenant: str, until: datetime) -> list[Cell]:
        """The tenant's cells up to an instant, in order; one that takes no time is none, and what was changed back at once did not end."""
        cells: list[Cell] = []
        for tenure in [tenure for tenure in self.tenures[tenant] if tenure.event_name != NO_METER]:
            for cell in self._cells(tenure, until):
                before = cells[-1] if cells else None
                if before and before.until == cell.since and before.same_bill(cell):
                    cells[-1] = before._replace(until=cell.until)
                elif cell.since < cell.until:
                    cells.append(cell)
        return cells

    def _cells(self, tenure: Tenure, until: datetime) -> Iterator[Cell]:
        ended = self.ended.get(tenure.subscription_id)
        begin, last = tenure.began, tenure.until or until
        for n in count():
            end = tenure.first_end + n * relativedelta(months=1)
            closes_at = end if ended is None else min(end, ended)
            yield Cell(tenure, max(begin, tenure.since), min(end, last), closes_at)
            begin = end
            if begin >= last:
                return


@dataclass
class Judgement:
    """What the oracle found: `aside_ids` are reports that are rightly kept aside."""

    problems: list[str] = field(default_factory=list)
    aside_ids: set[int] = field(default_factory=set)
    figures: Counter[str] = field(default_factory=Counter)


def judge(
    db: psycopg.Connection[tuple[Any, ...]],
    events: Sequence[Mapping[str, Any]],
    record: Record,
    final_at: Mapping[tuple[str, datetime], datetime],
    now: datetime,
) -> Judgement:
    """Whether every accepted event lies inside the billing period of the item that its report names, inside the tenure of the plan whose
    meter it went to, and was not sent when the invoice of both was final (`final_at`: by subscription and when it was made); whether what
    is kept aside is so for the right reason; and whether exceptions are shown."""
    found = Judgement()
    accepted = {event["identifier"]: event for event in events if event["status"] == "accepted"}
    disowned = {event["identifier"] for event in events if event["status"] != "accepted"}
    cells = {tenant: record.cells(tenant, now + OLDEST_EVENT) for tenant in LINKED}
    for report in (Report(*row) for row in db.execute(REPORTS, (list(LINKED),))):
        found.figures["reports of a part of an hour"] += report.side_end - report.side_start < timedelta(hours=1)
        of_tenant = cells[report.tenant_id]
        what = f"report {report.id} ({report.identifier}) of tenant {report.tenant_id}, {_span(report)}, {report.token_count} tokens"
        if report.state == "quarantined":
            wrong = _wrong_reason(report, of_tenant, record, disowned)
            if wrong is None or record.came_too_late(report):
                found.aside_ids.add(report.id)
                found.figures[f"kept aside: {report.quarantine_reason}"] += 1
            if wrong is not None and record.came_too_late(report):
                found.figures["kept aside before a fact came"] += 1
            elif wrong is not None:
                found.problems.append(f"{what}, is quarantined as {report.quarantine_reason}, but {wrong}")
            continue
        for event in (accepted[name] for name in report.identifiers if name in accepted):
            wrong = _wrong_place(report, event, of_tenant)
            if wrong is None:
                found.figures["discrepancies of what is right"] += report.is_discrepancy
            elif not report.is_discrepancy:
                found.problems.append(f"{what}, {wrong}, and no discrepancy says so")
            elif not record.came_too_late(report):
                found.problems.append(f"{what}, {wrong}, though that was known in time")
            else:
                found.figures["reports sent before a fact came"] += 1
            final = _final_before(report, event, of_tenant, final_at)
            if final and record.came_too_late(report, final):
                found.figures["reports sent to a final invoice before its subscription's end was known"] += 1
            elif final:
                found.problems.append(f"{what}, was first sent when its invoice was final since {final:%d %H:%M:%S}")
    for cause, about, details in db.execute(UNEXPECTED):
        found.problems.append(f"an open discrepancy {cause} about {about}: {details}")
    return found


def _wrong_place(report: Report, event: Mapping[str, Any], cells: Sequence[Cell]) -> str | None:
    """What is wrong with where and when an event counts, if anything is."""
    at = datetime.fromtimestamp(event["timestamp"], UTC)
    if not report.side_start <= at < report.side_end:
        return f"is dated {at:%d %H:%M:%S}, outside of it"
    cell = next((cell for cell in cells if cell.since <= at < cell.until), None)
    if cell is None:
        return f"is dated {at:%d %H:%M:%S}, when no item billed the tenant"
    if (report.usage_item_id, event["customer"], event["event_name"]) != (
        cell.tenure.usage_item_id,
        cell.tenure.customer_id,
        cell.tenure.event_name,
    ):
        return f"went to {report.usage_item_id} and {event['event_name']}, billed was {cell.tenure.usage_item_id}, {cell.tenure.event_name}"
    if report.side_start < cell.since or cell.until < report.side_end:
        return f"holds usage from outside {cell.since:%d %H:%M:%S} to {cell.until:%d %H:%M:%S}"
    return None


def _final_before(
    report: Report, event: Mapping[str, Any], cells: Sequence[Cell], final_at: Mapping[tuple[str, datetime], datetime]
) -> datetime | None:
    """Since when the invoice of an event's time was final, if it was when the report was first sent: Stripe never bills it."""
    at = datetime.fromtimestamp(event["timestamp"], UTC)
    cell = next((cell for cell in cells if cell.since <= at < cell.until), None)
    final = final_at.get((cell.tenure.subscription_id, cell.closes_at)) if cell else None
    return final if final and report.first_attempted_at and report.first_attempted_at >= final else None


def _wrong_reason(report: Report, cells: Sequence[Cell], record: Record, disowned: Set[str]) -> str | None:
    """Why the reason for which a report is kept aside is none; of people's own reasons nothing is said."""
    assert report.quarantined_at is not None
    billed = [cell for cell in cells if cell.since < report.side_end and report.side_start < cell.until]
    before = any(cell.since < report.side_end for cell in cells)
    reason = report.quarantine_reason
    if reason == "period_invoiced":
        final = billed and billed[0].closes_at + record.grace <= report.quarantined_at + BEHIND
        return None if final else f"its period's invoice cannot have been final by {report.quarantined_at:%d %H:%M}"
    if reason == "disowned":
        return None if disowned & set(report.identifiers) else "Stripe counts it"
    if reason == "older_than_35_days":
        return None if report.side_start < report.quarantined_at - OLDEST_EVENT + timedelta(hours=1) else "it was not"
    if reason in OF_SUBSCRIPTIONS and billed:
        return f"{billed[0].tenure.usage_item_id} billed the tenant then"
    if reason in ("before_subscription", "after_subscription") and (reason == "after_subscription") != before:
        return f"the tenant had {'a' if before else 'no'} subscription before"
    unmetered = any(
        tenure.event_name == NO_METER and tenure.since <= report.side_start and (tenure.until is None or report.side_start < tenure.until)
        for tenure in record.tenures[report.tenant_id]
        if tenure.subscription_id in {cell.tenure.subscription_id for cell in cells}  # a subscription that never billed began nothing
    )
    if not cells and reason == "item_ended":
        return None
    if reason in ("after_subscription", "item_ended") and unmetered != (reason == "item_ended"):
        return f"the tenant had {'a' if unmetered else 'no'} plan without tokens"
    if reason in ("item_not_metered", "customer_deleted"):
        return "nothing of that kind happened"
    return None


def _span(report: Report) -> str:
    return f"{report.side_start:%d %H:%M:%S} to {report.side_end:%H:%M:%S}"
