"""Promise 2, billed means accepted: a row is billed exactly when it belongs to a report that Stripe has, unchanged since it was frozen."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from token_billing.errors import ConservationBroken, ReportsDisagree
from token_billing.stages.check_conservation import check_conservation
from world import World


@pytest.fixture
def accepted(world: World) -> World:
    """Two tenants' reports are accepted, nothing is marked yet."""
    world.link("a", "b")
    world.use("a", 5)
    world.use("a", 6)
    world.use("b", 7)
    world.freeze()
    world.push()
    return world


def test_nothing_is_marked_before_stripe_has_it(world: World) -> None:
    """Frozen and unsent rows stay unbilled."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    world.mark_billed()
    assert world.marked() == {}


def test_marking_twice_at_once_is_marking_once(accepted: World) -> None:
    """The second waits, finds it done and succeeds."""
    with ThreadPoolExecutor(4) as pool:
        for run in [pool.submit(accepted.mark_billed) for _ in range(4)]:
            run.result()
    assert accepted.marked() == {"a": 11, "b": 7}
    assert set(accepted.states().values()) == {"billed"}


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("DELETE FROM token_usage WHERE input_tokens = 5", (6, 1)),
        ("UPDATE token_usage SET input_tokens = 50 WHERE input_tokens = 5", (56, 2)),
        ("UPDATE token_usage SET created_at = created_at + interval '1 hour' WHERE input_tokens = 5", (6, 1)),
        ("UPDATE token_usage SET tenant_id = 'c' WHERE input_tokens = 5", (6, 1)),
        ("UPDATE token_usage SET billed = true WHERE input_tokens = 5", (6, 1)),
        ("DELETE FROM token_usage WHERE tenant_id = 'a'", (0, 0)),
    ],
)
def test_rows_changed_behind_the_ledgers_back_are_named_and_hold_no_other_tenant_up(
    accepted: World, tampering: str, found: tuple[int, int]
) -> None:
    """Where an owner declined the triggers that forbid it, the comparison finds it."""
    accepted.sql("ALTER TABLE token_usage DISABLE TRIGGER USER")
    accepted.sql(tampering)
    for _ in range(2):
        with pytest.raises(ReportsDisagree, match="tenant 'a': frozen 11 tokens of 2 rows"):
            accepted.mark_billed()
    assert accepted.states() == {"a": "accepted", "b": "billed"}
    assert accepted.marked().get("b") == 7
    assert accepted.sql("SELECT found_token_count, found_row_count FROM billing.discrepancy WHERE resolved_at IS NULL") == [found]
    with pytest.raises(ConservationBroken, match="'a'"):
        check_conservation(accepted.connect, accepted.window)


def test_a_row_that_no_report_holds_is_not_marked_with_the_others(accepted: World) -> None:
    """Smuggled in under an old transaction's id, it is no part of what Stripe was told; the law finds it."""
    accepted.sql("ALTER TABLE token_usage DISABLE TRIGGER USER")
    accepted.sql(
        "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at, recorded_xid) "
        "SELECT 'smuggler', 'm', 100, 0, created_at, recorded_xid FROM token_usage LIMIT 1"
    )
    accepted.mark_billed()
    assert accepted.marked() == {"a": 11, "b": 7}
    with pytest.raises(ConservationBroken, match="smuggler"):
        check_conservation(accepted.connect, accepted.window)


def test_a_row_that_changes_while_it_is_marked_is_found(accepted: World) -> None:
    """The comparison saw it as it was; the marking meets somebody who is changing it."""
    accepted.sql("ALTER TABLE token_usage DISABLE TRIGGER USER")
    with ThreadPoolExecutor(1) as pool, accepted.connect() as writer:
        writer.execute("UPDATE token_usage SET input_tokens = 50 WHERE input_tokens = 5")
        marking = pool.submit(accepted.mark_billed)
        while not accepted.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            assert not marking.done()
        writer.commit()
        with pytest.raises(ReportsDisagree, match="frozen 11 tokens of 2 rows, found 56 of 2"):
            marking.result()
    assert accepted.states() == {"a": "accepted", "b": "billed"}


