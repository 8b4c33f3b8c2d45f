"""The oracle: what became of the tokens, from the rows and from what Stripe accepted, by SQL of its own.

It imports nothing of the product. That the ledger agrees with rows and events is checked; what the ledger says is believed only where
a history's own steps allow it: of usage that nobody pays, that somebody refused, or that another system's event makes unclear."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg

from crash.plans import GROUPS, LINKED, UNLINKED
from crash.stripe_account import FOREIGN

#: Which report each row belongs to: that of the first fence that sees it, of its tenant, hour and side. What every report must hold by its
#: rows, what it says it holds, and how many of those rows and tokens are marked; a row that no fence has seen belongs to none.
HOLDINGS = """
WITH row AS (
    SELECT usage.tenant_id, usage.created_at, date_trunc('hour', usage.created_at, 'UTC') AS window_start,
           usage.input_tokens::bigint + usage.output_tokens AS tokens, usage.billed,
           (SELECT min(fence.revision) FROM billing.fence
            WHERE fence.window_start = date_trunc('hour', usage.created_at, 'UTC')
              AND pg_visible_in_snapshot(usage.recorded_xid, fence.snapshot)) AS revision
    FROM token_usage usage
), held AS (
    SELECT row.tenant_id, row.window_start, coalesce(row.revision, -1) AS revision, report.id AS report_id,
           count(*) AS row_count, sum(tokens)::bigint AS token_count,
           count(*) FILTER (WHERE billed) AS marked_count, coalesce(sum(tokens) FILTER (WHERE billed), 0)::bigint AS marked_tokens
    FROM row
    LEFT JOIN billing.usage_report report
      ON report.tenant_id = row.tenant_id AND report.window_start = row.window_start AND report.revision = row.revision
     AND report.side_start <= row.created_at AND row.created_at < report.side_end
    GROUP BY 1, 2, 3, 4
)
SELECT coalesce(held.tenant_id, report.tenant_id), coalesce(held.window_start, report.window_start), report.identifier, report.state,
       coalesce(held.row_count, 0), coalesce(held.token_count, 0), coalesce(held.marked_count, 0), coalesce(held.marked_tokens, 0),
       report.row_count, report.token_count, held.revision = -1
FROM held
FULL JOIN billing.usage_report report ON report.id = held.report_id
"""

REPORTS = """
SELECT report.id, report.tenant_id, report.identifier, report.state, report.token_count, report.generation, report.revision,
       report.quarantine_reason, report.customer_id, report.event_name, date_trunc('minute', report.event_time, 'UTC'),
       report.first_attempted_at,
       ARRAY(SELECT DISTINCT attempt.identifier FROM billing.push_attempt attempt WHERE attempt.report_id = report.id)
FROM billing.usage_report report
ORDER BY report.id
"""

USED = "SELECT tenant_id, sum(input_tokens::bigint + output_tokens)::bigint, count(*) FROM token_usage GROUP BY tenant_id"


class Report(NamedTuple):
    """A row of REPORTS."""

    id: int
    tenant_id: str
    identifier: str
    state: str
    token_count: int
    generation: int
    revision: int
    quarantine_reason: str | None
    customer_id: str | None
    event_name: str | None
    minute: datetime | None
    first_attempted_at: datetime | None
    #: Under which it was ever sent, or may have been.
    identifiers: list[str]


@dataclass
class Findings:
    """What the oracle found."""

    problems: list[str] = field(default_factory=list)
    lost_tokens: int = 0
    doubled_tokens: int = 0
    figures: Counter[str] = field(default_factory=Counter)


@dataclass
class Allowed:
    """What people decided in a history, so that tokens may rightly be in quarantine: ids of reports."""

    refused_ids: set[int] = field(default_factory=set)
    kept_aside_ids: set[int] = field(default_factory=set)
    #: Not people's decision: nothing billed the tenant then, or its invoice was final.
    not_billed_ids: set[int] = field(default_factory=set)


def of_this_ledger(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events that no foreign reporter sent."""
    return [event for event in events if not event["identifier"].startswith(FOREIGN)]


