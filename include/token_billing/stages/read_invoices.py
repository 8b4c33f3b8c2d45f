"""read_invoices: Stripe's invoices and their lines as they are now, kept for whoever compares or explains them."""

import asyncio
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta

from token_billing.adapters import discrepancies, invoices, ledger
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.adapters.stripe_gateway.connection import open_gateway
from token_billing.adapters.stripe_gateway.invoices import InvoiceGateway, Reading
from token_billing.invoices import ReadInvoice
from token_billing.model import Clock
from token_billing.periods import LONGEST_GRACE
from token_billing.reconciliation import Cause, Difference

log = logging.getLogger(__name__)

#: What was listed lately is listed again: in that time a draft becomes final, however long its grace.
OVERLAP = LONGEST_GRACE + timedelta(days=1)

#: The first listing looks so far back: two billing periods of a month, and the grace after them. Usage that is older cannot be billed
#: any more.
LOOKS_BACK = timedelta(days=65)

#: Drafts that nobody finalises are looked at again once a day; and whenever an event tells of them.
STALE_DRAFT = timedelta(hours=20)


def read_invoices(connect: Connect, target: StripeTarget, clock: Clock) -> int:
    """Reads every invoice that was made lately or has changed, and keeps it; returns how many it read.

    Safe to run twice at once, and to be killed anywhere: an older reading never overwrites a newer one, and the next run lists again what
    this one did not get to. Raises InvoicesNotListed, StripeUnavailable, StripeRefusesKey and WrongStripeAccount."""
    return asyncio.run(_read(connect, target, clock))


async def _read(connect: Connect, target: StripeTarget, clock: Clock) -> int:
    with session(connect) as db:
        identity, began = ledger.identity(db), clock()
        async with open_gateway(InvoiceGateway, target) as stripe:
            ledger.pin_account(db, identity.account, await stripe.account(), clock())
            reading = Reading(identity.ledger_id, clock, invoices.metered_prices(db))
            listed_until = invoices.listed_until(db)
            since = listed_until - OVERLAP if listed_until else began - LOOKS_BACK
            count = 0
            async for page in stripe.invoices_since(since, reading):
                count += _store(db, page)
            for invoice_id in invoices.invoices_to_look_at(db, since, began, began - STALE_DRAFT, since):
                found = await stripe.invoice(invoice_id, reading)
                count += _store(db, [found] if found else [])
                if found is None:
                    _forget(db, invoice_id, began)
        _tell_of_unreadable(db, reading, clock())
        invoices.advance_cursor(db, began)
    log.info("%d invoices read", count)
    return count


def _store(db: Connection, page: Iterable[ReadInvoice]) -> int:
    """In one order, so that two runs at once cannot wait for each other."""
    with db.transaction():
        return sum(invoices.store_invoice(db, read) for read in sorted(page, key=lambda read: read.invoice.id))


def _tell_of_unreadable(db: Connection, reading: Reading, now: datetime) -> None:
    """What cannot be read is not compared: somebody has to know, until it is."""
    details = "invoice {} cannot be understood ({}), so nothing tells whether what it bills is what was used; look at it at Stripe"
    found = [
        Difference(Cause.UNEXPLAINED, invoice_id, details.format(invoice_id, why), stripe_id=invoice_id)
        for invoice_id, why in sorted(reading.unreadable.items())
    ]
    with db.transaction():
        # safeguard: an unreadable invoice is told
        discrepancies.note_differences(db, list(reading.unreadable), found, now)


def _forget(db: Connection, invoice_id: str, began: datetime) -> None:
    log.warning("Stripe has no draft %s any more", invoice_id)
    invoices.forget_draft(db, invoice_id, began)
