"""What leads from invoice lines to rows and back: typed functions over `sql/explain.sql`. None of them opens or ends a transaction; the
stage does."""

from collections.abc import Sequence

from token_billing.adapters.database import Connection
from token_billing.adapters.price_rows import price_of_row
from token_billing.adapters.queries import queries
from token_billing.explanation import Attempt, Decided, ExplainedReport, ExplainedRow, HeldRows, TakenBack
from token_billing.invoices import Invoice
from token_billing.model import ReportState
from token_billing.periods import BillingPeriod
from token_billing.rating import Price
from token_billing.windows import Side, Window

EXPLAIN = queries("explain.sql")


def invoice(db: Connection, name: str) -> Invoice | None:
    """The invoice of that name, or the one that the line of that name is on; None where nobody knows the name."""
    found = db.execute(EXPLAIN["invoice"], {"name": name}).fetchone()
    return Invoice(*found) if found else None


def invoices_billing(db: Connection, report: ExplainedReport) -> list[str]:
    """The invoices whose lines bill the report's item at its time, or what a proposal decided about it."""
    parameters = {"usage_item_id": report.usage_item_id, "event_time": report.event_time, "report_id": report.id}
    return [invoice_id for (invoice_id,) in db.execute(EXPLAIN["invoices_billing"], parameters)]


def price(db: Connection, price_id: str | None) -> Price | None:
    """What units cost under a price; None where it was never read."""
    found = db.execute(EXPLAIN["price"], {"price_id": price_id}).fetchone()
    return price_of_row(*found) if found else None


def decided(db: Connection, proposal_id: int | None) -> Decided | None:
    """What a proposal decided; None where there is none."""
    found = db.execute(EXPLAIN["decided"], {"id": proposal_id}).fetchone()
    return Decided(*found) if found else None


def accepted_reports(db: Connection, customer_id: str, usage_item_id: str | None, period: BillingPeriod) -> list[int]:
    """The reports that Stripe accepted for a customer's item in a period."""
    parameters = {"customer_id": customer_id, "usage_item_id": usage_item_id, "period_start": period.start, "period_end": period.end}
    return [report_id for (report_id,) in db.execute(EXPLAIN["accepted_reports"], parameters)]


def reports(db: Connection, ids: Sequence[int]) -> list[ExplainedReport]:
    """The reports of these ids, in the order of their time, without their rows."""
    return [
        ExplainedReport(report_id, tenant_id, Window(window), Side(start, end), revision, generation, identifier, ReportState(state), *rest)
        for report_id, tenant_id, window, start, end, revision, generation, identifier, state, *rest in (
            db.execute(EXPLAIN["reports"], {"ids": list(ids)})
        )
    ]


def report_named(db: Connection, identifier: str) -> int | None:
    """The report that has, or once had, an identifier."""
    found = db.execute(EXPLAIN["report_named"], {"identifier": identifier}).fetchone()
    return found[0] if found else None


def attempts(db: Connection, report_id: int) -> tuple[Attempt, ...]:
    """Every attempt at sending a report, the first one first."""
    return tuple(Attempt(*row) for row in db.execute(EXPLAIN["attempts"], {"id": report_id}))


def taken_back(db: Connection, report_id: int) -> tuple[TakenBack, ...]:
    """The generations of a report that Stripe disowned."""
    return tuple(TakenBack(*row) for row in db.execute(EXPLAIN["taken_back"], {"id": report_id}))


def held_rows(db: Connection, tenant_id: str, stretch: Side, report_ids: Sequence[int], *, with_ids: bool) -> dict[int, HeldRows]:
    """The rows that each of a tenant's reports in a stretch of time holds; none is left out that holds any."""
    parameters = {
        "tenant_id": tenant_id,
        "start": stretch.start,
        "end": stretch.end,
        "report_ids": list(report_ids),
        "with_ids": with_ids,
    }
    return {
        report_id: HeldRows(rows, tokens, first, last, tuple(sorted(ids or ())) if with_ids else None)
        for report_id, rows, tokens, first, last, ids in db.execute(EXPLAIN["held_rows"], parameters)
    }


def row(db: Connection, row_id: int) -> ExplainedRow | None:
    """A row of token usage, with the report that holds it; None where there is no such row."""
    found = db.execute(EXPLAIN["row"], {"id": row_id}).fetchone()
    return ExplainedRow(*found) if found else None
