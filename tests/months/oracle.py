"""What became of the months, judged by the rows, by what was done at Stripe and when, and by Stripe's own events and invoices.

It imports nothing of the product. A metered line is explained when it is exactly the rows, marked as billed, of one tenant in the part of
one billing period in which its item had its price, and costs what they cost by our own reckoning."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg

from crash.stripe_account import StripeAccount
from crash.subscription_oracle import Cell, Record
from months.plans import Outage
from months.price_list import Terms, rounded

ROWS = "SELECT id, tenant_id, created_at, input_tokens::bigint + output_tokens, billed FROM token_usage"

#: Reports by tenant and by what is to become of their tokens.
REPORTS = """
SELECT tenant_id, CASE WHEN state IN ('quarantined', 'rejected') THEN 'aside' WHEN state = 'billed' THEN 'billed' ELSE 'pending' END,
       sum(token_count)::bigint
FROM billing.usage_report GROUP BY 1, 2
"""

#: All that was ever flagged.
FLAGGED = """
SELECT cause, tenant_id, stripe_id, report_id, scope, window_start, found_at, resolved_at, details FROM billing.discrepancy ORDER BY id
"""

#: A run comes at least so often; what was recorded so long before a finalisation could still be sent.
RUNS_WITHIN = timedelta(hours=3)


class Row(NamedTuple):
    """A row of token_usage."""

    id: int
    tenant_id: str
    at: datetime
    tokens: int
    billed: bool


class Flagged(NamedTuple):
    """A discrepancy that the product noted, resolved by now or not."""

    cause: str
    tenant_id: str | None
    stripe_id: str | None
    report_id: int | None
    scope: str | None
    window_start: datetime | None
    found_at: datetime
    resolved_at: datetime | None
    details: str

    def __str__(self) -> str:
        about = self.tenant_id or self.stripe_id or f"report {self.report_id}"
        since = f"{self.found_at:%m-%d %H:%M}" + (f" to {self.resolved_at:%m-%d %H:%M}" if self.resolved_at else "")
        return f"flagged {since}: {self.cause} {about} ({self.scope}): {self.details}"


@dataclass
class Charge:
    """The lines of one metered charge of one invoice, in their order."""

    invoice: Mapping[str, Any]
    usage_item_id: str
    price_id: str
    since: datetime
    until: datetime
    lines: list[tuple[int, int]] = field(default_factory=list)

    @property
    def quantity(self) -> int:
        return sum(quantity for quantity, _ in self.lines)


@dataclass
class Part:
    """A part of a tenant's timeline that is billed as one quantity, and what belongs to it."""

    tenant: str
    cell: Cell
    rows: list[Row] = field(default_factory=list)
    event_tokens: int = 0
    charges: list[Charge] = field(default_factory=list)

    @property
    def billed_tokens(self) -> int:
        return sum(row.tokens for row in self.rows if row.billed)

    def __str__(self) -> str:
        return f"{self.tenant} {self.cell.tenure.event_name} from {self.cell.since:%m-%d %H:%M:%S} to {self.cell.until:%m-%d %H:%M:%S}"


@dataclass
class Judgement:
    """What is wrong, each with the tenant or customer that it is about, and the figures of what was judged. `unexplained`: final invoices
    with a line that is not explained."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    unexplained: set[str] = field(default_factory=set)
    #: Final invoices whose usage was in part recorded so late that no run could send it in time.
    lacking: set[str] = field(default_factory=set)
    figures: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Truth:
    """What was done in the months: at Stripe, when rows were recorded, and what was out; prices by id, with their event names."""

    record: Record
    tenants: Sequence[str]
    customers: Mapping[str, str]
    terms: Mapping[str, Terms]
    price_of_event: Mapping[str, str]
    recorded: Mapping[tuple[str, datetime], datetime]
    outages: Sequence[Outage]
    #: Tenants and hours of which Stripe disowned an event; its report may have been kept aside until it was too late.
    disowned: frozenset[tuple[str, datetime]]
    now: datetime

    def parts(self) -> dict[str, list[Part]]:
        """Each tenant's, in time order."""
        return {
            tenant: [Part(tenant, cell) for cell in self.record.cells(tenant, self.now + timedelta(days=62))] for tenant in self.tenants
        }


def judge(db: psycopg.Connection[tuple[Any, ...]], account: StripeAccount, truth: Truth) -> Judgement:
    """Whether every final invoice is explained to the cent, and whether what was billed is what Stripe counts and invoices."""
    found = Judgement()
    parts = truth.parts()
    outside = _deal_out(db, parts)
    _add_events(account, parts, found)
    for charge in _charges(account, truth, found):
        _explain(charge, parts, truth, found)
    for part in (part for of_tenant in parts.values() for part in of_tenant):
        _judge_part(part, truth, found)
    found.figures["tokens set aside outside of any subscription"] += sum(row.tokens for row in outside)
    found.problems += [(row.tenant_id, f"row {row.id} at {row.at} is billed, when nothing billed it") for row in outside if row.billed]
    _judge_sums(db, found)
    return found


