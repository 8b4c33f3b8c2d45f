"""The two sinks behind one small interface: billing meters, and the usage records of the legacy metered billing system.

What a push needs of them is to send one report, and to find out what Stripe counts in the span in which the report shows. Whether a
report may be sent again at any age is the sink's own rule (`model.Sink`). docs/decisions/0007-two-sinks.md says how they differ."""

import logging
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import stripe

from token_billing.adapters.stripe_gateway.connection import StripeConnection
from token_billing.adapters.stripe_gateway.summaries import MeterSummaries
from token_billing.doubtful import DoubtfulReport
from token_billing.model import Answer, Destination, NoAnswer
from token_billing.periods import BillingPeriod

log = logging.getLogger(__name__)

#: Usage records ended with 2025-03-31.basil; this is the last version that has them (docs.stripe.com/changelog).
USAGE_RECORDS_VERSION = "2025-02-24.acacia"


class Counted(NamedTuple):
    """What Stripe counts, in tokens, and in which billing period where that is Stripe's to say."""

    token_count: int
    period: BillingPeriod | None = None


class ReportSink(Protocol):
    """Where reports go."""

    async def report_usage(
        self, destination: Destination, identifier: str, idempotency_key: str, token_count: int, event_time: datetime
    ) -> Answer | NoAnswer:
        """Sends one report, once; never raises for anything that Stripe or the network does."""

    async def counted_around(self, report: DoubtfulReport) -> Counted | None:
        """What Stripe counts in the span in which the report shows; it may lag behind what was accepted. None, with a warning, where
        Stripe does not tell."""


class BillingMeters(MeterSummaries):
    """A report is a meter event, which adds to its customer's meter; it shows in the summary of its minute."""

    async def report_usage(
        self, destination: Destination, identifier: str, idempotency_key: str, token_count: int, event_time: datetime
    ) -> Answer | NoAnswer:
        """A raw request of the SDK's: the answer need not become objects, which is a fifth of the price of a call."""
        meter = destination.meter
        assert meter is not None, "its destination is no meter"
        return await self._write(
            "/v1/billing/meter_events",
            lambda event: event.get("identifier") == identifier,
            event_name=meter.event_name,
            payload={meter.customer_payload_key: destination.customer_id, meter.value_payload_key: str(token_count)},
            identifier=identifier,
            timestamp=int(event_time.timestamp()),
            idempotency_key=idempotency_key,
        )

    async def counted_around(self, report: DoubtfulReport) -> Counted | None:
        meter, span = report.destination.meter, report.span
        assert meter is not None, "its destination is no meter"
        tokens = await self.summed_usage(report.destination.customer_id, meter.id, span.start, span.end)
        return None if tokens is None else Counted(tokens)

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


class UsageRecords(StripeConnection):
    """A report is a usage record: the usage of its subscription item at a second of its own is set, so that a second time changes
    nothing. It shows in the total of the item's billing period."""

    async def report_usage(
        self, destination: Destination, identifier: str, idempotency_key: str, token_count: int, event_time: datetime
    ) -> Answer | NoAnswer:
        item, timestamp = destination.usage_item_id, int(event_time.timestamp())
        return await self._write(
            f"/v1/subscription_items/{item}/usage_records",
            lambda record: record.get("subscription_item") == item and record.get("timestamp") == timestamp,
            quantity=token_count,
            timestamp=timestamp,
            # safeguard: usage is set, not added
            action="set",
            idempotency_key=idempotency_key,
            stripe_version=USAGE_RECORDS_VERSION,
        )

    async def counted_around(self, report: DoubtfulReport) -> Counted | None:
        """Periods of which Stripe does not say where they begin and end tell nothing."""
        periods = await self.counted_periods(report.destination.usage_item_id)
        return next((one for one in periods if one.period and one.period.holds(report.event_time)), None)

    async def counted_periods(self, usage_item_id: str) -> list[Counted]:
        """What Stripe counts of an item in each of its billing periods, as far as it says where they begin and end; nothing, with a
        warning, where it does not tell."""
        path = f"/v1/subscription_items/{usage_item_id}/usage_record_summaries"

        async def counted() -> list[Counted]:
            answer = await self._client.raw_request_async("get", path, limit=100, stripe_version=USAGE_RECORDS_VERSION)
            spans = [(one["period"]["start"], one["period"]["end"], int(one["total_usage"])) for one in answer.data["data"]]
            return [
                Counted(total, BillingPeriod(datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)))
                for start, end, total in spans
                if start is not None and end is not None
            ]

        try:
            return await self._read(counted)
        except (stripe.InvalidRequestError, KeyError, TypeError) as unknown:
            log.warning("Stripe does not tell what item %s counts: %s", usage_item_id, unknown)
            return []
