"""What Stripe tells of subscription items and invoices, and the sinks that usage is reported to."""

import asyncio
import logging
from datetime import datetime
from typing import Any

import stripe

from token_billing.adapters.stripe_gateway.connection import message_of
from token_billing.adapters.stripe_gateway.objects import invoiced_by, may_close_usage, present_period, summing_meter, terms_of
from token_billing.adapters.stripe_gateway.sinks import USAGE_RECORDS_VERSION, BillingMeters, Counted, ReportSink, UsageRecords
from token_billing.errors import StripeRefusesKey
from token_billing.model import Meter, MeteredItem, Sink
from token_billing.periods import InvoicedPeriod
from token_billing.rating import Price

log = logging.getLogger(__name__)


class StripeGateway(BillingMeters):
    """One open set of connections to Stripe; made by `stripe_gateway`, used within one event loop. It is the default sink itself."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        self._usage_records = UsageRecords(*connection)
        self._meters: dict[str, asyncio.Future[stripe.billing.Meter]] = {}
        self._legacy_prices: dict[str, asyncio.Future[str]] = {}
        self._prices: dict[str, asyncio.Future[Price | None]] = {}

    def sink(self, which: Sink) -> ReportSink:
        """Where reports of that sink go."""
        return self if which is Sink.BILLING_METERS else self._usage_records

    async def counted_periods(self, usage_item_id: str) -> list[Counted]:
        """What Stripe counts of an item's usage records, by billing period."""
        return await self._usage_records.counted_periods(usage_item_id)

    async def metered_item(self, usage_item_id: str) -> MeteredItem:
        """The item's price, meter and present period; what is wrong with it is told in `problem`, not raised. Each meter and each tier
        table is read once."""
        try:
            item = await self._read(lambda: self._client.v1.subscription_items.retrieve_async(usage_item_id))
        except stripe.InvalidRequestError as refusal:
            return MeteredItem(usage_item_id, problem=message_of(refusal))
        except stripe.PermissionError as refusal:
            raise StripeRefusesKey(
                f"the key of connection `stripe_default` may not read subscription items: {message_of(refusal)}. "
                "Give it read access to subscriptions and meters, and write access to meter events."
            ) from refusal
        price = item.price
        if price.id not in self._prices:
            self._prices[price.id] = asyncio.ensure_future(self._terms(price))
        (meter, problem), terms = await self._meter_of(price), await self._prices[price.id]
        if problem:
            return MeteredItem(usage_item_id, price.id, problem=f"{problem}, item {usage_item_id}")
        period, is_first = present_period(item)
        if period is None:
            log.warning("Stripe tells of no billing period of item %s, so its usage is sent unchecked", usage_item_id)
        return MeteredItem(usage_item_id, price.id, meter, None, getattr(item, "subscription", None), period, is_first, terms)

    async def _meter_of(self, price: stripe.Price) -> tuple[Meter | None, str | None]:
        """The meter that backs a metered price, None for one of the legacy metered billing system, and why neither bills its usage."""
        recurring = price.recurring
        if not recurring or recurring.usage_type != "metered":
            return None, f"price {price.id} is not metered, it has no billing meter"
        if not recurring.meter:
            if price.id not in self._legacy_prices:
                self._legacy_prices[price.id] = asyncio.ensure_future(self._read(lambda: self._legacy_sum(price.id)))
            adds_up = await self._legacy_prices[price.id]
            return None, None if adds_up == "sum" else f"price {price.id} aggregates usage records by {adds_up}, not by sum"
        if recurring.meter not in self._meters:
            meter_id = recurring.meter
            self._meters[meter_id] = asyncio.ensure_future(self._read(lambda: self._client.v1.billing.meters.retrieve_async(meter_id)))
        return summing_meter(await self._meters[recurring.meter])

    async def _legacy_sum(self, price_id: str) -> str:
        """How a legacy metered price adds up its usage records, which only the version that has them tells."""
        answer = await self._client.raw_request_async("get", f"/v1/prices/{price_id}", stripe_version=USAGE_RECORDS_VERSION)
        return (answer.data.get("recurring") or {}).get("aggregate_usage") or "sum"

    async def _terms(self, price: stripe.Price) -> Price | None:
        """What units cost; None, with a warning, where that cannot be read: it decides nothing about what is sent."""
        try:
            if price.billing_scheme == "tiered":  # the tiers are shown only when they are asked for
                price = await self._read(lambda: self._client.v1.prices.retrieve_async(price.id, {"expand": ["tiers"]}))
            return terms_of(price)
        except (stripe.InvalidRequestError, stripe.PermissionError, AttributeError, ValueError) as unreadable:
            log.warning("the terms of price %s cannot be read, so its usage has no known value in money: %s", price.id, unreadable)
            return None

    async def invoiced_periods(self, usage_item_id: str, subscription_id: str, since: datetime, now: datetime) -> list[InvoicedPeriod]:
        """The periods of an item that the subscription's invoices made since then close; none, with a warning, where Stripe, or what
        answers for it, knows no such invoices."""
        wanted = {"subscription": subscription_id, "created": {"gte": int(since.timestamp())}, "limit": 100}

        async def closing() -> list[InvoicedPeriod]:
            listed = await self._client.v1.invoices.list_async(wanted)  # type: ignore[arg-type]
            found = []
            async for invoice in listed.auto_paging_iter():
                if may_close_usage(invoice):
                    lines = [line async for line in invoice.lines.auto_paging_iter()]
                    found += invoiced_by(invoice, lines, usage_item_id, now)
            return found

        try:
            return await self._read(closing)
        except stripe.PermissionError as refusal:
            raise StripeRefusesKey(
                f"the key of connection `stripe_default` may not read invoices: {message_of(refusal)}. Give it read access to invoices: "
                "usage in a period whose invoice is final would never be billed."
            ) from refusal
        except (stripe.InvalidRequestError, AttributeError) as unknown:
            log.warning("the invoices of subscription %s cannot be read, so its usage is sent unchecked: %s", subscription_id, unknown)
            return []
