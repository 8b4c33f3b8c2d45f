"""What became of every invoice that closes a period of ours, and what is missing on it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from aiolimiter import AsyncLimiter

from token_billing.adapters import closings, invoiced_periods
from token_billing.adapters.database import Connection, repeatable_read
from token_billing.adapters.stripe_gateway.drafts import DraftGateway
from token_billing.closing import Closing, ClosingInvoice, Looked, Missing, Why
from token_billing.model import Clock
from token_billing.settings import PushSettings

#: Stripe's list may show an invoice a while after it was made, and clocks differ.
LISTED_AGAIN = timedelta(hours=1)


async def look_at_drafts(db: Connection, stripe: DraftGateway, pace: PushSettings, clock: Clock) -> list[Looked]:
    """Reads the drafts at Stripe, what was made since the last look, and what became of those that were open; keeps what it saw, and works
    out what is missing as of one instant. Raises StripeUnavailable and StripeRefusesKey, with nothing forgotten that was not looked at."""
    now, items, since = clock(), closings.billed_items(db), closings.listed_until(db)
    drafts = await stripe.drafts(items, now)
    # safeguard: what was never seen as a draft
    made = await stripe.made_since(since - LISTED_AGAIN, items, now) if since else []  # before the first look, others were in charge
    listed = [*drafts, *made]
    seen: dict[str, ClosingInvoice | None] = {one.invoice_id: one for one in listed}
    with db.transaction():
        for one in listed:
            closings.note_appeared(db, one)
        _keep(db, seen)
        # safeguard: what was not listed is listed later
        if not stripe.unreadable:
            closings.note_listed(db, now)
    reads = AsyncLimiter(pace.reads_per_second, 1)
    no_draft_any_more = {}
    for closing in closings.open_closings(db, now):
        if closing.final_at is None and closing.invoice_id not in seen:
            await reads.acquire()
            no_draft_any_more[closing.invoice_id] = await stripe.invoice(closing.invoice_id, items, clock())
    with db.transaction():
        _keep(db, no_draft_any_more)
    return _what_is_missing(db, seen | no_draft_any_more, clock())


def _keep(db: Connection, invoices: Mapping[str, ClosingInvoice | None]) -> None:
    """Whoever pushes usage of these periods knows of their invoices."""
    invoiced_periods.note_invoiced_periods(db, [period for invoice in invoices.values() if invoice for period in invoice.periods])


def _what_is_missing(db: Connection, invoices: Mapping[str, ClosingInvoice | None], now: datetime) -> list[Looked]:
    with repeatable_read(db):
        known = [one for one in closings.open_closings(db, now) if one.final_at is not None or one.invoice_id in invoices]
        final_at = {one.invoice_id: _final_at(one, invoices.get(one.invoice_id), now) for one in known}
        missing = closings.missing_usage(db, final_at, now)
    looked = [Looked(one, invoices.get(one.invoice_id), final_at[one.invoice_id], tuple(missing[one.invoice_id])) for one in known]
    gone = Missing(Why.INVOICE_GONE, "", now, 1, 0)
    return [replace(one, missing=(gone, *one.missing)) if one.invoice is None and one.final_at is None else one for one in looked]


def _final_at(closing: Closing, invoice: ClosingInvoice | None, now: datetime) -> datetime | None:
    if closing.final_at is None and invoice is not None and invoice.is_final:
        return invoice.final_at or now
    return closing.final_at
