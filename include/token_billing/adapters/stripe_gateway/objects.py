"""From the SDK's objects to our own: what a subscription item, a price and an invoice say. What a stand-in leaves out raises
AttributeError, except where None is said to come of it."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import stripe

from token_billing.model import Meter
from token_billing.periods import NOT_CLOSING, BillingPeriod, InvoicedPeriod
from token_billing.rating import Package, Price, PricingMode, Tier

#: A subscription and its first items are made in one call, and with them the first period begins.
MADE_TOGETHER = timedelta(minutes=1)


def summing_meter(meter: Any) -> tuple[Meter | None, str | None]:
    """A billing meter's event name and payload keys; or why it does not bill what its events add up to."""
    if meter.default_aggregation.formula != "sum":
        return None, f"meter {meter.id} aggregates by {meter.default_aggregation.formula}, not by sum"
    # Of several events in such a window only the last one counts.
    if window := getattr(meter, "event_time_window", None):
        return None, f"meter {meter.id} counts one event of each {window} only, so it does not add them up"
    return Meter(meter.id, meter.event_name, meter.customer_mapping.event_payload_key, meter.value_settings.event_payload_key), None


def present_period(item: Any) -> tuple[BillingPeriod | None, bool]:
    """The billing period of a subscription item, None where it tells of none, and whether it is the subscription's first."""
    start, end = getattr(item, "current_period_start", None), getattr(item, "current_period_end", None)
    if not start or not end or start >= end:
        return None, False
    period = BillingPeriod(_time(start), _time(end))
    return period, timedelta(0) <= _time(getattr(item, "created", 0) or 0) - period.start <= MADE_TOGETHER


def terms_of(price: Any) -> Price:
    """What units cost under a price whose tiers were asked for; raises ValueError for tiers that make no sense."""
    if price.billing_scheme == "tiered":
        tiers = tuple(Tier(tier.up_to, _cents(tier, "unit_amount"), _cents(tier, "flat_amount")) for tier in price.tiers)
        return Price(price.id, price.currency, PricingMode(price.tiers_mode), tiers)
    transform = getattr(price, "transform_quantity", None)
    package = transform and Package(transform.divide_by, transform.round == "up")
    return Price(price.id, price.currency, PricingMode.PER_UNIT, (Tier(None, _cents(price, "unit_amount")),), package)


def may_close_usage(invoice: Any) -> bool:
    """Whether an invoice may bill the usage of a period that has ended; what answers for Stripe may not say why it was made."""
    return getattr(invoice, "billing_reason", None) not in NOT_CLOSING


def invoiced_by(invoice: Any, lines: list[Any], usage_item_id: str, now: datetime) -> list[InvoicedPeriod]:
    """The periods of a subscription item that an invoice closes: those of the item's lines, or, where it has none (no usage at all), the
    one that the invoice itself looks back on."""
    reason = getattr(invoice, "billing_reason", None)
    spans = {(line.period.start, line.period.end) for line in lines if _item_of(line) == usage_item_id and not _is_proration(line)}
    # Of other invoices, made in the middle of a period, that span says nothing.
    if not spans and reason in ("subscription_cycle", None):
        spans = {(invoice.period_start, invoice.period_end)}
    # safeguard: an invoice that does not say why it was made closes what had ended by then
    if reason is None:
        spans = {(start, end) for start, end in spans if end <= invoice.created}
    finalizes_at = getattr(invoice, "automatically_finalizes_at", None)
    return [
        InvoicedPeriod(
            usage_item_id, BillingPeriod(_time(start), _time(end)), invoice.id, invoice.status, finalizes_at and _time(finalizes_at), now
        )
        for start, end in sorted(spans)
        if start < end
    ]


def told_of_invoice(invoice: Mapping[str, Any], usage_item_ids: Iterable[str], at: datetime) -> list[InvoicedPeriod]:
    """The periods of the items that an invoice closes, as an event showed it at a time: the JSON need not be asked for again. None of
    one that closes no period, or whose lines the event does not show all."""
    shown = stripe.Invoice.construct_from(dict(invoice), None)
    lines = shown.lines
    if not may_close_usage(shown) or lines.has_more:
        return []
    return [one for item in usage_item_ids for one in invoiced_by(shown, lines.data, item, at)]


def subscription_of(invoice: Any) -> str | None:
    """The subscription that an invoice is of, if it is of one."""
    if not hasattr(invoice, "parent"):  # before API version 2025-03-31.basil
        found = getattr(invoice, "subscription", None)
    else:
        details = invoice.parent and getattr(invoice.parent, "subscription_details", None)
        found = details and details.subscription
    return found if found is None or isinstance(found, str) else found.id


def _item_of(line: Any) -> str | None:
    if not hasattr(line, "parent"):  # before API version 2025-03-31.basil
        return getattr(line, "subscription_item", None)
    details = line.parent and getattr(line.parent, "subscription_item_details", None)
    return details.subscription_item if details else None


def _is_proration(line: Any) -> bool:
    """Whether a line only gives back, or charges, a part of a fee that is paid in advance."""
    details = line.parent and getattr(line.parent, "subscription_item_details", None) if hasattr(line, "parent") else line
    return bool(getattr(details, "proration", False))


def _cents(holder: Any, name: str) -> Decimal:
    """An amount in the currency's minor unit; the decimal form has it all, the whole one only where it is whole."""
    amount = getattr(holder, f"{name}_decimal", None)
    if amount is None:
        amount = getattr(holder, name, None)
    return Decimal(str(amount or 0))


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
