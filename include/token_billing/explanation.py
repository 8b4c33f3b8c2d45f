"""Why an invoice line says what it says: the reports it adds up, and the rows that each of them holds; and the way back. Pure.

What one says of the other is added up again on the way, and what differs is told."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from token_billing.invoices import Invoice, InvoiceLine, LineKind
from token_billing.model import ReportState
from token_billing.rating import Price, RatedLine, comes_to, money, rate
from token_billing.windows import Side, Window

#: Reports that lie no further apart are looked up in one reading of token_usage: reading so many hours of a table that only has a
#: block-range index costs about as much as finding where an hour begins (`make bench-explain`).
ONE_READING = timedelta(hours=6)


class HeldRows(NamedTuple):
    """The rows of token_usage that a report holds: how many, their tokens, the first and the last id, and all ids where they were
    asked for, in order."""

    row_count: int = 0
    token_count: int = 0
    first_id: int | None = None
    last_id: int | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ExplainedReport:
    """A usage report and the rows it holds, None where they were not looked up; tokens are whole. `attempt_count`: how often it was
    sent, or began to be."""

    id: int
    tenant_id: str
    window: Window
    side: Side
    revision: int
    generation: int
    identifier: str
    state: ReportState
    quarantine_reason: str | None
    customer_id: str | None
    usage_item_id: str | None
    event_time: datetime | None
    row_count: int
    token_count: int
    attempt_count: int
    frozen_at: datetime
    accepted_at: datetime | None
    confirmed_at: datetime | None
    billed_at: datetime | None
    quarantined_at: datetime | None
    held: HeldRows | None = None

    def differences(self) -> Iterator[str]:
        """What its rows say otherwise."""
        if self.held is not None and (self.held.row_count, self.held.token_count) != (self.row_count, self.token_count):
            yield (
                f"report {self.id} froze {self.token_count:,} tokens of {self.row_count:,} rows, and holds {self.held.token_count:,} of "
                f'{self.held.row_count:,} rows now: see the runbook, "Rows changed"'
            )


class Attempt(NamedTuple):
    """One noted attempt at sending a report, and what came of it; None where no answer is known."""

    number: int
    identifier: str
    noted_at: datetime
    answered_at: datetime | None
    outcome: str | None
    http_status: int | None
    message: str | None


class TakenBack(NamedTuple):
    """A generation of a report that Stripe had accepted and disowned."""

    generation: int
    identifier: str
    revoked_at: datetime
    revoked_by: str
    cause: str
    evidence: str


@dataclass(frozen=True)
class ExplainedRow:
    """A row of token usage. `revision` and `frozen_at` are those of the first fence that sees it, None where no fence does."""

    id: int
    tenant_id: str
    model: str
    created_at: datetime
    input_tokens: int
    output_tokens: int
    billed: bool
    revision: int | None
    frozen_at: datetime | None
    report_id: int | None


class Decided(NamedTuple):
    """What was decided about usage that a final invoice did not bill."""

    proposal_id: int
    decision: str | None
    decided_by: str | None
    decided_at: datetime | None
    token_count: int
    report_ids: Sequence[int]


@dataclass(frozen=True)
class ExplainedCharge:
    """What an invoice bills for one item, price and period: its lines, and the reports that they add up. `price` is None where it was
    never read. `decided`: the proposal that made the line. `is_free`: in a trial, or while collection is paused. `reports` may be left out:
    then nothing is added up."""

    invoice: Invoice
    lines: tuple[InvoiceLine, ...]
    price: Price | None = None
    decided: Decided | None = None
    reports: tuple[ExplainedReport, ...] = ()
    is_free: bool = False

    @property
    def is_metered(self) -> bool:
        """Whether it bills usage. A subscription's first invoice names its metered items as well, and bills nothing of theirs."""
        return self.lines[0].kind is LineKind.USAGE and (self.invoice.closes(self.lines[0].period) or self.quantity > 0)

    @property
    def quantity(self) -> int:
        """Tokens that the lines bill."""
        return sum(line.quantity for line in self.lines)

    def has(self, line_id: str) -> bool:
        """Whether the line is one of this charge's."""
        return any(line.id == line_id for line in self.lines)

    @property
    def too_late(self) -> tuple[ExplainedReport, ...]:
        """Reports of the period that Stripe accepted when the invoice was final already, where the lines do without them."""
        final = self.invoice.finalized_at
        if final is None or sum(report.token_count for report in self.reports) == self.quantity:
            return ()
        return tuple(report for report in self.reports if report.accepted_at is not None and report.accepted_at > final)

    @property
    def billed_reports(self) -> tuple[ExplainedReport, ...]:
        """The reports that the lines add up."""
        late = {report.id for report in self.too_late}
        return tuple(report for report in self.reports if report.id not in late)

    @property
    def rated(self) -> list[RatedLine]:
        """What the quantity comes to under the price, line by line."""
        return rate(self.price, self.quantity) if self.price is not None and self.is_metered and self.quantity >= 0 else []

    def differences(self) -> Iterator[str]:
        """What the lines, the price, the reports and the rows say otherwise of each other."""
        for report in self.reports:
            yield from report.differences()
        if not self.is_metered:
            return
        reported = sum(report.token_count for report in self.billed_reports)
        if reported != self.quantity:
            yield f"the lines bill {self.quantity:,} tokens, the reports of the period that Stripe accepted are {reported:,}"
        for report in self.too_late:
            yield f"report {report.id}, {report.token_count:,} tokens, was accepted when the invoice was final: it is not on it"
        if self.price is None:
            yield f"price {self.lines[0].price_id} was never read, so the amount could not be rated again"
            return
        amount, rated = sum(line.amount_cents for line in self.lines), self.rated
        if not comes_to(rated, amount) and not (self.is_free and amount == 0):
            ours = money(sum(line.amount_cents for line in rated), self.price.currency)
            yield f"the lines bill {money(amount, self.lines[0].currency)}, the price asks {ours}"


