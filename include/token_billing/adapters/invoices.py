"""Invoices and their lines as they were last read: typed functions over `sql/invoices.sql`. None of them opens or ends a transaction."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from token_billing.adapters.database import Connection, storable
from token_billing.adapters.queries import queries
from token_billing.invoices import InvoiceLine, LineKind, ReadInvoice
from token_billing.periods import BillingPeriod
from token_billing.stripe_events import FINAL_INVOICE_EVENTS

INVOICES = queries("invoices.sql")


def metered_prices(db: Connection) -> set[str]:
    """The prices that are known to bill usage."""
    return {price_id for (price_id,) in db.execute(INVOICES["metered_prices"])}


def listed_until(db: Connection) -> datetime | None:
    """Until when every invoice that was made has been read; None before the first listing."""
    found = db.execute(INVOICES["listed_until"]).fetchone()
    return found[0] if found else None


def advance_cursor(db: Connection, until: datetime) -> None:
    """Every invoice made until then has been read."""
    db.execute(INVOICES["advance_cursor"], {"until": until})


def invoices_to_look_at(db: Connection, listed_since: datetime, began: datetime, read_before: datetime, news_since: datetime) -> list[str]:
    """Known invoices that the listing since then, begun at a time, did not show and that may have changed: of older drafts those that were
    last read before a time, of others those that events tell of that were handled since another."""
    parameters = {"listed_since": listed_since, "began": began, "read_before": read_before, "news_since": news_since}
    return [found for (found,) in db.execute(INVOICES["invoices_to_look_at"], parameters)]


def store_invoice(db: Connection, read: ReadInvoice) -> bool:
    """Keeps an invoice and its lines as Stripe showed them; False where a newer reading is kept. To be called in a transaction."""
    invoice = read.invoice
    if db.execute(INVOICES["store_invoice"], vars(invoice)).fetchone() is None:
        return False
    lines = [_row(line) for line in read.lines]
    if [_row(line) for line in lines_of(db, [invoice.id])[invoice.id]] == lines:
        return True
    db.execute(INVOICES["drop_lines"], {"id": invoice.id})
    db.cursor().executemany(INVOICES["add_line"], [{**row, "invoice_id": invoice.id, "position": n} for n, row in enumerate(lines)])
    # safeguard: lines that changed are compared again
    db.execute(INVOICES["lines_changed"], {"id": invoice.id})
    return True


def lines_of(db: Connection, invoice_ids: Collection[str]) -> dict[str, list[InvoiceLine]]:
    """The lines of each of the invoices, in their order."""
    found: dict[str, list[InvoiceLine]] = {invoice_id: [] for invoice_id in invoice_ids}
    for invoice_id, *line in db.execute(INVOICES["lines_of"], {"ids": list(invoice_ids)}):
        found[invoice_id].append(_line(line))
    return found


def forget_draft(db: Connection, invoice_id: str, began: datetime) -> None:
    """Stripe has no such draft any more, as a run that began at a time found out."""
    db.execute(INVOICES["forget_draft"], {"id": invoice_id, "began": began})


def final_invoices_told(db: Connection, since: datetime) -> datetime | None:
    """When the newest event about a final invoice was handled, of those handled since then; None where there is none."""
    found = db.execute(INVOICES["final_invoices_told"], {"since": since, "types": list(FINAL_INVOICE_EVENTS)}).fetchone()
    return found[0] if found else None


def _row(line: InvoiceLine) -> dict[str, Any]:
    """As the queries name it."""
    row = {**vars(line), "period_start": line.period.start, "period_end": line.period.end, "description": storable(line.description)}
    del row["period"]
    return row


def _line(row: Sequence[Any]) -> InvoiceLine:
    line_id, kind, item, price, quantity, unit_cents, amount_cents, currency, start, end, *rest = row
    period = BillingPeriod(start, end)
    return InvoiceLine(line_id, LineKind(kind), item, price, quantity, unit_cents, amount_cents, currency, period, *rest)
