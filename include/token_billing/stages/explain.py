"""explain: why an invoice line says what it says, down to the rows; and from a row or a report up to the line that bills it."""

from collections.abc import Sequence
from dataclasses import replace

from token_billing.adapters import explaining, invoice_comparison, invoices, ledger
from token_billing.adapters.database import Connect, Connection, repeatable_read, session
from token_billing.errors import NothingToExplain
from token_billing.explanation import (
    ExplainedCharge,
    ExplainedReport,
    Explanation,
    HeldRows,
    explained_charges,
    next_step,
    next_step_of_row,
    readings,
)

#: What names are written like.
NAMES = "an invoice line (il_…), an invoice (in_…), a report (report:4711, or its identifier usage-…) or a row of token_usage (row:123456)"


def explain(connect: Connect, name: str, *, with_row_ids: bool = False) -> Explanation:
    """What a name leads to: an invoice, or one of its lines, to the reports it adds up and the rows they hold; a row to its report, a
    report to the lines that bill it. Tokens are added up again on the way. `with_row_ids`: every id, not only the first and last.

    Changes nothing. Raises NothingToExplain for a name that nobody knows."""
    with session(connect) as db:
        ledger.identity(db)
        with repeatable_read(db):
            kind, _, number = name.partition(":")
            if kind in ("report", "row"):
                if not number.isdecimal() or len(number) > 18:
                    raise NothingToExplain(f"{name!r} names no {kind}: write {kind}: and its id, as in {kind}:4711")
                return (_of_row if kind == "row" else _of_report)(db, name, int(number), with_row_ids)
            report_id = explaining.report_named(db, name)
            return _of_invoice(db, name, with_row_ids) if report_id is None else _of_report(db, name, report_id, with_row_ids)


def _of_row(db: Connection, name: str, row_id: int, with_row_ids: bool) -> Explanation:
    row = explaining.row(db, row_id)
    if row is None:
        raise NothingToExplain(f"token_usage has no row {row_id}: it was never recorded, or retention has deleted it")
    if row.report_id is None:
        return Explanation(name, row, next_step=next_step_of_row(row))
    return replace(_of_report(db, name, row.report_id, with_row_ids), row=row)


def _of_report(db: Connection, name: str, report_id: int, with_row_ids: bool) -> Explanation:
    found = _with_rows(db, explaining.reports(db, [report_id]), with_row_ids)
    if not found:
        raise NothingToExplain(f"there is no report {report_id} in billing.usage_report")
    [report] = found
    charges = [
        charge for invoice_id in explaining.invoices_billing(db, report) for charge in _charges(db, invoice_id) if _bills(charge, report)
    ]
    return Explanation(
        name,
        report=report,
        attempts=explaining.attempts(db, report_id),
        taken_back=explaining.taken_back(db, report_id),
        charges=tuple(charges),
        next_step=None if charges else next_step(report),
    )


def _of_invoice(db: Connection, name: str, with_row_ids: bool) -> Explanation:
    charges = [charge for charge in _charges(db, name) if name == charge.invoice.id or name in {line.id for line in charge.lines}]
    if not charges:
        raise NothingToExplain(
            f"{name!r} is no name that this ledger knows. It knows {NAMES}. Invoices are read by `reconcile_invoices`, daily and when one "
            "is finalised: trigger that DAG where the invoice is newer"
        )
    return Explanation(
        name, charges=tuple(replace(charge, reports=tuple(_with_rows(db, charge.reports, with_row_ids))) for charge in charges)
    )


def _charges(db: Connection, name: str) -> list[ExplainedCharge]:
    """What the invoice of that name, or of the line of that name, bills, with the reports it adds up but not their rows."""
    invoice = explaining.invoice(db, name)
    if invoice is None:
        return []
    return [_traced(db, charge) for charge in explained_charges(invoice, invoices.lines_of(db, [invoice.id])[invoice.id])]


def _traced(db: Connection, charge: ExplainedCharge) -> ExplainedCharge:
    line = charge.lines[0]
    decided = explaining.decided(db, line.proposal_id)
    if decided is not None:
        ids: Sequence[int] = decided.report_ids
    else:
        ids = explaining.accepted_reports(db, charge.invoice.customer_id, line.usage_item_id, line.period) if charge.is_metered else []
    reports, price = tuple(explaining.reports(db, ids)), explaining.price(db, line.price_id)
    trials = invoice_comparison.trials(db, {charge.invoice.subscription_id or ""}).values()
    return replace(charge, price=price, decided=decided, reports=reports, is_free=any(one.is_free(line.period) for one in trials))


def _bills(charge: ExplainedCharge, report: ExplainedReport) -> bool:
    return any(one.id == report.id for one in charge.reports)


def _with_rows(db: Connection, reports: Sequence[ExplainedReport], with_row_ids: bool) -> list[ExplainedReport]:
    held: dict[int, HeldRows] = {}
    for tenant_id, stretch, report_ids in readings(reports):
        held |= explaining.held_rows(db, tenant_id, stretch, report_ids, with_ids=with_row_ids)
    return [replace(report, held=held.get(report.id, HeldRows())) for report in reports]