def tenants_of_reports(db: psycopg.Connection[tuple[Any, ...]]) -> dict[int, str]:
    """Whose each report is."""
    return dict(db.execute("SELECT id, tenant_id FROM billing.usage_report").fetchall())


def flagged(db: psycopg.Connection[tuple[Any, ...]]) -> list[Flagged]:
    """In the order in which it was noted."""
    return [Flagged(*row) for row in db.execute(FLAGGED)]


def _deal_out(db: psycopg.Connection[tuple[Any, ...]], parts: Mapping[str, list[Part]]) -> list[Row]:
    """Gives each row to the part of its time; returns those that no part has."""
    outside = []
    starts = {tenant: [part.cell.since for part in of_tenant] for tenant, of_tenant in parts.items()}
    for row in (Row(*one) for one in db.execute(ROWS)):
        number = bisect_right(starts[row.tenant_id], row.at) - 1
        if number >= 0 and row.at < parts[row.tenant_id][number].cell.until:
            parts[row.tenant_id][number].rows.append(row)
        else:
            outside.append(row)
    return outside


def _add_events(account: StripeAccount, parts: Mapping[str, list[Part]], found: Judgement) -> None:
    """Adds what Stripe counts to the parts whose meter and time it is."""
    of_meter: dict[tuple[str, str], list[Part]] = defaultdict(list)
    for part in sorted((part for of_tenant in parts.values() for part in of_tenant), key=lambda part: part.cell.since):
        of_meter[part.cell.tenure.customer_id, part.cell.tenure.event_name].append(part)
    for event in account.meter_events():
        if event["status"] != "accepted":
            continue
        at = datetime.fromtimestamp(event["timestamp"], UTC)
        candidates = of_meter.get((event["customer"], event["event_name"]), [])
        number = bisect_right([part.cell.since for part in candidates], at) - 1
        if number < 0 or at >= candidates[number].cell.until:
            found.problems.append((event["customer"], f"event {event['identifier']} at {at} counts, when nothing billed it"))
        else:
            candidates[number].event_tokens += int(event["value"])
        found.figures["events"] += 1
        found.figures["tokens at Stripe"] += int(event["value"])


# --- Invoices -----------------------------------------------------------------------------------------------------------


def invoices(account: StripeAccount) -> Iterator[dict[str, Any]]:
    """All of them, with all their lines."""
    after = ""
    while True:
        page = account.get(f"invoices?limit=100{after}")
        for invoice in page["data"]:
            lines = invoice["lines"]["data"]
            while invoice["lines"]["has_more"]:
                invoice["lines"] = account.get(f"invoices/{invoice['id']}/lines?limit=100&starting_after={lines[-1]['id']}")
                lines += invoice["lines"]["data"]
            yield {**invoice, "lines": lines}
        if not page["has_more"]:
            return
        after = f"&starting_after={page['data'][-1]['id']}"


def _charges(account: StripeAccount, truth: Truth, found: Judgement) -> Iterator[Charge]:
    """The metered charges of invoices that close a period."""
    for invoice in invoices(account):
        if invoice["billing_reason"] == "subscription_create":
            continue
        found.figures["final invoices" if invoice["status"] != "draft" else "drafts"] += 1
        charges: dict[tuple[str, str, int, int], Charge] = {}
        for line in invoice["lines"]:
            parent = line["parent"]["subscription_item_details"]
            price_id = line["pricing"]["price_details"]["price"] if line["pricing"] else ""
            if parent is None or parent["proration"] or price_id not in truth.terms:
                found.figures["other lines"] += 1
                continue
            key = parent["subscription_item"], price_id, line["period"]["start"], line["period"]["end"]
            since, until = (datetime.fromtimestamp(second, UTC) for second in key[2:])
            charge = charges.setdefault(key, Charge(invoice, key[0], price_id, since, until))
            charge.lines.append((line["quantity"], line["amount"]))
            found.figures["metered lines"] += invoice["status"] != "draft"
        yield from charges.values()


