"""push and reconcile_meters, beside the SDK alone; freeze, push and mark_billed, beside the job they replace. All of them at the sandbox's
simulator."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import cast

import psycopg
import requests
import stripe

from benchmarks.comparison import Comparison, Say, throughput_ratio, time_ratio
from benchmarks.databases import APPLICATION_MADE_SQL, Databases, tenant_id, usage_of_hour
from benchmarks.reconciling import compare_reconciling
from benchmarks.seed_job import seed_job
from sandbox.kept_in_files import KeptInFiles
from sandbox.stripe_account import link_tenants
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters.clock import system_clock
from token_billing.adapters.database import Connect
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.settings import PushSettings, shards_for
from token_billing.stages.adopt import adopt
from token_billing.stages.freeze import freeze
from token_billing.stages.mark_billed import mark_billed
from token_billing.stages.push import push
from token_billing.windows import HOUR, Window, last_closed_window

PUSH_SHARE = 0.8

#: The rate is nobody's bottleneck here.
SETTINGS = PushSettings(calls_per_second=100_000, reads_per_second=100_000)

_ONE_CALL_EACH = """
INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at)
SELECT id, 'gpt-5-mini', 600, 180, %(start)s FROM tenants
"""


@dataclass(frozen=True)
class Account:
    """The simulator's account with its linked tenants, and how to reach it: a loopback address and a test key, or nothing."""

    target: StripeTarget
    customers: tuple[str, ...]
    event_name: str


