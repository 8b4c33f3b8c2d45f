"""The billing database behind a connection pooler in transaction mode, where nothing that belongs to a session outlives a commit.

`make test-pooler` runs every test of the billing database that way; these run always."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from integration.test_adoption import APPLICATION

#: Turns to freeze, leases, exported snapshots and savepoints.
from integration.test_billing_once import test_four_runs_of_one_hour_at_once_bill_it_once as test_four_runs_of_one_hour_at_once_bill_it_once
from pooler.pgbouncer import PgBouncer, pgbouncer
from sandbox.postgres import PostgresServer
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters.database import session
from token_billing.stages.adopt import adopt
from world import World, now

pytestmark = pytest.mark.usefixtures("pooler")


def test_a_session_does_not_outlive_its_transaction_here(world: World) -> None:
    """Else nothing below would show anything."""
    server = "SELECT pg_backend_pid()"
    with session(world.connect) as db, session(world.connect) as other:
        first = db.execute(server).fetchone()
        with other.transaction():
            assert other.execute(server).fetchone() == first
            assert db.execute(server).fetchone() != first


def test_a_database_is_adopted_once_by_three_at_once(postgres: PostgresServer, pooler: PgBouncer, simulator: StripeSimulator) -> None:
    """Migrations, and the index that is built once."""
    direct = World(postgres.recreate_database("adopted_through_pooler"), simulator)
    direct.sql(APPLICATION)
    pooled = World(pooler.dsn("adopted_through_pooler"), simulator)
    with ThreadPoolExecutor(3) as adoptions:
        for adoption in [adoptions.submit(adopt, pooled.connect, now) for _ in range(3)]:
            adoption.result()
    pooled.link("a")
    pooled.use("a", 5)
    assert pooled.bill()["billed"] == 5


def test_marking_through_a_pool_of_one_connection_fails_whole(world: World, postgres: PostgresServer) -> None:
    """It needs two, so it waits for itself until the pooler's patience ends. Nothing is marked by halves; a larger pool goes on."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    world.push()
    with pgbouncer(postgres.port, pool_size=1, wait_seconds=1) as narrow:
        cramped = World(narrow.dsn("billing"), world.simulator)
        with pytest.raises(psycopg.OperationalError):
            cramped.mark_billed()
    assert (world.marked(), world.states()) == ({}, {"a": "accepted"})
    world.mark_billed()
    assert world.marked() == {"a": 5}
