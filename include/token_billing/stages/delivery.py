"""Delivering noted attempts: within the rate, one call at a time per customer and meter, or item, and only while it is safe to write."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt, wait_exponential_jitter

from token_billing import metering
from token_billing.adapters.stripe_gateway import StripeGateway
from token_billing.model import AttemptResult, Clock, Outcome, SendableReport, Undelivered, Unresolved
from token_billing.settings import PushSettings


class Delivery:
    """Sends noted attempts of one push; the rate is shared with the other living pushes."""

    def __init__(self, stripe: StripeGateway, clock: Clock, settings: PushSettings, timeout_s: float) -> None:
        self._stripe = stripe
        self._clock = clock
        self._rate = settings.calls_per_second
        self._concurrency = settings.concurrency
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._stopped = False
        self._timeout_s = timeout_s
        # The jitter, several first waits long, keeps pushes apart that met the same trouble.
        backoff = wait_exponential_jitter(multiplier=settings.backoff_s, max=5, jitter=5 * settings.backoff_s)
        self._retrying = AsyncRetrying(
            retry=retry_if_result(_wants_another_try),
            wait=lambda state: getattr(_last_outcome(state), "retry_after_s", None) or backoff(state),  # what Stripe asks for comes first
            stop=stop_after_attempt(settings.tries),
            retry_error_callback=_last_outcome,
        )
        self._sharers = 0
        self._share_rate(1)

    def _share_rate(self, holder_count: int) -> None:
        """Takes an equal share of the rate, in bursts of a tenth of a second."""
        if holder_count != self._sharers:
            self._sharers = holder_count
            share = self._rate / holder_count
            period = max(0.1, 1 / share)
            self._limiter = AsyncLimiter(share * period, period)

    async def send(self, reports: Sequence[SendableReport], leased_until: float, holder_count: int) -> list[AttemptResult]:
        """How each of the noted attempts ended. `leased_until`: on the monotonic clock, when the customers' leases end; no
        request starts that could outlast them.

        Two calls may overlap where they share no customer: as the first runs out of reports, its slots go to the second."""
        self._share_rate(holder_count)
        queues: defaultdict[tuple[str, str], list[SendableReport]] = defaultdict(list)
        for report in reports:
            # safeguard: one call at a time per customer
            queues[report.destination.lease].append(report)
        last_start = leased_until - self._timeout_s
        waiting, results = iter(queues.values()), list[AttemptResult]()

        async def work() -> None:
            async with self._slots:
                for queue in waiting:
                    for report in queue:
                        results.append(await self._attempt(report, last_start))

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(self._concurrency, len(queues))):
                workers.create_task(work())
        return results

    def stop(self) -> None:
        """Nothing is begun any more; what was not begun ends undelivered."""
        self._stopped = True

    async def _attempt(self, report: SendableReport, last_start: float) -> AttemptResult:
        may_have_arrived, key_number, started = report.may_have_arrived, report.key_number, False
        assert report.event_time is not None
        event_time = report.event_time

        async def request() -> Outcome:
            nonlocal may_have_arrived, key_number, started
            await self._limiter.acquire()
            if self._stopped:
                return Undelivered("the push ended before it was sent", try_again=False)
            # safeguard: no request outlasts its lease
            if time.monotonic() > last_start:
                return Undelivered("the lease on the customer was running out", try_again=False)
            # safeguard: the age right before each write
            if not metering.may_be_sent(report, event_time, may_have_arrived, self._clock()):
                return Undelivered("it became too old to be sent safely", try_again=False)
            started = True
            answer = await self._stripe.sink(report.destination.sink).report_usage(
                report.destination,
                report.identifier,
                metering.idempotency_key(report.identifier, key_number),
                report.token_count,
                event_time,
            )
            outcome = metering.classify(answer, may_have_arrived=may_have_arrived)
            if isinstance(outcome, Unresolved):
                # safeguard: what each try leaves behind
                may_have_arrived, key_number = outcome.may_have_arrived, key_number + outcome.new_key
            return outcome

        outcome = await request()
        if _wants_another_try(outcome):  # hardly ever: so only then the price of tenacity, a tenth of a call's
            outcome = await self._try_again(request, outcome)
        return AttemptResult(report.id, report.attempt_count + 1, report.identifier, outcome, may_have_arrived, key_number, started)

    async def _try_again(self, request: Callable[[], Awaitable[Outcome]], first: Outcome) -> Outcome:
        """The outcome after as many further requests as the settings allow; the first one's counts as a try."""
        known = [first]

        async def next_outcome() -> Outcome:
            return known.pop() if known else await request()

        outcome: Outcome = await self._retrying.copy()(next_outcome)
        return outcome


def _wants_another_try(outcome: Outcome) -> bool:
    return isinstance(outcome, Unresolved | Undelivered) and outcome.try_again


def _last_outcome(state: RetryCallState) -> Outcome:
    assert state.outcome is not None
    return cast(Outcome, state.outcome.result())
