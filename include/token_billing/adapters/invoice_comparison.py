"""What invoices are held against: typed functions over `sql/invoice_comparison.sql`. None of them opens or ends a transaction."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from token_billing.adapters.database import Connection
from token_billing.adapters.price_rows import price_of_row, price_row
from token_billing.adapters.queries import queries
from token_billing.charges import Charge, KnownPart, Trial
from token_billing.invoice_evidence import SentReport
from token_billing.invoices import Invoice
from token_billing.periods import NOT_CLOSING, BillingPeriod
from token_billing.rating import Price
from token_billing.reconciliation import OF_INVOICES

COMPARISON = queries("invoice_comparison.sql")


def take_turn(db: Connection) -> None:
    """Waits until nobody else writes down what a comparison found; must be the first statement of its transaction."""
    db.execute(COMPARISON["take_turn"])


def invoices_to_compare(db: Connection, final_since: datetime, again_before: datetime) -> list[Invoice]:
    """Final invoices that were not compared as they are, or on which something differed; and those that became final since a time and were
    last compared before another."""
    parameters = {"final_since": final_since, "again_before": again_before, "causes": list(OF_INVOICES)}
    return [Invoice(*row) for row in db.execute(COMPARISON["invoices_to_compare"], parameters)]


def known_parts(db: Connection, item_ids: Collection[str], customer_ids: Collection[str]) -> dict[str, list[KnownPart]]:
    """Whose usage the items bill and when, by item; an item that nobody was ever linked to is left out."""
    found: dict[str, list[KnownPart]] = {}
    for row in db.execute(COMPARISON["known_parts"], {"items": list(item_ids), "customers": list(customer_ids)}):
        tenant_id, subscription_id, item, price, meter, period_start, period_end, *span = row
        period = BillingPeriod(period_start, period_end) if period_start else None
        found.setdefault(item, []).append(KnownPart(tenant_id, subscription_id, item, price, meter, period, *span))
    return found


def charges_due(db: Connection, invoices: Mapping[str, Invoice]) -> list[Charge]:
    """What the invoices should bill and no invoice does, whether or not there was any usage."""
    parameters = {"ids": list(invoices), "not_closing": sorted(NOT_CLOSING)}
    return [
        Charge(invoices[invoice_id], item, price, BillingPeriod(start, end))
        for invoice_id, item, price, start, end in db.execute(COMPARISON["charges_due"], parameters)
    ]


class Span(NamedTuple):
    """What a charge's quantity is held against: an item's usage on a meter (None: in usage records) in a period."""

    customer_id: str
    usage_item_id: str
    meter_id: str | None
    period: BillingPeriod


def usage_of(db: Connection, spans: Sequence[Span]) -> list[int]:
    """Tokens, whole, that Stripe has accepted in each of the spans."""
    rows = [{"number": n, **_times(span.period), **_named(span)} for n, span in enumerate(spans)]
    return [tokens for _, tokens in db.execute(COMPARISON["usage_of_charges"], {"charges": Jsonb(rows)})]


def reports_of(db: Connection, span: Span) -> list[SentReport]:
    """What was sent to the span's meter for its customer, by whatever item, or to its item alone where it has no meter."""
    query = COMPARISON["reports_of_meter"] if span.meter_id else COMPARISON["reports_of_item"]
    parameters = {**_named(span), "start": span.period.start, "end": span.period.end}
    return [SentReport(*row) for row in db.execute(query, parameters)]


def cancelled_since(db: Connection, report_ids: Collection[int], since: datetime) -> int:
    """Tokens that the reports were counted beside, until that was cancelled since then."""
    found = db.execute(COMPARISON["cancelled_since"], {"ids": list(report_ids), "since": since}).fetchone()
    return int(found[0]) if found else 0


def prices(db: Connection, price_ids: Collection[str]) -> dict[str, Price]:
    """The prices as they were first read."""
    return {row[0]: price_of_row(*row) for row in db.execute(COMPARISON["prices"], {"ids": list(price_ids)})}


