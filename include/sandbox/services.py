"""What the sandbox runs beside Airflow: one PostgreSQL for both databases, and the Stripe simulator."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import psycopg

from sandbox import APPLICATION_SQL
from sandbox.environment import HOME, SECRET_KEY, SandboxServices
from sandbox.postgres import PostgresServer
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters.clock import system_clock
from token_billing.model import Clock
from token_billing.stages.adopt import adopt

Say = Callable[[str], None]


@contextmanager
def running_services(
    name: str, say: Say, *, fresh: bool, clock: datetime | None = None
) -> Iterator[tuple[SandboxServices, StripeSimulator]]:
    """PostgreSQL and the simulator for as long as the block runs, with a billing and a metadata database called after `name`.

    `fresh`: the billing database and the simulator's account begin empty; otherwise both go on where they stopped. `clock`: the
    simulator's time stands there and moves only when told; None lets it run with the system's."""
    say("starting PostgreSQL")
    with PostgresServer(HOME / "postgres") as postgres:
        billing = postgres.recreate_database(name) if fresh else postgres.ensure_database(name)
        metadata = postgres.ensure_database(f"{name}_airflow")
        with psycopg.connect(metadata, autocommit=True) as db:  # which runs there were is not worth a disk's wait each
            db.execute(f'ALTER DATABASE "{name}_airflow" SET synchronous_commit = off')  # type: ignore[arg-type]
        say("starting the Stripe simulator")
        simulator = StripeSimulator.start(state_dir=None if fresh else HOME / "simulator", clock=clock or "real", api_keys=[SECRET_KEY])
        try:
            yield SandboxServices(billing, metadata, simulator.base_url), simulator
        finally:
            simulator.stop()


def prepare_billing_database(dsn: str, clock: Clock = system_clock) -> None:
    """Creates the application's tables, in the sandbox's own layout, where they are missing, and adopts them."""
    with psycopg.connect(dsn) as connection:
        connection.execute(APPLICATION_SQL.read_bytes())
    adopt(lambda: psycopg.connect(dsn), clock)
