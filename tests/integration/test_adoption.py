"""Adopting a database: a running system keeps running, and nothing it billed before is billed again."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from sandbox.postgres import PostgresServer
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters import ledger
from token_billing.errors import LedgerNotReady, OperatorNeeded
from token_billing.stages.adopt import adopt
from token_billing.stages.freeze import freeze
from world import World, now

#: As an application makes it: no thought of billing.
APPLICATION = """
CREATE TABLE tenants (id text PRIMARY KEY, name text, stripe_customer_id text, stripe_subscription_id text, stripe_usage_item_id text);
CREATE TABLE token_usage (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant_id text, model text, input_tokens integer, output_tokens integer,
    billed boolean DEFAULT false, created_at timestamptz DEFAULT now());
CREATE INDEX ON token_usage (created_at) WHERE NOT billed;
"""


@pytest.fixture
def running(postgres: PostgresServer, simulator: StripeSimulator) -> World:
    """A system that another job billed until five hours ago: per hour one row, of 1, 2, … tokens; the last window has the most."""
    world = World(postgres.recreate_database("running"), simulator)
    world.sql(APPLICATION)
    for hour in range(10):
        world.use("a", 10 - hour, at=world.window.start - timedelta(hours=hour))
    world.sql("UPDATE token_usage SET billed = true WHERE created_at < %s", world.window.start - timedelta(hours=5))
    return world


def cut_over(world: World) -> datetime:
    return world.window.start - timedelta(hours=3)


def test_usage_before_the_cut_over_hour_is_quarantined_and_after_it_billed(running: World) -> None:
    """What the other job billed stays billed, what it left is kept aside for a decision, what is ours is billed."""
    adopt(running.connect, now, cut_over(running))
    running.link("a")
    assert running.bill()["billed"] == 10
    quarantined = running.sql(
        "SELECT quarantine_reason, sum(token_count)::int FROM billing.usage_report WHERE state = 'quarantined' GROUP BY 1"
    )
    assert quarantined == [("before_adoption", 5 + 6)]
    assert running.sql("SELECT sum(input_tokens)::int FROM token_usage WHERE billed") == [(10 + 1 + 2 + 3 + 4,)]


def test_late_usage_of_an_hour_before_the_cut_over_is_quarantined_too(running: World) -> None:
    """Whenever it arrives, and beside rows the other job billed in the same hour."""
    adopt(running.connect, now, cut_over(running))
    old = World(running.dsn, running.simulator, type(running.window)(running.window.start - timedelta(hours=7)))
    old.use("a", 100)
    assert old.bill() == {"tokens": 103, "billed": 0, "pending": 0, "not_frozen": 0, "quarantined": 100}


def test_a_table_that_another_job_bills_from_needs_a_cut_over_hour(running: World) -> None:
    """Only its owner knows where that job stopped; nothing is changed until it is said."""
    with pytest.raises(LedgerNotReady, match="--cut-over"):
        adopt(running.connect, now)
    assert running.sql("SELECT to_regclass('billing.ledger')") == [(None,)]
    with pytest.raises(OperatorNeeded, match="not the start of a UTC hour"):
        adopt(running.connect, now, cut_over(running) + timedelta(minutes=1))


def test_adopting_again_changes_nothing_and_the_cut_over_stands(running: World) -> None:
    """Also from several deployments at once."""
    with ThreadPoolExecutor(3) as pool:
        for run in [pool.submit(adopt, running.connect, now, cut_over(running)) for _ in range(3)]:
            run.result()
    before = running.sql("SELECT ledger_id, cut_over FROM billing.ledger")
    adopt(running.connect, now)
    assert running.sql("SELECT ledger_id, cut_over FROM billing.ledger") == before
    with pytest.raises(LedgerNotReady, match="stands"):
        adopt(running.connect, now, cut_over(running) - timedelta(hours=1))


def test_the_application_goes_on_inserting_with_its_own_columns(running: World) -> None:
    """Before, during and after the adoption."""
    adopt(running.connect, now, cut_over(running))
    running.sql(
        "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, billed, created_at) VALUES ('a', 'm', 1, 2, false, now())"
    )


def test_an_hour_is_found_without_reading_the_whole_table(running: World) -> None:
    """Where the application has no index on the event time, the adoption adds a small one."""
    adopt(running.connect, now, cut_over(running))
    assert running.sql("SELECT count(*) FROM pg_indexes WHERE indexname = 'token_usage_billing_time'") == [(1,)]


def test_of_two_adoptions_that_miss_the_index_one_makes_it(running: World) -> None:
    """The other waits, and finds it there."""
    adopt(running.connect, now, cut_over(running))
    running.sql("DROP INDEX token_usage_billing_time")
    with ThreadPoolExecutor(1) as pool, running.connect() as db:
        ledger.ensure_time_index(db)
        second = pool.submit(adopt, running.connect, now)
        while not running.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            assert not second.done()
        db.commit()
        second.result()
    assert running.sql("SELECT count(*) FROM pg_indexes WHERE indexname = 'token_usage_billing_time'") == [(1,)]


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        ("DROP TABLE token_usage", "no table token_usage"),
        ("DROP TABLE tenants", "no table tenants"),
        ("ALTER TABLE token_usage DROP COLUMN billed", "no column billed"),
        ("ALTER TABLE tenants DROP COLUMN stripe_usage_item_id", "no column stripe_usage_item_id"),
        ("ALTER TABLE token_usage ALTER COLUMN created_at TYPE timestamp", "timestamp without time zone"),
        ("ALTER TABLE token_usage ALTER COLUMN input_tokens TYPE double precision", "double precision"),
        ("UPDATE token_usage SET input_tokens = -1 WHERE id = 1", "rows 1 have a negative"),
        ("UPDATE token_usage SET tenant_id = NULL WHERE id = 2", "rows 2 have"),
        ("UPDATE token_usage SET created_at = NULL WHERE id = 3", "rows 3 have"),
        ("UPDATE token_usage SET billed = NULL WHERE id = 1", "rows 1 have"),
    ],
)
def test_tables_that_cannot_be_billed_from_are_refused_with_the_reason(running: World, breaking: str, message: str) -> None:
    """Before anything is changed."""
    running.sql(breaking)
    with pytest.raises(LedgerNotReady, match=message):
        adopt(running.connect, now, cut_over(running))
    assert running.sql("SELECT to_regclass('billing.ledger')") == [(None,)]


@pytest.mark.parametrize("state", ["nothing", "schema only"])
def test_a_stage_without_a_ledger_says_how_to_make_one(running: World, state: str) -> None:
    """Instead of an error about a missing table."""
    if state == "schema only":
        running.sql("CREATE SCHEMA billing")
    with pytest.raises(LedgerNotReady, match="adopt"):
        freeze(running.connect, running.window, now)


def test_a_ledger_in_another_cluster_is_refused(world: World) -> None:
    """Transaction ids begin anew there, so fences would mean other rows."""
    world.use("a", 5)
    world.sql("UPDATE billing.ledger SET system_identifier = system_identifier + 1")
    steps: list[Callable[[], object]] = [world.freeze, world.push, world.mark_billed]
    for step in steps:
        with pytest.raises(LedgerNotReady, match="restored or copied"):
            step()


def test_a_ledger_of_another_version_of_this_code_is_refused(world: World) -> None:
    """An update's migrations come first."""
    world.sql("UPDATE billing.migration SET version_num = '0001_ledger'")
    with pytest.raises(LedgerNotReady, match="at migration 0001_ledger, this code needs"):
        world.freeze()