def test_rows_that_add_up_and_are_not_the_frozen_ones_are_named(accepted: World) -> None:
    """Two rows became one of as many tokens."""
    accepted.sql("ALTER TABLE token_usage DISABLE TRIGGER USER")
    accepted.sql("DELETE FROM token_usage WHERE input_tokens = 5")
    accepted.sql("UPDATE token_usage SET input_tokens = 11 WHERE input_tokens = 6")
    with pytest.raises(ReportsDisagree, match="frozen 11 tokens of 2 rows, found 11 of 1"):
        accepted.mark_billed()
    assert accepted.states() == {"a": "accepted", "b": "billed"}


def test_each_revision_marks_its_own_rows_beside_reports_that_are_not_accepted(world: World) -> None:
    """Not those of an earlier revision that Stripe does not have, and not those that came later."""
    world.use("a", 5)
    world.bill()
    assert world.states() == {"a": "quarantined"}
    world.link("a")
    world.use("a", 7)
    world.use("unlinked", 3)
    world.freeze()
    world.push()
    world.use("a", 11)
    world.mark_billed()
    assert world.sql("SELECT input_tokens FROM token_usage WHERE billed") == [(7,)]
    assert world.at_stripe() == {"a": 7}


def test_a_report_is_not_billed_unless_all_of_its_rows_are(accepted: World) -> None:
    """A trigger of the application's own keeps a row as it is."""
    accepted.sql(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER keep BEFORE UPDATE ON token_usage FOR EACH ROW WHEN (OLD.input_tokens = 5) EXECUTE FUNCTION keep()"
    )
    with pytest.raises(AssertionError, match="2 rows marked for reports that hold 3"):
        accepted.mark_billed()
    assert (accepted.states(), accepted.marked()) == ({"a": "accepted", "b": "accepted"}, {})


def test_a_discrepancy_is_resolved_once_the_rows_are_back(accepted: World) -> None:
    """Then the report is marked like any other."""
    accepted.sql("ALTER TABLE token_usage DISABLE TRIGGER USER")
    accepted.sql("UPDATE token_usage SET input_tokens = 50 WHERE input_tokens = 5")
    with pytest.raises(ReportsDisagree):
        accepted.mark_billed()
    accepted.sql("UPDATE token_usage SET input_tokens = 5 WHERE input_tokens = 50")
    accepted.mark_billed()
    assert accepted.marked() == {"a": 11, "b": 7}
    assert accepted.sql("SELECT count(*) FROM billing.discrepancy WHERE resolved_at IS NULL") == [(0,)]


def test_conservation_holds_at_every_step(world: World) -> None:
    """Promise 1: the terms move, their sum never does."""
    world.link("a")
    world.use("a", 5)
    world.use("nobody", 3)
    steps = []

    def look() -> None:
        terms = world.conservation()
        assert all(one.holds for one in terms)
        names = ("row_tokens", "unfrozen_tokens", "pending_tokens", "billed_tokens", "quarantined_tokens")
        steps.append(tuple(sum(getattr(one, name) for one in terms) for name in names))

    look()
    for step in (world.freeze, world.push, world.mark_billed):
        step()
        look()
    assert steps == [(8, 8, 0, 0, 0), (8, 0, 8, 0, 0), (8, 0, 5, 0, 3), (8, 0, 0, 5, 3)]


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE token_usage SET billed = false WHERE tenant_id = 'b'",
        "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, billed, created_at) "
        "SELECT 'b', 'm', 1, 0, true, created_at FROM token_usage LIMIT 1",
        "ALTER TABLE billing.usage_report DISABLE TRIGGER a_state_follows_from_another; "
        "UPDATE billing.usage_report SET state = 'frozen', accepted_at = NULL, billed_at = NULL WHERE tenant_id = 'b'",
    ],
)
def test_a_broken_conservation_law_fails_the_run_and_names_the_tenant(accepted: World, tampering: str) -> None:
    """Whoever moves a term alone is found, whichever it is."""
    accepted.mark_billed()
    accepted.sql(tampering)
    with pytest.raises(ConservationBroken, match="'b'"):
        check_conservation(accepted.connect, accepted.window)
