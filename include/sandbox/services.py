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


class SandboxBusy(Exception):
    """Another demo runs in this folder."""


@contextmanager
def demo_services(say: Say, clock: datetime) -> Iterator[tuple[SandboxServices, StripeSimulator]]:
    """PostgreSQL with an empty billing database, and a simulator with an empty account whose time stands at `clock`, for as long
    as the block runs. Raises SandboxBusy where another demo is at it."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SandboxBusy("another `make demo` is running in this folder: wait for it, or end it with Ctrl-C") from None
        say("starting PostgreSQL")
        with shared_postgres() as postgres:
            billing, metadata = sandbox_databases(postgres, "demo", fresh=True)
            say("starting the Stripe simulator")
            with StripeSimulator.start(clock=clock, api_keys=[SECRET_KEY]) as simulator:
                yield SandboxServices(billing, metadata, simulator.base_url), simulator


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