def counted_by_group(events: Sequence[Mapping[str, Any]], group_of: Mapping[str, str]) -> Counter[str]:
    """Tokens that Stripe counts of ours, by who pays them."""
    counted: Counter[str] = Counter()
    for event in of_this_ledger(events):
        if event["status"] == "accepted":
            counted[group_of.get(event["customer"], f"customer {event['customer']}")] += int(event["value"])
    return counted


def look(db: psycopg.Connection[tuple[Any, ...]], events: Sequence[Mapping[str, Any]], group_of: Mapping[str, str]) -> Iterator[str]:
    """At any instant: Stripe counts no more than was used, every report is its rows, and rows are marked just where a report is billed.

    `events` were looked at before: what Stripe counts was frozen from rows that are still there afterwards."""
    yield from ledger_problems(db)
    used: Counter[str] = Counter()
    for tenant, tokens, _ in db.execute(USED):
        used[GROUPS.get(tenant, tenant)] += tokens
    for group, tokens in counted_by_group(events, group_of).items():
        if tokens > used[group]:
            yield f"at an instant Stripe counts {tokens} tokens of {group}, who used {used[group]}"


def ledger_problems(db: psycopg.Connection[tuple[Any, ...]]) -> Iterator[str]:
    """The conservation law, row by row: each row is in one report, in quarantine or not frozen yet; billed are those of billed reports."""
    for tenant, start, identifier, state, rows, tokens, marked, marked_tokens, frozen_rows, frozen_tokens, unfrozen in db.execute(HOLDINGS):
        what = f"tenant {tenant}, window {start:%d %H:%M}, report {identifier or 'none'}"
        if unfrozen:
            if marked:
                yield f"{what}: {marked} rows that no fence has seen are marked"
        elif identifier is None:
            yield f"{what}: {rows} rows of {tokens} tokens are behind a fence and in no report"
        elif (rows, tokens) != (frozen_rows, frozen_tokens):
            yield f"{what}: froze {frozen_tokens} tokens of {frozen_rows} rows and holds {tokens} of {rows}"
        elif (marked, marked_tokens) != ((rows, tokens) if state == "billed" else (0, 0)):
            yield f"{what}, {state}: {marked} of its {rows} rows are marked"


