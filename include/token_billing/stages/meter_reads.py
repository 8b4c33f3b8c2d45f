"""Reads of Stripe's meters, inside Stripe's limits: so many a second, so many at once, so many in a run."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from aiolimiter import AsyncLimiter

from token_billing.adapters.stripe_gateway import Counted, StripeGateway
from token_billing.errors import BillingError
from token_billing.meter_reconciliation import Counter, NotTold, spans
from token_billing.settings import PushSettings

Asked = TypeVar("Asked")
Told = TypeVar("Told")


class MeterReads:
    """The reads of one run. `count`: so many were made; `not_told`: why Stripe does not tell what some counters hold."""

    def __init__(self, stripe: StripeGateway, settings: PushSettings, most: int) -> None:
        self._stripe = stripe
        self._rate = AsyncLimiter(settings.reads_per_second, 1)
        self._at_once = asyncio.Semaphore(settings.concurrency)
        self._most = most
        self.count = 0
        self.not_told: list[str] = []

    @property
    def are_spent(self) -> bool:
        """Whether this run has read enough."""
        return self.count >= self._most

    async def by_hour(self, counter: Counter, windows: Iterable[datetime]) -> Mapping[datetime, int] | NotTold:
        """The tokens of each hour of the spans that cover these windows; hours without usage are left out."""
        told: dict[datetime, int] = {}
        for start, end in spans(windows):
            page = await self._read(self._stripe.hourly_usage(*counter, start, end))
            if isinstance(page, NotTold):
                return page
            told.update(page)
        return told

    async def total(self, counter: Counter, start: datetime, end: datetime) -> int | None:
        """The tokens of a span of whole minutes; None where Stripe does not tell."""
        return await self._read(self._stripe.summed_usage(*counter, start, end))

    async def by_period(self, usage_item_id: str) -> list[Counted]:
        """The tokens of each of an item's billing periods."""
        return await self._read(self._stripe.counted_periods(usage_item_id))

    async def _read(self, read: Awaitable[Told]) -> Told:
        async with self._at_once:
            await self._rate.acquire()
            self.count += 1
            return await read


async def each(asked: Sequence[Asked], reading: Iterable[Awaitable[Told]]) -> tuple[dict[Asked, Told], BillingError | None]:
    """What was told of each of those that were asked about, and the first trouble with the others: what could be read is recorded before
    anybody hears of what could not."""
    told = await asyncio.gather(*reading, return_exceptions=True)
    troubles = [one for one in told if isinstance(one, BaseException)]
    for trouble in troubles:
        if not isinstance(trouble, BillingError):
            raise trouble
    answered = {one: answer for one, answer in zip(asked, told, strict=True) if not isinstance(answer, BaseException)}
    return answered, next((one for one in troubles if isinstance(one, BillingError)), None)
