"""What Stripe's meters count of a customer's events: their summaries, whole tokens or nothing."""

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import stripe

from token_billing.adapters.stripe_gateway.connection import StripeConnection, message_of
from token_billing.errors import StripeRefusesKey
from token_billing.meter_reconciliation import NotTold
from token_billing.windows import HOUR

log = logging.getLogger(__name__)

#: Stripe tells totals as floats, which hold whole numbers exactly up to here.
LARGEST_EXACT = 2**53

#: Hours that one page of summaries holds.
HOURS_A_PAGE = 100


class _Inexact(ValueError):
    """A total beyond what a float holds exactly."""


class MeterSummaries(StripeConnection):
    """Reads what a meter counts. It may lag behind what was accepted; Stripe names no bound."""

    async def summed_usage(self, customer_id: str, meter_id: str, start: datetime, end: datetime) -> int | None:
        """The tokens that Stripe's meter counts for the customer in `[start, end)`, whole minutes. None, with a warning, where Stripe does
        not tell: the customer was deleted, for instance."""
        summaries = await self._summaries(customer_id, meter_id, start, end)
        if isinstance(summaries, NotTold):
            log.warning("%s", summaries.message)
            return None
        return sum(tokens for _, _, tokens in summaries)

    async def hourly_usage(self, customer_id: str, meter_id: str, start: datetime, end: datetime) -> Mapping[datetime, int] | NotTold:
        """The same by UTC hour, for a span of whole hours; hours without usage are left out. Or why Stripe does not tell. Raises
        StripeRefusesKey or StripeUnavailable."""
        summaries = await self._summaries(customer_id, meter_id, start, end, value_grouping_window="hour", limit=HOURS_A_PAGE)
        if isinstance(summaries, NotTold):
            return summaries
        if any(until - since != HOUR for since, until, _ in summaries):
            return NotTold(f"what answers for Stripe does not group the usage of customer {customer_id} by hour, as it was asked to")
        return {since: tokens for since, _, tokens in summaries}

    async def _summaries(
        self, customer_id: str, meter_id: str, start: datetime, end: datetime, **grouped: Any
    ) -> list[tuple[datetime, datetime, int]] | NotTold:
        """All pages: start, end and tokens of each."""
        wanted: Any = {"customer": customer_id, "start_time": int(start.timestamp()), "end_time": int(end.timestamp()), **grouped}

        async def pages() -> list[tuple[datetime, datetime, int]]:
            first = await self._client.v1.billing.meters.event_summaries.list_async(meter_id, wanted)
            return [
                (
                    _time(getattr(one, "start_time", None), start),
                    _time(getattr(one, "end_time", None), end),
                    whole_tokens(one.aggregated_value),
                )
                async for one in first.auto_paging_iter()
            ]

        try:
            return await self._read(pages)
        except stripe.PermissionError as refusal:
            raise StripeRefusesKey(
                f"the key of connection `stripe_default` may not read meter event summaries: {message_of(refusal)}. Give it read access "
                "to billing meters."
            ) from refusal
        except stripe.InvalidRequestError as refusal:
            unknown = refusal.param == "customer" or "such customer" in message_of(refusal)
            return NotTold(f"Stripe does not tell what customer {customer_id} used: {message_of(refusal)}", is_unknown_customer=unknown)
        except _Inexact as inexact:
            return NotTold(f"what customer {customer_id} used cannot be told to the token: {inexact}")


def whole_tokens(aggregated_value: float) -> int:
    """A total as Stripe tells it. A fraction, which no report of ours has, counts as a token of its own, so that it shows."""
    # safeguard: a total that is exact
    if abs(aggregated_value) >= LARGEST_EXACT:
        raise _Inexact(f"{aggregated_value:.0f} tokens are more than a float holds exactly")
    # safeguard: a fraction is not rounded away
    return math.ceil(aggregated_value)


def _time(seconds: int | None, asked: datetime) -> datetime:
    """A stand-in may leave out what was asked for."""
    return asked if seconds is None else datetime.fromtimestamp(seconds, UTC)
