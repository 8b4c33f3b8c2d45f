"""What the sandbox runs beside Airflow: one PostgreSQL for both databases, and the Stripe simulator."""

import fcntl
import os
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
    with shared_postgres() as postgres:
        billing, metadata = sandbox_databases(postgres, name, fresh=fresh)
        say("starting the Stripe simulator")
        simulator = StripeSimulator.start(state_dir=None if fresh else HOME / "simulator", clock=clock or "real", api_keys=[SECRET_KEY])
        try:
            yield SandboxServices(billing, metadata, simulator.base_url), simulator
        finally:
            simulator.stop()


@contextmanager
def shared_postgres() -> Iterator[PostgresServer]:
    """The sandbox's PostgreSQL for as long as the block runs. `make demo` and `make up` may use it at once: the last one stops it."""
    server = PostgresServer(HOME / "postgres")
    HOME.mkdir(parents=True, exist_ok=True)
    # A lock on an open file ends with its process, however that ends: nobody who was killed counts as a user.
    users = os.open(HOME / "postgres.users", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        server.start()
        yield server
    finally:
        os.close(users)
        stop_unused_postgres()


def stop_unused_postgres() -> None:
    """Stops the sandbox's PostgreSQL unless somebody is using it; harmless when it is not running."""
    HOME.mkdir(parents=True, exist_ok=True)
    users = os.open(HOME / "postgres.users", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held while stopping: whoever comes now waits and starts it anew
        PostgresServer(HOME / "postgres").stop()
    except BlockingIOError:
        return
    finally:
        os.close(users)


def sandbox_databases(postgres: PostgresServer, name: str, *, fresh: bool) -> tuple[str, str]:
    """The URLs of the billing and the metadata database called after `name`, made where they are missing; `fresh` empties the first."""
    billing = postgres.recreate_database(name) if fresh else postgres.ensure_database(name)
    metadata = postgres.ensure_database(f"{name}_airflow")
    with psycopg.connect(metadata, autocommit=True) as db:  # which runs there were is not worth a disk's wait each
        db.execute(f'ALTER DATABASE "{name}_airflow" SET synchronous_commit = off')
    return billing, metadata


def prepare_billing_database(dsn: str, clock: Clock = system_clock) -> None:
    """Creates the application's tables, in the sandbox's own layout, where they are missing, and adopts them."""
    with psycopg.connect(dsn) as connection:
        connection.execute(APPLICATION_SQL.read_bytes())
    adopt(lambda: psycopg.connect(dsn), clock)