def test_an_adoption_that_was_killed_half_way_is_finished_by_the_next(running: World) -> None:
    """Between the migrations and the ledger's identity nothing may be billed."""
    adopt(running.connect, now, cut_over(running))
    with running.connect() as db:
        db.execute("TRUNCATE billing.fence, billing.usage_report, billing.push_attempt, billing.discrepancy CASCADE")
        db.execute("DELETE FROM billing.ledger")
    with pytest.raises(LedgerNotReady, match="not finished"):
        running.freeze()
    adopt(running.connect, now, cut_over(running))
    assert running.sql("SELECT count(*) FROM billing.ledger") == [(1,)]
    assert running.sql("SELECT count(*) FROM billing.usage_report WHERE quarantine_reason = 'before_adoption'") == [(2,)]


def test_adopting_does_not_rewrite_the_table(running: World) -> None:
    """A table of any size is adopted in an instant: its file stays the same."""
    before = running.sql("SELECT pg_relation_filenode('token_usage')")
    adopt(running.connect, now, cut_over(running))
    assert running.sql("SELECT pg_relation_filenode('token_usage')") == before
    assert running.sql("SELECT count(DISTINCT recorded_xid) FROM token_usage") == [(1,)]


def test_an_adoption_does_not_wait_for_ever_behind_a_long_writer(running: World) -> None:
    """Nor make the application's other writers wait behind it: it gives up, and says so, with nothing changed."""
    with running.connect() as writer:
        running.use("a", 1, db=writer)
        with pytest.raises(LedgerNotReady, match="in use"):
            adopt(running.connect, now, cut_over(running))
    assert running.sql("SELECT to_regclass('billing.ledger')") == [(None,)]
    adopt(running.connect, now, cut_over(running))


def test_an_ordinary_owner_of_the_tables_can_adopt_and_bill(running: World) -> None:
    """No superuser is needed; one who does not own the tables is told so."""
    running.sql("CREATE ROLE app_owner LOGIN")
    running.sql("CREATE ROLE somebody LOGIN")
    running.sql("GRANT CREATE ON DATABASE running TO app_owner, somebody")
    running.sql("GRANT CREATE ON SCHEMA public TO app_owner")
    running.sql("ALTER TABLE tenants OWNER TO app_owner")
    running.sql("ALTER TABLE token_usage OWNER TO app_owner")
    running.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO somebody")
    stranger = World(running.dsn.replace("postgres@", "somebody@"), running.simulator)
    with pytest.raises(LedgerNotReady, match="connect `billing_db` as the owner"):
        adopt(stranger.connect, now, cut_over(running))
    owner = World(running.dsn.replace("postgres@", "app_owner@"), running.simulator)
    adopt(owner.connect, now, cut_over(running))
    owner.link("a")
    assert owner.bill()["billed"] == 10
