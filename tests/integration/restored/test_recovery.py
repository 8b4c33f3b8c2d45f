"""What a recovery knows about rows and reports, and when it rather changes nothing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from restored_worlds import bill_for_days, burn_ids, recover_by_command, restore, sent
from sandbox.postgres import PostgresServer
from token_billing.adapters import sending
from token_billing.adapters.keeper import read_mark
from token_billing.errors import CannotRecover, DecisionRefused, ReportsLeftOver, StripeUnavailable
from token_billing.model import Destination, Meter
from token_billing.stages.hold import decide
from token_billing.stages.kept_mark import keep_mark
from token_billing.stages.recover import recover
from world import SETTINGS, World


def test_rows_and_reports_from_different_copies_are_not_recovered(world: World, elsewhere: PostgresServer) -> None:
    restored = restore(world, elsewhere)
    restored.sql("ALTER TABLE token_usage DISABLE TRIGGER USER")
    restored.sql("DELETE FROM token_usage")
    restored.sql("ALTER TABLE token_usage ENABLE TRIGGER USER")
    with pytest.raises(CannotRecover, match="do not find the rows"):
        recover(restored.connect, restored.keeper, restored.clock, recovered_by="ops")
    assert restored.sql("SELECT epoch FROM billing.ledger") == [(1,)]


def test_rows_of_unknown_origin_are_not_guessed_about(world: World, elsewhere: PostgresServer) -> None:
    """Data restored after the triggers, or copied in by replication."""
    restored = restore(world, elsewhere)
    restored.sql("ALTER TABLE token_usage DISABLE TRIGGER USER")
    restored.sql(
        "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at, recorded_xid) "
        "SELECT 'b', 'm', 7, 0, created_at, recorded_xid FROM token_usage"
    )
    restored.sql("ALTER TABLE token_usage ENABLE TRIGGER USER")
    with pytest.raises(CannotRecover, match="pg_restore"):
        recover(restored.connect, restored.keeper, restored.clock, recovered_by="ops")


def test_an_older_mark_never_stays_over_a_newer_one(world: World) -> None:
    """Whoever writes looks again: of two pushes that keep their marks at once, the slower one corrects itself."""
    world.push()
    (ledger_id,) = world.sql("SELECT ledger_id::text FROM billing.ledger")[0]

    class Slow(type(world.keeper)):  # type: ignore[misc]
        def write(self, name: str, text: str) -> None:
            if '"noted_attempts": 1}' in text:
                world.use("b", 7)
                world.freeze()
                world.push()  # another push notes and keeps more, and then our older news is written
            super().write(name, text)

    world.keeper.write(f"billing_ledger_{ledger_id}", '{"epoch": 1, "noted_attempts": 0}')
    with world.connect() as db:
        keep_mark(db, Slow(world.keeper._folder))
    mark = read_mark(world.keeper, ledger_id)
    assert mark is not None and mark.noted_attempts == 2


def test_what_was_confirmed_before_the_copy_is_compared_again(world: World, elsewhere: PostgresServer) -> None:
    """Stripe may have disowned it in the time that was lost."""
    world.bill()
    world.sql("UPDATE billing.usage_report SET confirmed_at = now()")
    restored = restore(world, elsewhere)
    recover_by_command(restored)
    assert restored.sql("SELECT DISTINCT confirmed_at FROM billing.usage_report") == [(None,)]


def test_a_first_send_after_a_recovery_is_left_over_and_says_why(world: World, elsewhere: PostgresServer) -> None:
    restored = restore(world, elsewhere)
    recover_by_command(restored)
    with pytest.raises(ReportsLeftOver, match="restored and may have forgotten"):
        restored.push()


def test_what_was_turned_away_before_the_copy_and_sent_since_is_not_sent_again(world: World, elsewhere: PostgresServer) -> None:
    """The copy knows that Stripe did nothing, which was true then; Stripe would take it once more by now."""
    world.simulator.script_faults(["rate_limit"] * 5)
    with pytest.raises(StripeUnavailable):
        world.push()
    restored = restore(world, elsewhere)
    assert restored.states() == {"a": "frozen"}
    world.push()
    later = world.clock() + timedelta(hours=30)
    restored.clock = lambda: later
    recover_by_command(restored)
    bill_for_days(restored, 0.5)
    assert restored.marked() == {"a": 5}
    assert sent(restored) == [5]


@pytest.mark.parametrize("first_is_known", [False, True])
def test_two_reports_of_one_customer_that_were_both_sent_are_found_together(
    world: World, elsewhere: PostgresServer, first_is_known: bool
) -> None:
    """Each is in doubt while the other is looked for, or one is known to be sent."""
    if first_is_known:
        world.push()
    world.sql("UPDATE tenants SET (stripe_customer_id, stripe_usage_item_id) = (SELECT stripe_customer_id, stripe_usage_item_id "
              "FROM tenants WHERE id = 'a') WHERE id = 'b'")  # fmt: skip
    world.use("b", 7)
    world.freeze()
    restored = restore(world, elsewhere)
    world.push()
    recover_by_command(restored)
    bill_for_days(restored, 0.5)
    assert restored.states() == {"a": "billed", "b": "billed"}
    assert sent(restored) == [5, 7]


def test_an_hour_is_not_read_back_while_another_run_may_send_into_it(world: World, elsewhere: PostgresServer) -> None:
    """What it lacks then proves nothing: the customer's lease is respected, and the report left for later."""
    restored = restore(world, elsewhere)
    recover_by_command(restored)
    with pytest.raises(ReportsLeftOver):
        restored.push()
    restored.sql(
        "INSERT INTO billing.customer_lease SELECT customer_id, event_name, gen_random_uuid(), now() + interval '1 hour' "
        "FROM billing.usage_report"
    )
    later = restored.clock() + timedelta(hours=25)
    restored.clock = lambda: later
    with pytest.raises(ReportsLeftOver, match="unresolved"):
        restored.push(replace(SETTINGS, lease=timedelta(seconds=6)))
    assert restored.sql("SELECT generation FROM billing.usage_report") == [(0,)]