def note_prices(db: Connection, found: Iterable[Price], now: datetime) -> None:
    """Keeps what prices say now, where it is not what they said before."""
    for price in sorted(found, key=lambda price: price.id):
        db.execute(COMPARISON["note_price"], {**price_row(price), "now": now})


def tenants_of_customers(db: Connection, customer_ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The tenants of each customer; one that is no tenant's is left out."""
    found: dict[str, tuple[str, ...]] = {}
    for customer_id, tenant_id in db.execute(COMPARISON["tenants_of_customers"], {"ids": list(customer_ids)}):
        found[customer_id] = (*found.get(customer_id, ()), tenant_id)
    return found


def trials(db: Connection, subscription_ids: Collection[str]) -> dict[str, Trial]:
    """Of the subscriptions, as they were last read: their trial, and whether their collection is paused."""
    found = db.execute(COMPARISON["trials"], {"ids": list(subscription_ids)})
    return {subscription_id: Trial.of(*fields) for subscription_id, *fields in found}


def proposed_amounts(db: Connection, proposal_ids: Collection[int]) -> dict[int, tuple[int, str]]:
    """What proposals came to when they were decided, in the currency's minor unit."""
    found = db.execute(COMPARISON["proposed_amounts"], {"ids": list(proposal_ids)})
    return {proposal_id: (cents, currency) for proposal_id, cents, currency in found}


def parts_of_periods(db: Connection, charges: Sequence[Charge]) -> frozenset[str]:
    """The charges of items that nobody follows that are of a part of a period, where their invoice bills all usage of all of it."""
    found = db.execute(COMPARISON["parts_of_periods"], {"charges": _charges(charges)})
    return frozenset(charges[n].stripe_id for (n,) in found)


def billed_elsewhere(db: Connection, charges: Sequence[Charge]) -> dict[str, str]:
    """By charge: another invoice that bills the same item for most of the same time."""
    found = db.execute(COMPARISON["billed_elsewhere"], {"charges": _charges(charges)})
    return {charges[n].stripe_id: other for n, other in found}


def billed_in_part(db: Connection, charges: Sequence[Charge], partial: Collection[str]) -> dict[str, str]:
    """By charge: another invoice that bills a part of the item's usage in the same time, for one of these reasons."""
    found = db.execute(COMPARISON["billed_in_part"], {"charges": _charges(charges), "partial": sorted(partial)})
    return {charges[n].stripe_id: other for n, other in found}


def _charges(charges: Sequence[Charge]) -> Jsonb:
    return Jsonb(
        [
            {"number": n, "invoice_id": one.invoice.id, "usage_item_id": one.usage_item_id, "price_id": one.price_id, **_times(one.period)}
            for n, one in enumerate(charges)
        ]
    )


def billed_beside(db: Connection, charges: Sequence[Charge]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """By charge of an item that nobody is linked to: an item that bills the same customer's usage of the same meter, and its tenants."""
    rows = [
        {"number": n, "customer_id": one.invoice.customer_id, "usage_item_id": one.usage_item_id, "price_id": one.price_id}
        | _times(one.period)
        for n, one in enumerate(charges)
    ]
    found = db.execute(COMPARISON["billed_beside"], {"charges": Jsonb(rows)})
    return {charges[n].stripe_id: (item, tuple(tenants)) for n, item, tenants in found}


def rows_told_of(db: Connection) -> set[tuple[str, datetime]]:
    """Tenant and window of changed rows that are told of already, by a report."""
    return set(db.execute(COMPARISON["rows_told_of"]).fetchall())


def note_compared(db: Connection, compared: Iterable[Invoice], now: datetime) -> int:
    """The invoices were compared as they were read; returns how many are still as they were."""
    rows = [{"id": invoice.id, "read_at": invoice.read_at.isoformat()} for invoice in compared]
    return db.execute(COMPARISON["note_compared"], {"invoices": Jsonb(rows), "now": now}).rowcount


def _named(span: Span) -> dict[str, Any]:
    return {"customer_id": span.customer_id, "usage_item_id": span.usage_item_id, "meter_id": span.meter_id}


def _times(period: BillingPeriod) -> dict[str, str]:
    return {"period_start": period.start.isoformat(), "period_end": period.end.isoformat()}