@dataclass(frozen=True)
class Explanation:
    """What a name stands for, and what it leads to: a row to its report, a report to what bills it, a line to its reports and rows.
    `next_step`: why the way ends where it does, and what happens next or must be done."""

    name: str
    row: ExplainedRow | None = None
    report: ExplainedReport | None = None
    attempts: tuple[Attempt, ...] = ()
    taken_back: tuple[TakenBack, ...] = ()
    charges: tuple[ExplainedCharge, ...] = ()
    next_step: str | None = None

    @property
    def differences(self) -> list[str]:
        """All that does not add up on the way."""
        found = list(self.report.differences()) if self.report else []
        if self.report and self.row and self.row.billed != (self.report.state == ReportState.BILLED):
            found.append(f"the row is {'' if self.row.billed else 'not '}marked billed, and its report is {self.report.state}")
        return found + [one for charge in self.charges for one in charge.differences()]


def explained_charges(invoice: Invoice, lines: Iterable[InvoiceLine]) -> list[ExplainedCharge]:
    """An invoice's lines by what they are a part of, in their order: a metered charge has a line for each tier, what a proposal made is a
    charge of its own."""
    parts: dict[object, list[InvoiceLine]] = {}
    for line in lines:
        parts.setdefault((line.kind, line.usage_item_id, line.price_id, line.period, line.proposal_id), []).append(line)
    return [ExplainedCharge(invoice, tuple(part)) for part in parts.values()]


def readings(reports: Iterable[ExplainedReport]) -> list[tuple[str, Side, list[int]]]:
    """Which stretches of time of which tenant to read for the rows of some reports, and the ids of the reports that lie in each."""
    found: list[tuple[str, Side, list[int]]] = []
    for report in sorted(reports, key=lambda report: (report.tenant_id, report.side)):
        tenant_id, stretch, ids = found[-1] if found else ("", report.side, [])
        if ids and tenant_id == report.tenant_id and report.side.start <= stretch.end + ONE_READING:
            found[-1] = tenant_id, Side(stretch.start, max(stretch.end, report.side.end)), [*ids, report.id]
        else:
            found.append((report.tenant_id, report.side, [report.id]))
    return found


#: Why a report that no invoice is known to bill is not billed yet, and what comes next.
_NEXT_STEPS = {
    ReportState.FROZEN: "it is frozen and was not sent yet: the push of its hour sends it, or `report_late_usage` within the hour",
    ReportState.SENDING: "it is being sent, or who sent it died: the next push of its hour finds out, or `report_late_usage`",
    ReportState.UNRESOLVED: 'whether Stripe has it is not known yet: see the runbook, "Unresolved reports"',
    ReportState.ACCEPTED: "Stripe has it; its rows are marked by the next `mark_billed` of its hour, or by `report_late_usage`",
    ReportState.REJECTED: 'Stripe refused it: see the runbook, "Rejected reports"',
    ReportState.BILLED: "Stripe has it, and no invoice that bills its period is known yet: its billing period has not ended, or "
    "`reconcile_invoices` has not read the invoice",
}


def next_step(report: ExplainedReport) -> str:
    """Why the report is on no invoice that is known, and what comes next."""
    if report.state == ReportState.QUARANTINED:
        return f'it was set aside as {report.quarantine_reason}: see the runbook, "Quarantined usage"'
    return _NEXT_STEPS[report.state]


def next_step_of_row(row: ExplainedRow) -> str:
    """Why the row is in no report, and what comes next."""
    if row.revision is not None:
        if row.billed:
            return "it is marked billed and in no report: another job billed it before the adoption"
        return 'a fence sees it and no report holds it: it was changed behind the ledger\'s back, see the runbook, "Conservation"'
    if row.billed:
        return "it is marked billed, and no fence has seen it: another job billed it before the adoption"
    return "no fence has seen it yet: `report_usage` freezes it when its hour has ended, `report_late_usage` where it was recorded later"
