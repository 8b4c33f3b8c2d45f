"""PostgreSQL killed under a run, the server and all its processes at once: it recovers, and the next run bills exactly once."""

import os
import signal
from collections.abc import Callable, Iterator
from threading import Thread
from time import monotonic, sleep

import psutil
import psycopg
import pytest

from adopted import TEMPLATE, adopted_copy, make_template
from crash.places import places
from sandbox.postgres import PostgresServer
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters.database import Connection
from world import World

TOKENS = {"a": 5, "b": 11, "unlinked": 13}

#: What was reached when the server dies: a statement of the transaction, and how often it was executed in the run by then.
STATEMENTS = {
    "the freeze": ("add_reports", 1),
    "the note of an attempt": ("note_attempts", 1),
    "the record of what Stripe answered": ("record_outcomes", 2),  # the first records nothing yet: all is on the network
    "the marking": ("mark_reports", 1),
}


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of its own, with the settings that production has."""
    with PostgresServer(tmp_path_factory.mktemp("durable") / "postgres", durable=True) as server:
        make_template(server)
        yield server


@pytest.fixture
def world(durable: PostgresServer, simulator: StripeSimulator) -> World:
    """A database and a Stripe account of its own."""
    world = World(adopted_copy(durable, TEMPLATE), simulator)
    world.link("a", "b")
    for tenant, tokens in TOKENS.items():
        world.use(tenant, tokens)
        world.use(tenant, 1)
    return world


def crash(server: PostgresServer) -> None:
    """SIGKILL for the server and all its processes: nobody writes or says anything more."""
    postmaster = psutil.Process(int((server.data_dir / "cluster" / "postmaster.pid").read_text().split()[0]))
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)


def fails_when_the_server_dies(run: Callable[[], object], server: PostgresServer, transaction: str, *, committed: bool) -> None:
    """The run ends in an error that says what happened, and that Airflow's retries heal. The server dies after the transaction's
    statement, or after its commit was answered."""
    statement, nth = STATEMENTS[transaction]
    inside: list[Connection | None] = []

    def arrive(name: str, connection: Connection | None) -> None:
        if name == f"after {statement}":
            inside.append(connection)
        if len(inside) == nth and connection is inside[-1] and name == f"after {'the end of a transaction' if committed else statement}":
            crash(server)

    async def arrive_at_request(_: str) -> None:
        return

    with places(arrive, arrive_at_request), pytest.raises(psycopg.OperationalError, match=r"server|connection"):
        run()
    assert not server.is_running()
    server.start()


def bills_exactly_once(world: World) -> None:
    """What another run makes of it."""
    assert all(tenant.holds for tenant in world.conservation()), "the law also holds right after the recovery"
    world.sql("UPDATE billing.customer_lease SET expires_at = '-infinity'")  # the dead run's leases run out
    assert world.bill() == {"tokens": 32, "billed": 18, "pending": 0, "not_frozen": 0, "quarantined": 14}
    assert world.at_stripe() == {"a": 6, "b": 12}
    assert len(world.simulator.meter_events()) == 2
    assert world.marked() == {"a": 6, "b": 12}


@pytest.mark.parametrize("transaction", STATEMENTS)
def test_a_server_that_dies_inside_a_transaction_loses_nothing(transaction: str, durable: PostgresServer, world: World) -> None:
    fails_when_the_server_dies(world.bill, durable, transaction, committed=False)
    bills_exactly_once(world)


@pytest.mark.parametrize("transaction", STATEMENTS)
def test_what_was_committed_outlives_the_server(transaction: str, durable: PostgresServer, world: World) -> None:
    """Killed right after the commit was answered: a note is there before anything is sent on its strength."""
    reached = {
        "the freeze": {"a": "frozen", "b": "frozen", "unlinked": "frozen"},
        "the note of an attempt": {"a": "sending", "b": "sending", "unlinked": "quarantined"},
        "the record of what Stripe answered": {"a": "accepted", "b": "accepted", "unlinked": "quarantined"},
        "the marking": {"a": "billed", "b": "billed", "unlinked": "quarantined"},
    }
    fails_when_the_server_dies(world.bill, durable, transaction, committed=True)
    assert world.states() == reached[transaction]
    bills_exactly_once(world)


def test_a_server_that_dies_in_the_middle_of_the_marking_update_loses_nothing(durable: PostgresServer, world: World) -> None:
    """The UPDATE has written some rows and waits for the last when the server dies."""
    world.freeze()
    world.push()
    blocker = world.connect()
    blocker.execute("SELECT FROM token_usage WHERE id = (SELECT max(id) FROM token_usage WHERE tenant_id = 'b') FOR UPDATE")

    def kill_while_it_waits() -> None:
        deadline = monotonic() + 60
        with psycopg.connect(world.dsn, autocommit=True) as db:
            while monotonic() < deadline:
                waiting = db.execute(
                    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%UPDATE token_usage%'"
                )
                if waiting.fetchone():
                    return crash(durable)
                sleep(0.01)

    killer = Thread(target=kill_while_it_waits)
    killer.start()
    with pytest.raises(psycopg.OperationalError, match=r"server|connection"):
        world.mark_billed()
    killer.join()
    assert not durable.is_running()
    durable.start()
    bills_exactly_once(world)
