"""reconcile_invoices: every final invoice held against our own rows, to the token and to the cent; what differs is named with its cause."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from token_billing import invoice_frames
from token_billing.adapters import discrepancies, invoice_comparison, ledger, statements
from token_billing.adapters.database import Connect, Connection, retry_serialization, session
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.adapters.stripe_gateway.connection import open_gateway
from token_billing.adapters.stripe_gateway.invoices import InvoiceGateway
from token_billing.adapters.stripe_gateway.summaries import MeterSummaries
from token_billing.invoice_reconciliation import Compared, compare_charge, compare_manual_line
from token_billing.model import Clock
from token_billing.reconciliation import Difference
from token_billing.stages.changed_rows import changed_rows
from token_billing.stages.invoice_books import Books, evidence, open_books, with_its_trial, with_prices_of_today
from token_billing.stages.quarantined import quarantined_usage

log = logging.getLogger(__name__)


def compare_invoices(connect: Connect, target: StripeTarget, clock: Clock, overrides: Mapping[str, str]) -> dict[str, int]:
    """Compares the final invoices that were not compared since they changed, those that became final lately, and those on which something
    differed; returns counts. `overrides`: prices that settings name in the catalogue's stead.

    All that is found is written down in one transaction with the statement of it: killed before, nothing was compared; two at once come to
    the same. Raises StripeUnavailable, StripeRefusesKey and WrongStripeAccount."""
    return asyncio.run(_compare(connect, target, clock, overrides))


async def _compare(connect: Connect, target: StripeTarget, clock: Clock, overrides: Mapping[str, str]) -> dict[str, int]:
    with session(connect) as db:
        identity = ledger.identity(db)
        async with open_gateway(InvoiceGateway, target) as stripe, open_gateway(MeterSummaries, target) as meters:
            ledger.pin_account(db, identity.account, await stripe.account(), clock())
            books = await with_prices_of_today(db, stripe, open_books(db, overrides, clock()), clock)
            compared = [one for one in [await _compared(db, stripe, meters, books, n) for n in range(len(books.charges))] if one]
        compared += [one for one in (compare_manual_line(*line, books.facts) for line in books.by_hand) if one]
        found = [difference for one in compared for difference in one.differences]
        found += changed_rows(db, [charge for charge, _ in books.charges], books.facts, clock())
        news = _write_down(connect, db, books, compared, found, clock())
    counts = {"invoices": len(books.invoices), "charges": len(compared), "differences": len(found), "news": news}
    log.info("%s", ", ".join(f"{count} {what}" for what, count in counts.items()))
    return counts


async def _compared(db: Connection, stripe: InvoiceGateway, meters: MeterSummaries, books: Books, number: int) -> Compared | None:
    """One charge; a trial that nobody knows of is asked for where it may be why nothing is billed, and what was sent and counted is looked
    at one by one only where its quantity differs."""
    (charge, our_tokens), facts = books.charges[number], books.facts
    compared = compare_charge(charge, our_tokens, facts)
    if compared and compared.differences and charge.asks_for_nothing:
        facts = await with_its_trial(stripe, charge, facts)
        compared = compare_charge(charge, our_tokens, facts)
    if compared is None or not compared.needs_evidence:
        return compared
    return compare_charge(charge, our_tokens, facts, await evidence(db, meters, charge, facts))


def _write_down(
    connect: Connect, db: Connection, books: Books, compared: Sequence[Compared], found: Sequence[Difference], now: datetime
) -> int:
    """Brings the discrepancies of the invoices to what was found, and keeps the statement; returns how many are news."""
    if not books.invoices:
        return 0
    frame = invoice_frames.compared_frame(compared)
    statement = invoice_frames.statement(frame, found, quarantined_usage(connect), now)

    @retry_serialization
    def write() -> int:
        with db.transaction():
            invoice_comparison.take_turn(db)
            news = discrepancies.note_differences(db, list(books.invoices), found, now)
            invoice_comparison.note_compared(db, books.invoices.values(), now)
            if compared or found:
                statements.add(db, statement)
            return news

    return write()
