"""The trail of revocations is whole: it explains every row that was billed once and is not any more."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from token_billing.model import Disowned, RevocationCause
from token_billing.stages.revoke import revoke
from world import World

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.sampled_from("ab"), st.integers(1, 99)),
        st.tuples(st.just("run"), st.integers(1, 4)),
        st.tuples(st.just("disown"), st.integers(0, 9), st.booleans()),
    ),
    max_size=14,
)

WITNESS = (
    "CREATE TABLE witness (id bigint, tenant_id text, tokens bigint);"
    "CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO witness VALUES (OLD.id, OLD.tenant_id, OLD.input_tokens + OLD.output_tokens); RETURN NULL; END $$;"
    "CREATE TRIGGER witness AFTER UPDATE ON token_usage FOR EACH ROW WHEN (OLD.billed AND NOT NEW.billed) EXECUTE FUNCTION witness()"
)


def test_revocations_explain_every_row_that_is_billed_no_more(world: World) -> None:
    """Whatever happens in whatever order: rows and tokens whose `billed` was cleared are those of billing.revocation, by tenant, the
    law holds after every step, and each accepted generation was sent exactly once."""
    world.link("a", "b")
    world.sql(WITNESS)

    @settings(max_examples=20, deadline=None)
    @given(STEPS)
    def check(steps: list[tuple[object, ...]]) -> None:
        for step in steps:
            _take(world, step)
            assert all(one.holds for one in world.conservation())
            _assert_explained(world)
        world.bill()
        assert all(one.holds for one in world.conservation())
        identifiers = [event["identifier"] for event in world.simulator.meter_events()]
        revoked = [one for (one,) in world.sql("SELECT identifier FROM billing.revocation")]
        billed = [one for (one,) in world.sql("SELECT identifier FROM billing.usage_report WHERE state = 'billed'")]
        assert sorted(identifiers) == sorted(revoked + billed)

    check()


def test_a_revocation_that_does_not_clear_all_of_its_rows_changes_nothing(world: World) -> None:
    """A trigger of the application's own keeps one as it is."""
    world.link("a")
    world.use("a", 5)
    world.use("a", 6)
    world.bill()
    world.sql(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER keep BEFORE UPDATE ON token_usage FOR EACH ROW WHEN (OLD.input_tokens = 5) EXECUTE FUNCTION keep()"
    )
    ((report_id,),) = world.sql("SELECT id FROM billing.usage_report")
    with pytest.raises(AssertionError, match="1 rows cleared of a report that holds 2"):
        revoke(world.connect, Disowned(report_id, RevocationCause.OPERATOR, "evidence"), world.clock, revoked_by="ann")
    assert (world.states(), world.marked()) == ({"a": "billed"}, {"a": 11})


def _take(world: World, step: tuple[object, ...]) -> None:
    match step:
        case ("use", str(tenant), int(tokens)):
            world.use(tenant, tokens)
        case ("run", int(stages)):
            for stage in (world.freeze, world.push, world.mark_billed, world.bill)[:stages]:
                stage()
        case ("disown", int(choice), bool(resend)):
            reports = world.sql("SELECT id FROM billing.usage_report WHERE state IN ('accepted', 'billed') ORDER BY id")
            if reports:
                disowned = Disowned(reports[choice % len(reports)][0], RevocationCause.ERROR_REPORT, "no such customer")
                revoke(world.connect, disowned, world.clock, revoked_by="ann", resend=resend)


def _assert_explained(world: World) -> None:
    noted = world.sql(
        "SELECT tenant_id, sum(r.row_count)::int, sum(r.token_count)::int FROM billing.revocation r "
        "JOIN billing.usage_report report ON report.id = r.report_id WHERE r.was_billed GROUP BY 1 ORDER BY 1"
    )
    assert noted == world.sql("SELECT tenant_id, count(*)::int, sum(tokens)::int FROM witness GROUP BY 1 ORDER BY 1")
