"""A database that was restored or copied is refused, and after one command bills nothing twice and loses nothing."""

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from restored_worlds import bill_for_days, burn_ids, recover_by_command, restore, sent
from sandbox.postgres import PostgresServer, find_binaries
from token_billing.errors import NothingToRecover, RestoredDatabase
from token_billing.stages.kept_mark import require_newest
from token_billing.stages.recover import recover
from token_billing.windows import Window
from world import World, both_sinks


@both_sinks
def test_a_volume_from_before_a_push_is_refused_and_bills_nothing_twice(world: World, snapshot: Callable[[], World]) -> None:
    """What the lost time sent is found at Stripe: a, which the copy had frozen, and b, of which it knew nothing."""
    world.push()
    world.mark_billed()
    world.use("b", 7)
    world.bill()
    restored = snapshot()
    restored.use("b", 7)  # the application's own backlog brings the row back
    with pytest.raises(RestoredDatabase, match="older copy"):
        require_newest(restored.connect, restored.keeper)
    recover_by_command(restored)
    bill_for_days(restored, 0.5)
    assert restored.states() == {"a": "billed", "b": "billed"}
    assert restored.marked() == {"a": 5, "b": 7}
    assert sent(restored) == [5, 7]


@both_sinks
def test_what_the_lost_time_did_not_send_is_sent_once_after_a_day_of_absence(world: World, snapshot: Callable[[], World]) -> None:
    world.push()
    restored = snapshot()
    restored.use("b", 7)
    recover_by_command(restored)
    bill_for_days(restored, 0.5)
    assert sent(restored) == [5], "nothing is sent for the first time before its absence has held for a day"
    assert restored.states() == {"a": "billed", "b": "unresolved"}
    bill_for_days(restored)
    assert restored.states() == {"a": "billed", "b": "billed"}
    assert sent(restored) == [5, 7]


@both_sinks
def test_two_tenants_of_one_customer_are_told_apart_by_their_hour_or_left_to_a_person(world: World, snapshot: Callable[[], World]) -> None:
    """Which minute the lost time dated a report with is forgotten with the report."""
    world.sql("UPDATE tenants SET (stripe_customer_id, stripe_usage_item_id) = (SELECT stripe_customer_id, stripe_usage_item_id "
              "FROM tenants WHERE id = 'a') WHERE id = 'b'")  # fmt: skip
    world.push()
    world.use("b", 7)
    world.bill()
    restored = snapshot()
    restored.use("b", 7)
    restored.sql("UPDATE tenants SET (stripe_customer_id, stripe_usage_item_id) = (SELECT stripe_customer_id, stripe_usage_item_id "
                 "FROM tenants WHERE id = 'a') WHERE id = 'b'")  # fmt: skip
    recover_by_command(restored)
    bill_for_days(restored)
    assert restored.states() == {"a": "billed", "b": "billed"}
    assert sent(restored) == [5, 7]


@both_sinks
def test_hours_that_end_after_the_recovery_are_billed_as_ever(world: World, snapshot: Callable[[], World]) -> None:
    world.push()
    restored = snapshot()
    recover_by_command(restored)
    following = replace(restored, window=Window(world.window.end))
    following.set_time(following.window.end + timedelta(minutes=1))
    following.use("b", 11)
    assert following.bill()["billed"] == 11


@pytest.mark.parametrize("burnt", ["original", "elsewhere"])
def test_a_dump_restored_elsewhere_keeps_every_row_in_its_report(world: World, elsewhere: PostgresServer, burnt: str) -> None:
    """With lower and with higher transaction ids than the cluster it comes from; rows recorded before the recovery are late usage."""
    burn_ids(world.dsn if burnt == "original" else elsewhere.dsn())
    world.use("b", 7)
    world.bill()
    world.use("a", 11)  # late
    world.freeze()
    restored = restore(world, elsewhere)
    restored.use("b", 13)
    with pytest.raises(RestoredDatabase, match="database cluster"):
        restored.freeze()
    recover_by_command(restored)
    restored.use("a", 17)
    bill_for_days(restored)
    assert restored.marked() == {"a": 5 + 11 + 17, "b": 7 + 13}
    assert sent(restored) == [5, 7, 11, 13, 17]
    assert restored.sql("SELECT revision, tenant_id, token_count FROM billing.usage_report ORDER BY 1, 2, 3")[:3] == [
        (0, "a", 5),
        (1, "b", 7),
        (2, "a", 11),
    ]
    assert all(one.holds for one in restored.conservation())