def test_an_hour_is_read_back_only_while_its_lease_lasts(world: World, elsewhere: PostgresServer) -> None:
    """A summary that comes later than that may already be of what another run sent."""
    world.simulator.settings(summary_delay_seconds=0)
    restored = restore(world, elsewhere)
    world.push()
    recover_by_command(restored)
    with pytest.raises(ReportsLeftOver, match="unresolved"):
        restored.push(replace(SETTINGS, lease=timedelta(milliseconds=1)))
    restored.push()
    assert restored.states() == {"a": "accepted"}


def test_a_recovery_waits_for_those_who_are_recording(world: World, elsewhere: PostgresServer) -> None:
    """Their rows have this cluster's ids, which are about to be raised."""
    burn_ids(world.dsn)
    world.bill()
    restored = restore(world, elsewhere)
    with ThreadPoolExecutor(1) as pool, restored.connect() as writer:
        restored.use("a", 11, db=writer)
        recovering = pool.submit(recover_by_command, restored)
        while not restored.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            assert not recovering.done()
        writer.commit()
        recovering.result()
    bill_for_days(restored)
    assert restored.marked() == {"a": 16}
    assert sent(restored) == [5, 11]


def test_two_pushes_after_a_recovery_send_nothing_that_one_of_them_doubts(world: World, elsewhere: PostgresServer) -> None:
    """The second listed the report before the first doubted it, and looks again before it sends."""
    restored = restore(world, elsewhere)
    recover_by_command(restored)
    with restored.connect() as db, pytest.raises(ReportsLeftOver):
        listed = db.execute("SELECT id, identifier FROM billing.usage_report").fetchall()
        restored.push()
    assert len(listed) == 1
    destination = Destination("cus", "si", Meter("mtr", "tokens", "stripe_customer_id", "value"))
    with restored.connect() as db:
        assert sending.reports_to_send(db, [(listed[0][0], destination)]) == []


def test_rows_written_in_savepoints_or_updated_since_are_known_to_be_new(world: World, elsewhere: PostgresServer) -> None:
    """Their versions bear another id than the transaction that recorded them."""
    world.bill()
    restored = restore(world, elsewhere)
    with restored.connect() as db:
        with db.transaction():
            restored.use("b", 7, db=db)
        with db.transaction():
            db.execute("SAVEPOINT inner_one")
            restored.use("b", 11, db=db)
            db.execute("RELEASE SAVEPOINT inner_one")
    restored.sql("UPDATE token_usage SET model = 'renamed' WHERE tenant_id = 'b'")
    recover_by_command(restored)
    bill_for_days(restored)
    assert restored.marked() == {"a": 5, "b": 18}
    assert sent(restored) == [5, 18]


def test_a_transaction_under_way_during_the_recovery_records_late_usage(world: World, elsewhere: PostgresServer) -> None:
    """It has its id before the ids are raised, and records after."""
    burn_ids(world.dsn)
    world.bill()
    restored = restore(world, elsewhere)
    with restored.connect() as db:
        db.execute("SELECT pg_current_xact_id()")
        recover_by_command(restored)
        restored.use("b", 7, db=db)
    bill_for_days(restored)
    assert restored.marked() == {"a": 5, "b": 7}
    assert sent(restored) == [5, 7]


def test_a_recovery_gives_up_behind_a_long_transaction(world: World, elsewhere: PostgresServer) -> None:
    """Rather than keep the application waiting."""
    restored = restore(world, elsewhere)
    with restored.connect() as db:
        restored.use("b", 7, db=db)
        with pytest.raises(CannotRecover, match="try again"):
            recover(restored.connect, restored.keeper, restored.clock, recovered_by="ops")
    recover_by_command(restored)


def test_a_customer_that_stripe_no_longer_knows_keeps_no_other_report_waiting(world: World, elsewhere: PostgresServer) -> None:
    """What Stripe does not tell is unclear, and for a person."""
    world.sql("UPDATE tenants SET stripe_customer_id = 'cus_gone' WHERE id = 'a'")
    restored = restore(world, elsewhere)
    restored.use("b", 7)
    recover_by_command(restored)
    bill_for_days(restored)
    assert restored.states() == {"a": "unresolved", "b": "billed"}


def test_held_usage_that_may_have_been_sent_cannot_be_refused(world: World, elsewhere: PostgresServer) -> None:
    """It is approved, and then read back before anything is sent."""
    world.sql(
        "INSERT INTO billing.hold (report_id, reason, token_count, limit_tokens, held_at) SELECT id, 'absurd_total', 5, 1, now() "
        "FROM billing.usage_report"
    )
    restored = restore(world, elsewhere)
    (report_id,) = world.sql("SELECT id FROM billing.usage_report")[0]
    decide(world.connect, report_id, approve=True, by="ann", clock=world.clock)
    world.bill()
    recover_by_command(restored)
    with pytest.raises(DecisionRefused, match="may have forgotten"):
        decide(restored.connect, report_id, approve=False, by="ann", clock=restored.clock)
    decide(restored.connect, report_id, approve=True, by="ann", clock=restored.clock)
    bill_for_days(restored, 0.5)
    assert (restored.marked(), sent(restored)) == ({"a": 5}, [5])