def _explain(charge: Charge, parts: Mapping[str, list[Part]], truth: Truth, found: Judgement) -> None:
    """Finds the part that a charge bills, and says where the two differ."""
    mine = [
        part
        for of_tenant in parts.values()
        for part in of_tenant
        if part.cell.tenure.usage_item_id == charge.usage_item_id
        and truth.price_of_event[part.cell.tenure.event_name] == charge.price_id
        and (part.cell.since, part.cell.until) == (charge.since, charge.until)
    ]
    what = f"invoice {charge.invoice['id']} ({charge.usage_item_id}, {charge.since:%m-%d %H:%M:%S} to {charge.until:%m-%d %H:%M:%S})"
    if charge.invoice["status"] == "draft":
        if mine:
            mine[0].charges.append(charge)
        return
    if not mine:
        found.unexplained.add(charge.invoice["id"])
        found.problems.append((charge.invoice["customer"], f"{what} bills a time that no tenant's item has"))
        return
    [part] = mine
    part.charges.append(charge)
    wrong = []
    if charge.quantity != part.billed_tokens:
        wrong.append(f"bills {charge.quantity} tokens, {part.billed_tokens} are marked as billed")
    expected = truth.terms[charge.price_id].lines(charge.quantity)
    is_free = part.cell.since < part.cell.tenure.first_end  # a trial's end; without one, the subscription's beginning
    if [quantity for quantity, _ in charge.lines] != [quantity for quantity, _ in expected]:
        wrong.append(f"has lines of {charge.lines}, expected were {expected}")
    elif not all(amount in ({0} if is_free else rounded(exact)) for (_, amount), (_, exact) in zip(charge.lines, expected, strict=True)):
        wrong.append(f"costs {charge.lines}, expected was {[(units, float(exact)) for units, exact in expected]}")
    found.problems += [(part.tenant, f"{what} {one}") for one in wrong]
    if wrong:
        found.unexplained.add(charge.invoice["id"])
    else:
        found.figures["charges explained to the cent"] += 1
        found.figures["tokens on final invoices"] += charge.quantity
        found.figures["lines on an exact tie"] += sum(len(rounded(exact)) > 1 for _, exact in expected)


# --- Parts and sums -----------------------------------------------------------------------------------------------------


def _judge_part(part: Part, truth: Truth, found: Judgement) -> None:
    """What is billed is what Stripe counts, is on one invoice once that is due, and what is not billed could not be."""
    if part.event_tokens != part.billed_tokens:
        found.problems.append((part.tenant, f"{part}: {part.billed_tokens} tokens are marked as billed, Stripe counts {part.event_tokens}"))
    is_closed = part.cell.closes_at + timedelta(hours=73) < truth.now
    final = [charge for charge in part.charges if charge.invoice["status"] != "draft"]
    if len(part.charges) > 1 or (part.billed_tokens and is_closed and not final):
        wrong = f"{part}: {part.billed_tokens} tokens are on {len(part.charges)} invoices, {len(final)} of them final"
        found.problems.append((part.tenant, wrong))
    found.figures["tokens billed in periods that are not final"] += 0 if final else part.billed_tokens
    finalized_at = datetime.fromtimestamp(final[0].invoice["status_transitions"]["finalized_at"], UTC) if final else None
    for row in (row for row in part.rows if not row.billed):
        recorded_at = truth.recorded[row.tenant_id, row.at]
        if finalized_at and _could_not_be_sent(recorded_at, finalized_at, truth.outages):
            found.figures["tokens recorded too late for their invoice"] += row.tokens
            found.lacking.add(final[0].invoice["id"])
        elif finalized_at and (row.tenant_id, row.at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)) in truth.disowned:
            found.figures["tokens disowned and not sent anew in time"] += row.tokens
            found.lacking.add(final[0].invoice["id"])
        elif row.at < recorded_at - timedelta(days=34):
            found.figures["tokens recorded too late for Stripe"] += row.tokens
        else:
            wrong = f"{part}: row {row.id} at {row.at}, recorded {recorded_at}, is not billed; final: {finalized_at}"
            found.problems.append((part.tenant, wrong))


def _could_not_be_sent(recorded_at: datetime, finalized_at: datetime, outages: Sequence[Outage]) -> bool:
    """Whether no run could send between the two."""
    since = recorded_at
    for outage in sorted(outages, key=lambda one: one.since):
        if outage.since <= since + RUNS_WITHIN < outage.until + RUNS_WITHIN:
            since = max(since, outage.until)
    return since + RUNS_WITHIN >= finalized_at


def _judge_sums(db: psycopg.Connection[tuple[Any, ...]], found: Judgement) -> None:
    """Rows = billed + set aside, of each tenant and in sum; nothing is on its way any more."""
    rows: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    for row in (Row(*one) for one in db.execute(ROWS)):
        rows[row.tenant_id] += row.tokens
        marked[row.tenant_id] += row.tokens * row.billed
    reports: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for tenant_id, fate, tokens in db.execute(REPORTS):
        reports[tenant_id][fate] += tokens
    for tenant_id, tokens in rows.items():
        fates = reports[tenant_id]
        if fates["pending"]:
            found.problems.append((tenant_id, f"{fates['pending']} tokens are still on their way"))
        if tokens != marked[tenant_id] + fates["aside"] + fates["pending"] or marked[tenant_id] != fates["billed"]:
            wrong = f"{tokens} tokens of rows, {marked[tenant_id]} marked, by reports {dict(fates)}"
            found.problems.append((tenant_id, wrong))
    figures = found.figures
    billed, open_tokens = sum(marked.values()), figures["tokens billed in periods that are not final"]
    if not found.problems and not billed == figures["tokens at Stripe"] == figures["tokens on final invoices"] + open_tokens:
        found.problems.append(
            ("all", f"{billed} tokens are billed, Stripe counts {figures['tokens at Stripe']}, and not so many are invoiced")
        )
    found.figures["tokens of rows"] += sum(rows.values())
    found.figures["tokens billed"] += sum(marked.values())
    found.figures["tokens set aside"] += sum(fates["aside"] for fates in reports.values())
