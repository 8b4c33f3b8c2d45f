"""A tenant's world in a test: rows are recorded, stages run, and three witnesses tell what became of the tokens."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from legacy_account import link_to_usage_records
from sandbox.kept_in_files import KeptInFiles
from sandbox.stripe_account import link_tenants
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters import ledger
from token_billing.adapters.stripe_gateway import StripeTarget, stripe_gateway
from token_billing.model import Conservation, PushedShard, Shard, Sink
from token_billing.settings import PushSettings
from token_billing.stages.cancel_surplus import cancel_surplus
from token_billing.stages.check_conservation import check_conservation
from token_billing.stages.freeze import freeze
from token_billing.stages.mark_billed import mark_billed
from token_billing.stages.push import push
from token_billing.windows import Window, last_closed_window

#: Fast enough to be no subject of any test but its own, and leases that a test can wait out.
SETTINGS = PushSettings(calls_per_second=5000, reads_per_second=5000, lease=timedelta(seconds=30), backoff_s=0.01)


#: Marks tests whose promise holds for either sink.
both_sinks = pytest.mark.parametrize("sink", list(Sink), indirect=True)


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class World:
    """The billing database and Stripe, and a window that has just closed."""

    dsn: str
    simulator: StripeSimulator
    window: Window = field(default_factory=lambda: last_closed_window(now()))
    clock: Callable[[], datetime] = now
    stripe_base: str | None = None
    sink: Sink = Sink.BILLING_METERS
    keeper: KeptInFiles = field(default_factory=lambda: KeptInFiles(Path(os.environ["AIRFLOW_HOME"])))

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn)

    @property
    def target(self) -> StripeTarget:
        return StripeTarget(
            self.simulator.api_key, self.stripe_base or self.simulator.base_url, sandbox=True, timeout_s=5, read_backoff_s=0.01
        )

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """One statement in its own transaction."""
        with self.connect() as db:
            cursor = db.execute(statement, parameters)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def set_time(self, instant: datetime) -> None:
        """Our clock and Stripe's stand there."""
        self.simulator.set_clock(instant)
        self.clock = lambda: instant

    def link(self, *tenants: str) -> None:
        """Gives tenants a Stripe customer and a subscription."""
        with self.connect() as db:
            db.prepare_threshold = None  # a transaction-mode pooler may stand in between
            if self.sink is Sink.USAGE_RECORDS:
                since = self.window.start - timedelta(days=40)
                return link_to_usage_records(db, tenants, self.simulator.base_url, self.simulator.api_key, since)
            link_tenants(db, {tenant: tenant for tenant in tenants}, self.simulator.base_url, self.simulator.api_key)

    def use(self, tenant: str, tokens: int, *, at: datetime | None = None, db: psycopg.Connection[Any] | None = None) -> None:
        """Records one call, by default in the middle of the window, with the contract's columns only."""
        statement = "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) VALUES (%s, 'm', %s, 0, %s)"
        row = (tenant, tokens, at or self.window.start + timedelta(minutes=30))
        if db is not None:
            db.execute(statement, row, prepare=False)  # a transaction-mode pooler may stand in between
        else:
            self.sql(statement, *row)

    def freeze(self) -> None:
        freeze(self.connect, self.window, self.clock)

    def push(self, settings: PushSettings = SETTINGS) -> PushedShard:
        return push(self.connect, self.target, self.window, Shard(0, 1), self.clock, replace(settings, sink=self.sink), self.keeper)

    def mark_billed(self) -> None:
        mark_billed(self.connect, self.window, self.clock)

    def cancel_surplus(self) -> int:
        return cancel_surplus(self.connect, self.target, self.clock, SETTINGS)

    def bill(self) -> dict[str, int]:
        """All stages of one run; returns the window's tokens by what became of them."""
        self.freeze()
        self.push()
        self.mark_billed()
        return check_conservation(self.connect, self.window)

    def conservation(self) -> list[Conservation]:
        with self.connect() as db:
            return ledger.conservation(db, self.window.start, self.window.end)

    def states(self) -> dict[str, str]:
        """Each tenant's latest report's state."""
        return dict(self.sql("SELECT tenant_id, state FROM billing.usage_report ORDER BY revision"))

    def marked(self) -> dict[str, int]:
        """Tokens of rows marked billed, by tenant."""
        return dict(
            self.sql("SELECT tenant_id, sum(input_tokens::bigint + output_tokens)::bigint FROM token_usage WHERE billed GROUP BY tenant_id")
        )

    def received(self) -> list[int]:
        """The tokens of each meter event that Stripe received, or of each usage record that it has."""
        if self.sink is Sink.USAGE_RECORDS:
            return [record["quantity"] for record in self.simulator.usage_records()]
        return [int(event["value"]) for event in self.simulator.meter_events()]

    def at_stripe(self) -> Mapping[str, int]:
        """Tokens that Stripe's meter summaries, or its usage records, count, by tenant."""
        if self.sink is Sink.USAGE_RECORDS:
            tenants = dict(self.sql("SELECT stripe_usage_item_id, id FROM tenants"))
            used = Counter[str]()
            for record in self.simulator.usage_records():
                used[tenants[record["subscription_item"]]] += record["quantity"]
            return dict(used)
        destinations = self.sql(
            "SELECT DISTINCT t.id, t.stripe_customer_id, m.meter_id FROM tenants t JOIN billing.metered_item i "
            "ON i.usage_item_id = t.stripe_usage_item_id JOIN billing.meter m USING (meter_id)"
        )

        async def read() -> dict[str, int]:
            start, end = self.window.start - timedelta(days=40), self.window.end + timedelta(days=1)
            async with stripe_gateway(StripeTarget(self.simulator.api_key, self.simulator.base_url, sandbox=True)) as stripe:
                return {tenant: await stripe.summed_usage(customer, meter, start, end) for tenant, customer, meter in destinations}

        return {tenant: tokens for tenant, tokens in asyncio.run(read()).items() if tokens}