def compare_pushing(
    databases: Databases, simulator: StripeSimulator, report_count: int, job_rows: int, repeats: int, say: Say
) -> list[Comparison]:
    """`report_count`: reports of the push alone; `job_rows`: rows of the hour that is billed from end to end."""
    job_tenants = min(report_count, max(1, job_rows // 100))
    say(f"giving {report_count:,} tenants a customer and a subscription at the simulator")
    account = _link(databases, simulator, report_count)
    windows = _windows_back(1 + repeats)
    pushed = databases.copy("linked", "pushed")
    simulator.settings(summary_delay_seconds=0)  # how long a summary lags is nobody's speed
    return [
        _compare_push(databases, pushed, account, windows, say),
        compare_reconciling(pushed, account.target, SETTINGS, _push_one_more(databases, pushed, account, windows), repeats, say),
        _compare_job(databases, account, windows, job_rows, job_tenants, say),
    ]


def _windows_back(how_many: int) -> list[Window]:
    """Closed hours, in order; a round of ours takes a new one, since a report is pushed once."""
    last = last_closed_window(system_clock())
    return [Window(last.start - n * HOUR) for n in reversed(range(how_many))]


def _link(databases: Databases, simulator: StripeSimulator, tenant_count: int) -> Account:
    target = StripeTarget(simulator.api_key, simulator.base_url, sandbox=True)
    connect = databases.create("linked", APPLICATION_MADE_SQL)
    with connect() as db:
        names = {tenant_id(number): f"Tenant {number}" for number in range(tenant_count)}
        link_tenants(cast(psycopg.Connection, db), names, target.base, target.secret_key)
        customers = tuple(customer for (customer,) in db.execute("SELECT stripe_customer_id FROM tenants ORDER BY id"))
    databases.settle("linked")
    return Account(target, customers, "managed_ai_tokens_bundled")


# --- push alone -------------------------------------------------------------------------------------------------------


def _compare_push(databases: Databases, connect: Connect, account: Account, windows: list[Window], say: Say) -> Comparison:
    """The first round is not counted: it also asks Stripe, once for ever, which meter each tenant's subscription leads to."""
    adopt(connect, system_clock)
    identifiers = count()
    ours: list[float] = []
    bare: list[float] = []
    for number, window in enumerate(windows):
        bare.append(asyncio.run(_send_with_the_sdk_alone(account, identifiers, window.start)))
        with connect() as db:
            db.execute(_ONE_CALL_EACH, {"start": window.start})
        frozen = freeze(connect, window, system_clock)
        databases.checkpoint()
        started = time.perf_counter()
        for shard in shards_for(frozen.pending_count):
            push(connect, account.target, window, shard, system_clock, SETTINGS, databases.keeper)
        ours.append(time.perf_counter() - started)
        if number:
            say(f"push, round {number} of {len(windows) - 1}: ours {ours[-1]:.2f} s, bare SDK {bare[-1]:.2f} s")
    size = len(account.customers)
    beside = f"the SDK alone, {SETTINGS.concurrency} in flight"
    return throughput_ratio("push", f"push of {size:,} reports", beside, ours[1:], bare[1:], PUSH_SHARE)


def _push_one_more(databases: Databases, connect: Connect, account: Account, windows: list[Window]) -> Window:
    """An hour that nobody else sent anything of."""
    window = Window(windows[0].start - HOUR)
    with connect() as db:
        db.execute(_ONE_CALL_EACH, {"start": window.start})
    for shard in shards_for(freeze(connect, window, system_clock).pending_count):
        push(connect, account.target, window, shard, system_clock, SETTINGS, databases.keeper)
    return window


async def _send_with_the_sdk_alone(account: Account, identifiers: Iterator[int], event_time: datetime) -> float:
    """As many meter events as there are customers, as fast as the SDK sends them; returns the seconds."""
    started = time.perf_counter()
    transport = stripe.AIOHTTPClient()
    addresses: stripe.BaseAddresses = {"api": account.target.base, "meter_events": account.target.base}
    client = stripe.StripeClient(account.target.secret_key, base_addresses=addresses, http_client=transport, max_network_retries=0)
    customers = iter(account.customers)

    async def send_until_done() -> None:
        for customer in customers:
            identifier = f"bare-{next(identifiers):012d}"
            await client.v1.billing.meter_events.create_async(
                {
                    "event_name": account.event_name,
                    "payload": {"stripe_customer_id": customer, "value": "780"},
                    "identifier": identifier,
                    "timestamp": int(event_time.timestamp()),
                },
                {"idempotency_key": identifier},
            )

    try:
        await asyncio.gather(*(send_until_done() for _ in range(SETTINGS.concurrency)))
    finally:
        await transport.close_async()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


# --- from end to end --------------------------------------------------------------------------------------------------


def _compare_job(databases: Databases, account: Account, windows: list[Window], row_count: int, tenant_count: int, say: Say) -> Comparison:
    """Both bill the same hours from tables as an application makes them; ours is adopted. The first round is not counted."""
    replaced, connect = databases.copy("linked", "replaced"), databases.copy("linked", "ours")
    adopt(connect, system_clock)
    client = _plain_client(account.target)
    ours: list[float] = []
    theirs: list[float] = []
    for number, window in enumerate(windows):
        for name, one in (("replaced", replaced), ("ours", connect)):
            with one() as db:
                usage_of_hour(db, window, row_count, tenant_count)
            databases.settle(name)
        started = time.perf_counter()
        marked_by_job = seed_job(replaced, client, account.event_name)
        theirs.append(time.perf_counter() - started)
        databases.checkpoint()
        started = time.perf_counter()
        marked = _bill(connect, window, account.target, databases.keeper)
        ours.append(time.perf_counter() - started)
        if (marked_by_job, marked) != (row_count, row_count):
            raise AssertionError(f"of {row_count} rows the replaced job marked {marked_by_job}, ours {marked}")
        if number:
            say(f"from end to end, round {number} of {len(windows) - 1}: ours {ours[-1]:.2f} s, the job it replaces {theirs[-1]:.2f} s")
    what = f"freeze + push + mark, {row_count:,} rows, {tenant_count:,} tenants"
    return time_ratio("end_to_end", what, "the job this replaces", ours[1:], theirs[1:])


def _bill(connect: Connect, window: Window, target: StripeTarget, keeper: KeptInFiles) -> int:
    frozen = freeze(connect, window, system_clock)
    for shard in shards_for(frozen.pending_count):
        push(connect, target, window, shard, system_clock, SETTINGS, keeper)
    return mark_billed(connect, window, system_clock).row_count


def _plain_client(target: StripeTarget) -> stripe.StripeClient:
    """The SDK as it comes: synchronous, one call after the other."""
    addresses: stripe.BaseAddresses = {"api": target.base, "meter_events": target.base}
    return stripe.StripeClient(target.secret_key, base_addresses=addresses, http_client=stripe.RequestsClient(session=requests.Session()))
