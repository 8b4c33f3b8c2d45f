"""Reporting usage to Stripe, and reading back what came of it."""

import asyncio
import logging
from datetime import datetime
from typing import Any

import stripe

from token_billing.adapters.stripe_gateway.connection import StripeConnection, message_of
from token_billing.adapters.stripe_gateway.objects import invoiced_by, present_period, terms_of
from token_billing.errors import StripeRefusesKey
from token_billing.model import Answer, Destination, Meter, MeteredItem, NoAnswer
from token_billing.periods import NOT_CLOSING, InvoicedPeriod
from token_billing.rating import Price

log = logging.getLogger(__name__)


class StripeGateway(StripeConnection):
    """One open set of connections to Stripe; made by `stripe_gateway`, used within one event loop."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        self._meters: dict[str, asyncio.Future[stripe.billing.Meter]] = {}
        self._prices: dict[str, asyncio.Future[Price | None]] = {}

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
        meter_id = price.recurring and price.recurring.meter
        if not meter_id:
            return MeteredItem(usage_item_id, price.id, problem=f"price {price.id} of item {usage_item_id} has no billing meter")
        if meter_id not in self._meters:
            reading = self._read(lambda: self._client.v1.billing.meters.retrieve_async(meter_id))
            self._meters[meter_id] = asyncio.ensure_future(reading)
        if price.id not in self._prices:
            self._prices[price.id] = asyncio.ensure_future(self._terms(price))
        meter, terms = await self._meters[meter_id], await self._prices[price.id]
        if meter.default_aggregation.formula != "sum":
            problem = f"meter {meter_id} aggregates by {meter.default_aggregation.formula}, not by sum"
            return MeteredItem(usage_item_id, price.id, problem=problem)
        keys = meter.customer_mapping.event_payload_key, meter.value_settings.event_payload_key
        period, is_first = present_period(item)
        if period is None:
            log.warning("Stripe tells of no billing period of item %s, so its usage is sent unchecked", usage_item_id)
        destination = Meter(meter.id, meter.event_name, *keys)
        return MeteredItem(usage_item_id, price.id, destination, None, getattr(item, "subscription", None), period, is_first, terms)

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
                if invoice.billing_reason not in NOT_CLOSING:
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

    async def report_usage(
        self, destination: Destination, identifier: str, idempotency_key: str, token_count: int, event_time: datetime
    ) -> Answer | NoAnswer:
        """Sends one meter event, once; never raises for anything that Stripe or the network does.

        A raw request of the SDK's: the answer need not become objects, which is a fifth of the price of a call."""
        meter = destination.meter
        return await self._write(
            "/v1/billing/meter_events",
            lambda event: event.get("identifier") == identifier,
            event_name=meter.event_name,
            payload={meter.customer_payload_key: destination.customer_id, meter.value_payload_key: str(token_count)},
            identifier=identifier,
            timestamp=int(event_time.timestamp()),
            idempotency_key=idempotency_key,
        )

    async def cancel_usage(self, event_name: str, identifier: str, idempotency_key: str) -> Answer | NoAnswer:
        """Asks Stripe, once, not to count a meter event; never raises for anything that Stripe or the network does."""
        return await self._write(
            "/v1/billing/meter_event_adjustments",
            lambda adjustment: (adjustment.get("cancel") or {}).get("identifier") == identifier,
            event_name=event_name,
            type="cancel",
            cancel={"identifier": identifier},
            idempotency_key=idempotency_key,
        )

    async def summed_usage(self, customer_id: str, meter_id: str, start: datetime, end: datetime) -> int | None:
        """The tokens that Stripe's meter counts for the customer in `[start, end)`, whole minutes; it may lag behind what was accepted.
        None, with a warning, where Stripe does not tell: the customer was deleted, for instance."""
        wanted = {"customer": customer_id, "start_time": int(start.timestamp()), "end_time": int(end.timestamp())}

        async def summed() -> int:
            summaries = await self._client.v1.billing.meters.event_summaries.list_async(meter_id, wanted)  # type: ignore[arg-type]
            return sum([int(summary.aggregated_value) async for summary in summaries.auto_paging_iter()])

        try:
            return await self._read(summed)
        except stripe.InvalidRequestError as refusal:
            log.warning("Stripe does not tell what customer %s used: %s", customer_id, message_of(refusal))
            return None