class Verdict:
    """The end of a history: rows, ledger and Stripe say the same of every tenant, but for what its steps allow."""

    def __init__(
        self,
        db: psycopg.Connection[tuple[Any, ...]],
        events: Sequence[Mapping[str, Any]],
        group_of: Mapping[str, str],
        allowed: Allowed,
        *,
        restored: bool,
    ) -> None:
        """`restored`: the ledger is an older copy, which need not know the names under which reports were sent since."""
        self._restored = restored
        self.found = Findings()
        self._events, self._group_of, self._allowed = events, group_of, allowed
        self._used: Counter[str] = Counter()
        for tenant, tokens, rows in db.execute(USED):
            self._used[tenant] = tokens
            self.found.figures["rows"] += rows
        self._marked = Counter[str](
            dict(
                db.execute(
                    "SELECT tenant_id, sum(input_tokens::bigint + output_tokens)::bigint FROM token_usage WHERE billed GROUP BY tenant_id"
                ).fetchall()
            )
        )
        self._reports = [Report(*row) for row in db.execute(REPORTS)]
        self._ledger_problems = list(ledger_problems(db))

    def of_tokens(self) -> Findings:
        """Whether Stripe counts each token once, whoever billed it."""
        self.found.figures["tokens"] += sum(self._used.values())
        aside, unclear = Counter[str](), Counter[str]()
        unclear_identifiers = {identifier for report in self._reports if self._is_unclear(report) for identifier in report.identifiers}
        for report in self._reports:
            if self._is_allowed_aside(report) or self._is_unclear(report):
                aside[report.tenant_id] += report.token_count
            if self._is_unclear(report):
                unclear[GROUPS.get(report.tenant_id, report.tenant_id)] += report.token_count
        counted = counted_by_group([event for event in self._events if event["identifier"] not in unclear_identifiers], self._group_of)
        expected: Counter[str] = Counter()
        for tenant in LINKED:
            expected[GROUPS[tenant]] += self._used[tenant] - aside[tenant]
            if self._marked[tenant] != self._used[tenant] - aside[tenant]:
                self._problem(
                    f"tenant {tenant}: {self._used[tenant]} tokens used, {self._marked[tenant]} marked billed, {aside[tenant]} set aside"
                )
        for group in expected.keys() | counted.keys():
            difference = counted[group] - expected[group]
            if self._restored and 0 < difference <= unclear[group]:
                difference = 0  # sent under a name that the copy has forgotten; it waits for a person
            self.found.lost_tokens += max(0, -difference)
            self.found.doubled_tokens += max(0, difference)
            if difference:
                self._problem(f"{group}: {expected[group]} tokens are to be billed, Stripe counts {counted[group]} ({difference:+})")
        if self._marked[UNLINKED]:
            self.found.lost_tokens += self._marked[UNLINKED]
            self._problem(f"{self._marked[UNLINKED]} tokens of the unlinked tenant are marked billed, nobody pays them")
        return self.found

    def of_reports(self) -> Findings:
        """Whether each report is at Stripe once, under its own name, or where a history's steps allow it to be."""
        figures = self.found.figures
        figures["reports"] += len(self._reports)
        figures["reports of late usage"] += sum(report.revision > 0 for report in self._reports)
        figures["reports of a further generation"] += sum(report.generation > 0 for report in self._reports)
        events: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for event in of_this_ledger(self._events):
            events[event["identifier"]].append(event)
        figures["meter events"] += sum(map(len, events.values()))
        unlinked_tokens = 0
        for report in self._reports:
            sent = [event for name in {*report.identifiers, report.identifier} for event in events.pop(name, [])]
            counting = [(event["identifier"], int(event["value"])) for event in sent if event["status"] == "accepted"]
            what = f"report {report.identifier} of tenant {report.tenant_id}, {report.token_count} tokens, {report.state}"
            if self._is_unclear(report):
                figures[f"reports left to a person {'after a restore' if self._restored else 'beside a foreign event'}"] += 1
                if len(counting) > 1:
                    self._problem(f"{what}: Stripe counts {counting}")
                continue
            if report.tenant_id == UNLINKED and report.state == "quarantined":
                unlinked_tokens += report.token_count
            elif report.state != "billed" and not self._is_allowed_aside(report):
                self._problem(f"{what}, is left so ({report.quarantine_reason or 'for a person'})")
            if self._restored:
                continue
            if counting != ([(report.identifier, report.token_count)] if report.state == "billed" and report.token_count else []):
                self._problem(f"{what}: Stripe counts {counting}")
        for identifier, strange in events.items() if not self._restored else ():
            self._problem(f"Stripe has {json.dumps(strange[0])} under {identifier}, which no report was ever called")
        if unlinked_tokens != self._used[UNLINKED]:
            self._problem(f"the unlinked tenant used {self._used[UNLINKED]} tokens, {unlinked_tokens} are quarantined")
        for problem in self._ledger_problems:
            self._problem(problem)
        return self.found

    def _is_allowed_aside(self, report: Report) -> bool:
        """Somebody decided in this history that it is not sent."""
        return report.state == "quarantined" and (
            (report.quarantine_reason == "refused_at_gate" and report.id in self._allowed.refused_ids)
            or (report.quarantine_reason == "disowned" and report.id in self._allowed.kept_aside_ids)
            or report.id in self._allowed.not_billed_ids
        )

    def _is_unclear(self, report: Report) -> bool:
        """It waits for a person, and rightly: another system's event lies in its very minute, or the ledger was restored, so that the
        hour of a report is read for it, which others that may have been sent share."""
        return report.state == "unresolved" and (self._restored or self._is_beside_a_foreign_event(report))

    def _is_beside_a_foreign_event(self, report: Report) -> bool:
        return any(
            event["identifier"].startswith(FOREIGN)
            and (event["customer"], event["event_name"]) == (report.customer_id, report.event_name)
            and datetime.fromtimestamp(event["timestamp"], UTC).replace(second=0) == report.minute
            for event in self._events
        )

    def _problem(self, text: str) -> None:
        self.found.problems.append(text)
