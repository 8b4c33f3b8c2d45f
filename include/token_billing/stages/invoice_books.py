"""What a comparison of invoices begins with: their lines, what should be on them, and what is known of both."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from token_billing.adapters import catalogue, invoice_comparison, invoices, ledger, sending
from token_billing.adapters.database import Connection, repeatable_read
from token_billing.adapters.invoice_comparison import Span
from token_billing.adapters.stripe_gateway.invoices import InvoiceGateway
from token_billing.adapters.stripe_gateway.summaries import MeterSummaries
from token_billing.charges import Charge, Facts, about_the_same, charges_of
from token_billing.invoice_evidence import Evidence
from token_billing.invoice_reconciliation import PARTIAL
from token_billing.invoices import Invoice, InvoiceLine, LineKind
from token_billing.meter_reconciliation import NotTold
from token_billing.periods import LONGEST_GRACE, BillingPeriod
from token_billing.windows import HOUR

#: An invoice that became final in this time is compared again, once a day: what was sent near its end may show only then.
SETTLES = LONGEST_GRACE
DAILY = timedelta(hours=20)


@dataclass(frozen=True)
class Books:
    """Invoices that are to be compared, as of one instant: every charge with the tokens that we reported, and lines put there by hand."""

    invoices: Mapping[str, Invoice]
    charges: list[tuple[Charge, int]]
    by_hand: list[tuple[Invoice, InvoiceLine]]
    facts: Facts


def open_books(db: Connection, overrides: Mapping[str, str], now: datetime) -> Books:
    """All invoices that are to be compared now; reads the ledger only, from one snapshot."""
    with repeatable_read(db):
        found = {one.id: one for one in invoice_comparison.invoices_to_compare(db, now - SETTLES, now - DAILY)}
        lines = invoices.lines_of(db, found)
        due = invoice_comparison.charges_due(db, found)
        charges = [*(charge for one in found.values() for charge in charges_of(one, lines[one.id])), *due]
        by_hand = [(found[of], line) for of, all_of in lines.items() for line in all_of if line.kind is LineKind.MANUAL]
        facts = _facts(db, charges, by_hand, overrides)
        charges = about_the_same(charges, facts)
        tokens = invoice_comparison.usage_of(db, [_span(charge, facts) for charge in charges])
    # A span that is due and had no usage is no charge.
    return Books(found, [(charge, ours) for charge, ours in zip(charges, tokens, strict=True) if charge.lines or ours], by_hand, facts)


def _facts(
    db: Connection, charges: Collection[Charge], by_hand: Collection[tuple[Invoice, InvoiceLine]], overrides: Mapping[str, str]
) -> Facts:
    customers = {charge.invoice.customer_id for charge in charges} | {invoice.customer_id for invoice, _ in by_hand}
    parts = invoice_comparison.known_parts(db, {charge.usage_item_id for charge in charges}, customers)
    named = {part.price_id for known in parts.values() for part in known if part.price_id}
    facts = Facts(
        parts=parts,
        prices=invoice_comparison.prices(db, named | {charge.price_id for charge in charges}),
        our_prices=catalogue.metered_price_ids(db, overrides) | invoices.metered_prices(db),
        customers=invoice_comparison.tenants_of_customers(db, customers),
        subscriptions=invoice_comparison.trials(db, {charge.invoice.subscription_id or "" for charge in charges}),
        proposals=invoice_comparison.proposed_amounts(db, {line.proposal_id for _, line in by_hand if line.proposal_id is not None}),
        of_a_part=invoice_comparison.parts_of_periods(db, list(charges)),
        billed_beside=invoice_comparison.billed_beside(db, list(charges)),
        cut_over=ledger.identity(db).cut_over,
    )
    agreed = [replace(charge, period=facts.agreed_period(charge)) if charge.lines else charge for charge in charges]
    return replace(
        facts,
        billed_elsewhere=invoice_comparison.billed_elsewhere(db, agreed),
        billed_in_part=invoice_comparison.billed_in_part(db, agreed, PARTIAL),
    )


async def with_prices_of_today(db: Connection, stripe: InvoiceGateway, books: Books, clock: Callable[[], datetime]) -> Books:
    """With what each price says now, which should be what it said when it was first read; each is read once, and what is news is kept."""
    facts = books.facts
    wanted = {facts.agreed_price(charge) for charge, _ in books.charges if facts.parts_of(charge)}
    read = {price_id: await stripe.price(price_id) for price_id in sorted(wanted)}
    today = {price_id: price for price_id, price in read.items() if price is not None}
    with db.transaction():
        sending.add_prices(db, [(None, price) for price_id, price in today.items() if price_id not in facts.prices], clock())
        invoice_comparison.note_prices(db, today.values(), clock())
    edited = {price_id: price for price_id, price in today.items() if facts.prices.get(price_id, price) != price}
    return replace(books, facts=replace(facts, prices={**today, **facts.prices}, edited=edited))


async def with_its_trial(stripe: InvoiceGateway, charge: Charge, facts: Facts) -> Facts:
    """With the trial of the charge's subscription, which `sync_subscriptions` may never have met."""
    subscription_id = charge.invoice.subscription_id
    if not subscription_id or subscription_id in facts.subscriptions or (trial := await stripe.trial(subscription_id)) is None:
        return facts
    return replace(facts, subscriptions={**facts.subscriptions, subscription_id: trial})


async def evidence(db: Connection, meters: MeterSummaries, charge: Charge, facts: Facts) -> Evidence:
    """What was sent, report by report, and what Stripe's meter counts, hour by hour, around a charge's periods."""
    span = _span(charge, facts)
    start = min(span.period.start, charge.period.start).replace(minute=0, second=0, microsecond=0)
    end = max(span.period.end, charge.period.end)
    whole = end.replace(minute=0, second=0, microsecond=0)
    span = span._replace(period=BillingPeriod(start, whole if whole == end else whole + HOUR))
    reports = invoice_comparison.reports_of(db, span)
    final = charge.invoice.finalized_at
    cancelled = invoice_comparison.cancelled_since(db, {one.id for one in reports}, final) if final else 0
    hours = await meters.hourly_usage(span.customer_id, span.meter_id, *span.period) if span.meter_id else NotTold("usage records")
    return Evidence(reports, None if isinstance(hours, NotTold) else hours, cancelled)


def _span(charge: Charge, facts: Facts) -> Span:
    return Span(charge.invoice.customer_id, charge.usage_item_id, facts.meter_of(charge), facts.agreed_period(charge))
