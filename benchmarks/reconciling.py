"""A run of reconcile_meters, beside the SDK alone reading the same summaries. Both at the sandbox's simulator."""

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import stripe

from benchmarks.comparison import Comparison, Say, throughput_ratio
from token_billing.adapters.clock import system_clock
from token_billing.adapters.database import Connect
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.metering import SETTLING
from token_billing.settings import PushSettings
from token_billing.stages.reconcile_meters import reconcile_meters
from token_billing.windows import Window

#: Stripe lets a run read at 20 calls a second: what is done beside the reading must stay far below that.
READ_SHARE = 0.5

#: Only the window waits: others share their hours with what the bare SDK sent.
_WAITING = """
UPDATE billing.usage_report
SET confirmed_at = CASE WHEN window_start <> %(window)s THEN coalesce(accepted_at, frozen_at) END WHERE state IN ('accepted', 'billed')
"""

_READS = """
SELECT customer_id, meter_id FROM billing.usage_report WHERE state IN ('accepted', 'billed') AND window_start = %(window)s
"""


def compare_reconciling(
    connect: Connect, target: StripeTarget, settings: PushSettings, window: Window, repeats: int, say: Say
) -> Comparison:
    """Every customer's accepted hour is confirmed, by one call each; the first round is not counted."""
    ours: list[float] = []
    bare: list[float] = []
    with connect() as db:
        counters = db.execute(_READS, {"window": window.start}).fetchall()

    def clock() -> datetime:
        return system_clock() + SETTLING + timedelta(minutes=1)

    for number in range(repeats + 1):
        with connect() as db:
            db.execute(_WAITING, {"window": window.start})
            db.execute("DELETE FROM billing.counter_reading")
        bare.append(asyncio.run(_read_with_the_sdk_alone(target, settings.concurrency, counters, window)))
        started = time.perf_counter()
        counts = reconcile_meters(connect, target, clock, settings)
        ours.append(time.perf_counter() - started)
        if counts != {"reads": len(counters), "hours_agrees": len(counters), "reports_confirmed": len(counters)}:
            raise AssertionError(f"{len(counters)} counters, but: {counts}")
        if number:
            say(f"reconcile_meters, round {number} of {repeats}: ours {ours[-1]:.2f} s, bare SDK {bare[-1]:.2f} s")
    what = f"reconcile_meters of {len(counters):,} customers, a call each"
    beside = f"the SDK alone, {settings.concurrency} in flight"
    return throughput_ratio("reconcile_meters", what, beside, ours[1:], bare[1:], READ_SHARE)


async def _read_with_the_sdk_alone(target: StripeTarget, at_once: int, counters: list[tuple[Any, ...]], window: Window) -> float:
    """The same summaries, as fast as the SDK reads them; returns the seconds."""
    started = time.perf_counter()
    transport = stripe.AIOHTTPClient()
    client = stripe.StripeClient(target.secret_key, base_addresses={"api": target.base}, http_client=transport, max_network_retries=0)
    left: Iterator[tuple[Any, ...]] = iter(counters)

    async def read_until_done() -> None:
        for customer, meter in left:
            wanted: Any = {
                "customer": customer,
                "start_time": int(window.start.timestamp()),
                "end_time": int(window.end.timestamp()),
                "value_grouping_window": "hour",
                "limit": 100,
            }
            listed = await client.v1.billing.meters.event_summaries.list_async(meter, wanted)
            sum([one.aggregated_value async for one in listed.auto_paging_iter()])

    try:
        await asyncio.gather(*(read_until_done() for _ in range(at_once)))
    finally:
        await transport.close_async()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started