def test_a_second_restoration_raises_the_ids_once_more(world: World, elsewhere: PostgresServer, tmp_path: Path) -> None:
    burn_ids(world.dsn)
    world.bill()
    restored = restore(world, elsewhere)
    recover_by_command(restored)
    restored.use("a", 11)
    bill_for_days(restored)
    with PostgresServer(tmp_path / "third", durable=False) as third:
        again = restore(restored, third)
        again.use("b", 13)
        recover_by_command(again)
        bill_for_days(again)
        assert again.marked() == {"a": 16, "b": 13}
        assert sent(again) == [5, 11, 13]
        assert again.sql("SELECT epoch FROM billing.recovery ORDER BY 1") == [(2,), (3,)]


def test_an_upgraded_cluster_is_refused_until_it_is_recovered(world: World, original: PostgresServer, tmp_path: Path) -> None:
    burn_ids(world.dsn)
    world.use("b", 7)
    world.bill()
    upgraded_server = PostgresServer(tmp_path / "upgraded", durable=False)
    upgraded_server.start()
    upgraded_server.stop()
    original.stop()
    account, programs = original._choose_account(find_binaries())
    work = tmp_path / "upgrading"
    work.mkdir()
    account.take(work)
    command = [programs / "pg_upgrade", "-U", "postgres", "-b", programs, "-B", programs, "-s", work]
    clusters = ["-d", original.data_dir / "cluster", "-D", upgraded_server.data_dir / "cluster"]
    done = account.run(["/bin/sh", "-c", 'cd "$0" && exec "$@"', *map(str, (work, *command, *clusters))])
    assert done.returncode == 0, done.stdout
    with upgraded_server:
        upgraded = replace(world, dsn=upgraded_server.dsn("billing"))
        upgraded.use("a", 11)
        recover_by_command(upgraded)
        assert upgraded.sql("SELECT xid_shift FROM billing.recovery") == [(0,)]
        bill_for_days(upgraded)
        assert upgraded.marked() == {"a": 16, "b": 7}
        assert sent(upgraded) == [5, 7, 11]


def test_the_copy_that_was_replaced_is_refused_from_then_on(world: World, elsewhere: PostgresServer) -> None:
    """Also by a push that was under way, before it sends anything more."""
    world.push()
    restored = restore(world, elsewhere)
    recover_by_command(restored)
    with pytest.raises(RestoredDatabase, match=r"epoch 1 .* epoch 2"):
        require_newest(world.connect, world.keeper)
    world.use("b", 7)
    world.freeze()
    with pytest.raises(RestoredDatabase, match=r"epoch 1 .* epoch 2"):
        world.push()
    assert sent(world) == [5]


def test_the_newest_database_has_nothing_to_recover(world: World) -> None:
    world.bill()
    with pytest.raises(NothingToRecover):
        recover(world.connect, world.keeper, world.clock, recovered_by="ops")


def test_a_recovery_killed_before_its_mark_is_kept_is_run_again(world: World, elsewhere: PostgresServer) -> None:
    world.bill()
    restored = restore(world, elsewhere)

    class Killed(type(world.keeper)):  # type: ignore[misc]
        def write(self, name: str, text: str) -> None:
            os._exit(9)

    if (child := os.fork()) == 0:
        recover(restored.connect, Killed(world.keeper._folder), restored.clock, recovered_by="ops")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert restored.sql("SELECT epoch FROM billing.ledger") == [(2,)]
    recover_by_command(restored)
    assert restored.sql("SELECT epoch, cause ~ 'cluster' FROM billing.recovery ORDER BY 1") == [(2, True), (3, False)]
    restored.use("b", 7)
    bill_for_days(restored)
    assert sent(restored) == [5, 7]
