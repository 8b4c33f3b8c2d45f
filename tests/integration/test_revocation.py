"""Promise 2, the other half: what Stripe disowns is not billed. Its rows are given back at once, all of them and no others, with a
record of why, and they are sent anew under another name or kept aside."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest

from token_billing.adapters import ledger, revocation
from token_billing.adapters.database import repeatable_read, session
from token_billing.errors import LedgerNotReady, NotRevocable, ReportsDisagree
from token_billing.model import Disowned, Revocation, RevocationCause
from token_billing.stages.check_conservation import check_conservation
from token_billing.stages.revoke import revoke
from world import World, now

EVIDENCE = "meter_event_customer_not_found: Customer mapping key not found"


def report_of(world: World, tenant: str = "a", revision: int = 0) -> int:
    ((report_id,),) = world.sql("SELECT id FROM billing.usage_report WHERE tenant_id = %s AND revision = %s", tenant, revision)
    return int(report_id)


def disown(world: World, report_id: int | None = None, *, resend: bool = True, identifier: str | None = None) -> Revocation:
    disowned = Disowned(report_id or report_of(world), RevocationCause.ERROR_REPORT, EVIDENCE, identifier)
    return revoke(world.connect, disowned, world.clock, revoked_by="ann", resend=resend)


def everything(world: World) -> list[list[tuple[object, ...]]]:
    """All that a revocation may change."""
    tables = ("token_usage", "billing.usage_report", "billing.push_attempt", "billing.revocation", "billing.discrepancy")
    return [world.sql(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


@pytest.fixture
def accepted(world: World) -> World:
    """Two tenants' reports are accepted, nothing is marked yet."""
    world.link("a", "b")
    for tokens in (5, 6):
        world.use("a", tokens)
    world.use("b", 7)
    world.freeze()
    world.push()
    return world


@pytest.fixture
def billed(accepted: World) -> World:
    """Two tenants are billed."""
    accepted.mark_billed()
    return accepted


def test_a_disowned_report_gives_back_its_rows_and_no_others(billed: World) -> None:
    """They count as pending again; who took them back, and on what evidence, is written down."""
    ((identifier,),) = billed.sql("SELECT identifier FROM billing.usage_report WHERE tenant_id = 'a'")
    done = disown(billed)
    assert billed.marked() == {"b": 7}
    assert check_conservation(billed.connect, billed.window) == {
        "tokens": 18,
        "billed": 7,
        "pending": 11,
        "not_frozen": 0,
        "quarantined": 0,
    }
    assert billed.states() == {"a": "frozen", "b": "billed"}
    assert billed.sql(
        "SELECT report_id, generation, identifier, cause, evidence, row_count, token_count, was_billed, resent, revoked_by "
        "FROM billing.revocation"
    ) == [(report_of(billed), 0, identifier, "error_report", EVIDENCE, 2, 11, True, True, "ann")]
    assert done.identifier != identifier and done.reason is None


def test_a_disowned_report_is_sent_once_more_under_another_identifier_and_billed_again(billed: World) -> None:
    """Dated and addressed as it was; the other reports are not sent again."""
    where = "SELECT event_time, customer_id, usage_item_id, meter_id, event_name FROM billing.usage_report WHERE tenant_id = 'a'"
    before, sent = billed.sql(where), [event["identifier"] for event in billed.simulator.meter_events()]
    identifier = disown(billed).identifier
    billed.sql("UPDATE tenants SET stripe_customer_id = 'cus_other', stripe_usage_item_id = 'si_other'")
    for _ in range(2):
        assert billed.bill() == {"tokens": 18, "billed": 18, "pending": 0, "not_frozen": 0, "quarantined": 0}
    assert [event["identifier"] for event in billed.simulator.meter_events()] == [*sent, identifier]
    assert billed.sql(where) == before
    assert billed.marked() == {"a": 11, "b": 7}
    assert billed.sql("SELECT generation, attempt_count FROM billing.usage_report WHERE tenant_id = 'a'") == [(1, 2)]


def test_a_new_generation_begins_as_if_nothing_had_been_sent(billed: World) -> None:
    """An answer that was lost then, or stored under the old key, says nothing about what is sent now; its 20 hours begin anew."""
    billed.sql("UPDATE billing.usage_report SET may_have_arrived = true, key_number = 1")
    billed.clock = lambda: now() + timedelta(hours=30)
    disown(billed)
    ((arrived, key_number, attempted_at),) = billed.sql(
        "SELECT may_have_arrived, key_number, first_attempted_at FROM billing.usage_report WHERE tenant_id = 'a'"
    )
    assert (arrived, key_number) == (False, 0) and attempted_at > now() + timedelta(hours=29)
    billed.bill()
    assert billed.marked() == {"a": 11, "b": 7}


def test_what_is_disowned_time_and_again_gets_a_name_each_time(billed: World) -> None:
    """The trail shows every generation."""
    for _ in range(3):
        disown(billed)
        billed.bill()
    assert billed.sql("SELECT generation FROM billing.revocation ORDER BY 1") == [(0,), (1,), (2,)]
    assert len({event["identifier"] for event in billed.simulator.meter_events()}) == 5
    assert billed.marked() == {"a": 11, "b": 7}


def test_a_disowned_report_may_be_quarantined_instead(billed: World) -> None:
    """It is never sent again by itself, and its rows are not billed."""
    disown(billed, resend=False)
    assert billed.bill() == {"tokens": 18, "billed": 7, "pending": 0, "not_frozen": 0, "quarantined": 11}
    assert billed.sql("SELECT state, quarantine_reason FROM billing.usage_report WHERE tenant_id = 'a'") == [("quarantined", "disowned")]
    assert billed.sql("SELECT resent FROM billing.revocation") == [(False,)]
    assert len(billed.simulator.meter_events()) == 2


def test_an_accepted_report_that_is_not_marked_yet_can_be_disowned(accepted: World) -> None:
    """Then it is not marked until it is accepted again."""
    disown(accepted)
    accepted.mark_billed()
    assert accepted.marked() == {"b": 7}
    assert accepted.sql("SELECT was_billed, row_count FROM billing.revocation") == [(False, 2)]
    accepted.bill()
    assert accepted.marked() == {"a": 11, "b": 7}


def test_an_event_that_stripe_takes_no_more_is_quarantined_as_too_old(billed: World) -> None:
    """At once, whatever was asked for: no push will come by that could say so."""
    billed.clock = lambda: now() + timedelta(days=36)
    disown(billed)
    assert billed.sql("SELECT state, quarantine_reason FROM billing.usage_report WHERE tenant_id = 'a'") == [
        ("quarantined", "older_than_35_days")
    ]
    assert billed.sql("SELECT resent FROM billing.revocation") == [(False,)]
    assert all(one.holds for one in billed.conservation())


def test_a_report_that_grows_too_old_before_it_is_sent_anew_is_quarantined_by_push(billed: World) -> None:
    """Like any other."""
    disown(billed)
    billed.clock = lambda: now() + timedelta(days=36)
    assert billed.bill()["quarantined"] == 11


@pytest.mark.parametrize("revision", [0, 1])
def test_another_revision_of_the_hour_keeps_its_rows(billed: World, revision: int) -> None:
    """Late usage of the same tenant and hour is another report, before and after."""
    billed.use("a", 100)
    billed.bill()
    disown(billed, report_of(billed, revision=revision))
    assert billed.marked() == {"a": 11 if revision else 100, "b": 7}
    billed.bill()
    assert billed.marked() == {"a": 111, "b": 7}
    assert len(billed.simulator.meter_events()) == 4


def test_late_usage_that_is_not_frozen_yet_is_no_part_of_it(billed: World) -> None:
    """It stays what it was, and becomes the next revision."""
    billed.use("a", 100)
    disown(billed)
    assert [(one.unfrozen_tokens, one.pending_tokens) for one in billed.conservation() if one.tenant_id == "a"] == [(100, 11)]
    billed.bill()
    assert billed.marked() == {"a": 111, "b": 7}


@pytest.mark.parametrize(("side", "left"), [(0, 6), (1, 5)])
def test_the_other_side_of_the_hour_keeps_its_rows(world: World, side: int, left: int) -> None:
    """Where a boundary lies inside the hour, each side is a report of its own; a row on the boundary is the later side's."""
    boundary = world.window.start + timedelta(minutes=20)
    world.link("a")
    world.use("a", 5, at=boundary - timedelta(microseconds=1))
    world.use("a", 6, at=boundary)
    start, end = world.window.start, world.window.end
    with world.connect() as db, repeatable_read(db):
        ledger.set_fence(db, world.window, 0, now())
        for tokens, side_start, side_end in ((5, start, boundary), (6, boundary, end)):
            db.execute(
                "INSERT INTO billing.usage_report (tenant_id, window_start, side_start, side_end, revision, identifier, row_count, "
                "token_count, frozen_at) VALUES ('a', %s, %s, %s, 0, %s, 1, %s, now())",
                (start, side_start, side_end, f"side of {tokens}", tokens),
            )
    world.bill()
    assert world.marked() == {"a": 11}
    disown(world, world.sql("SELECT id FROM billing.usage_report ORDER BY side_start")[side][0])
    assert world.marked() == {"a": left}
    assert all(one.holds for one in world.conservation())
    world.bill()
    assert world.marked() == {"a": 11}


# --- at once, and killed ----------------------------------------------------------------------------------------------


def test_two_revocations_at_once_are_one(billed: World) -> None:
    """The other finds that the report has gone on, says so, and changes nothing."""
    report_id = report_of(billed)
    with ThreadPoolExecutor(4) as pool:
        endings = [run.exception() for run in [pool.submit(disown, billed, report_id) for _ in range(4)]]
    assert sorted(type(ending).__name__ for ending in endings) == ["NoneType", *["NotRevocable"] * 3]
    assert billed.sql("SELECT generation FROM billing.usage_report WHERE tenant_id = 'a'") == [(1,)]
    billed.bill()
    assert billed.marked() == {"a": 11, "b": 7}
    assert len(billed.simulator.meter_events()) == 3


def test_marking_and_revoking_at_once_never_leave_rows_billed_that_stripe_disowned(accepted: World) -> None:
    """Whichever comes first, the rows end unbilled, until the report is accepted again."""
    tenants = [f"tenant {n}" for n in range(20)]
    accepted.link(*tenants)
    for tenant in tenants:
        accepted.use(tenant, 11)
    accepted.freeze()
    accepted.push()
    with ThreadPoolExecutor(6) as pool:
        marks = [pool.submit(accepted.mark_billed) for _ in range(2)]
        revocations = [pool.submit(disown, accepted, report_of(accepted, tenant, 1)) for tenant in tenants]
        for run in [*marks, *revocations]:
            run.result()
    assert all(one.holds for one in accepted.conservation())
    assert accepted.marked() == {"a": 11, "b": 7}
    accepted.bill()
    assert accepted.marked() == {"a": 11, "b": 7, **dict.fromkeys(tenants, 11)}


@pytest.mark.parametrize("first", ["mark_billed", "revoke"])
def test_whoever_comes_second_waits_and_sees_what_the_first_did(accepted: World, first: str) -> None:
    """Held up in the middle: the first has written its rows and not yet committed."""
    report_id = report_of(accepted)
    runs: dict[str, Callable[[], object]] = {"mark_billed": accepted.mark_billed, "revoke": lambda: disown(accepted, report_id)}
    moment = "NEW.billed_at IS NOT NULL" if first == "mark_billed" else "NEW.state = 'revoked'"
    accepted.sql(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.7); RETURN NULL; END $$;"
        f"CREATE TRIGGER linger AFTER UPDATE ON billing.usage_report FOR EACH ROW WHEN ({moment}) EXECUTE FUNCTION linger()"
    )
    with ThreadPoolExecutor(2) as pool:
        started = pool.submit(runs.pop(first))
        while not accepted.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
            assert not started.done()
        for run in (started, pool.submit(*runs.values())):
            run.result()
    assert all(one.holds for one in accepted.conservation())
    assert accepted.marked() == {"b": 7}
    assert accepted.states() == {"a": "frozen", "b": "billed"}


@pytest.mark.parametrize(
    "moment",
    [
        "UPDATE ON token_usage FOR EACH ROW",
        "UPDATE ON billing.usage_report FOR EACH ROW WHEN (NEW.state = 'revoked')",
        "INSERT ON billing.revocation FOR EACH ROW",
        "UPDATE ON billing.usage_report FOR EACH ROW WHEN (OLD.state = 'revoked')",
    ],
)
@pytest.mark.parametrize("death", ["PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(5)", "RAISE EXCEPTION 'killed'"])
def test_a_kill_in_the_middle_of_a_revocation_changes_nothing(billed: World, moment: str, death: str) -> None:
    """Then it can be done again."""
    before = everything(billed)
    billed.sql(f"CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {death}; RETURN NULL; END $$")
    table = moment.split()[2]
    billed.sql(f"CREATE TRIGGER die AFTER {moment} EXECUTE FUNCTION die()")
    with pytest.raises(psycopg.Error):
        disown(billed)
    billed.sql(f"DROP TRIGGER die ON {table}")
    assert everything(billed) == before
    disown(billed)
    billed.bill()
    assert billed.marked() == {"a": 11, "b": 7}


@pytest.mark.parametrize("was", ["accepted", "billed"])
def test_the_law_holds_between_the_statements_too(accepted: World, was: str) -> None:
    """Seen from inside the transaction, step by step."""
    if was == "billed":
        accepted.mark_billed()
    report_id, sums = report_of(accepted), []
    with session(accepted.connect) as db, repeatable_read(db):

        def look() -> None:
            terms = ledger.conservation(db, accepted.window.start, accepted.window.end)
            assert all(one.holds for one in terms)
            sums.append(sum(one.billed_tokens for one in terms))

        report = revocation.lock_report(db, report_id)
        assert report is not None
        look()
        revocation.disown(db, report)
        look()
        revocation.note_revocation(db, report, Disowned(report_id, RevocationCause.OPERATOR, EVIDENCE), "ann", resent=True, now=now())
        look()
        revocation.begin_generation(db, report, "another", None, now())
        look()
    assert sums == ([18, 7, 7, 7] if was == "billed" else [0, 0, 0, 0])
    assert all(one.holds for one in accepted.conservation())


def test_an_answer_that_wakes_up_after_the_revocation_does_not_pass_for_the_next_generations(billed: World) -> None:
    """A worker slept between Stripe's answer and its record; another one finished its report, and Stripe disowned it since."""
    report_id = report_of(billed)
    billed.sql(
        "UPDATE billing.push_attempt SET answered_at = NULL, outcome = NULL WHERE report_id = %s", report_id
    )  # what the sleeper left behind
    identifier = disown(billed).identifier
    assert billed.sql("SELECT outcome FROM billing.push_attempt WHERE report_id = %s", report_id) == [("disowned",)]
    with billed.connect() as sleeper, pytest.raises(psycopg.IntegrityError, match="was disowned"):
        sleeper.execute("UPDATE billing.push_attempt SET outcome = 'accepted', answered_at = now() WHERE report_id = %s", (report_id,))
    billed.bill()
    assert identifier in [event["identifier"] for event in billed.simulator.meter_events()]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "attempted"),
    [
        ("state = 'frozen', accepted_at = NULL", "is frozen"),
        ("state = 'sending', accepted_at = NULL", "is sending"),
        ("state = 'unresolved', accepted_at = NULL, may_have_arrived = true", "is unresolved"),
        ("state = 'rejected', accepted_at = NULL", "is rejected"),
        ("state = 'quarantined', accepted_at = NULL, quarantined_at = now(), quarantine_reason = 'no_customer'", "is quarantined"),
    ],
)
def test_what_stripe_has_not_accepted_cannot_be_disowned(accepted: World, state: str, attempted: str) -> None:
    """What waits for an answer has its own ways to one."""
    step = "ALTER TABLE billing.usage_report {} TRIGGER a_state_follows_from_another"
    accepted.sql(f"{step.format('DISABLE')}; UPDATE billing.usage_report SET {state}; {step.format('ENABLE')}")
    before = everything(accepted)
    with pytest.raises(NotRevocable, match=f"{attempted}.*Nothing was changed.*runbook"):
        disown(accepted)
    assert everything(accepted) == before


def test_a_report_that_was_never_sent_cannot_be_disowned(world: World) -> None:
    """A total of zero is accepted without a call."""
    world.link("a")
    world.use("a", 0)
    world.bill()
    with pytest.raises(NotRevocable, match="never sent"):
        disown(world)
    assert world.states() == {"a": "billed"}


def test_an_unknown_report_is_refused(billed: World) -> None:
    """Saying where ids are found."""
    with pytest.raises(NotRevocable, match="no report 999"):
        disown(billed, 999)


def test_news_that_comes_twice_does_not_disown_what_was_sent_since(billed: World) -> None:
    """Stripe repeats itself; its news names the identifier, and that one is done with."""
    ((identifier,),) = billed.sql("SELECT identifier FROM billing.usage_report WHERE tenant_id = 'a'")
    disown(billed, identifier=identifier)
    billed.bill()
    with pytest.raises(NotRevocable, match="has gone on"):
        disown(billed, identifier=identifier)
    assert billed.marked() == {"a": 11, "b": 7}


@pytest.mark.parametrize(("evidence", "revoked_by"), [("", "ann"), (" ", "ann"), (EVIDENCE, "")])
def test_nobody_revokes_without_evidence_and_a_name(billed: World, evidence: str, revoked_by: str) -> None:
    """The record is the point of it."""
    with pytest.raises(NotRevocable, match="needs evidence and a name"):
        revoke(billed.connect, Disowned(report_of(billed), RevocationCause.OPERATOR, evidence), now, revoked_by=revoked_by)


def test_whatever_stripe_says_can_be_evidence(billed: World) -> None:
    """NUL and half a surrogate pair too."""
    disowned = Disowned(report_of(billed), RevocationCause.SETTLED_SUMMARY, "zero\0 of \ud83e 11")
    revoke(billed.connect, disowned, now, revoked_by="reconcile_meters")
    assert billed.sql("SELECT evidence FROM billing.revocation") == [("zero  of ? 11",)]


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("DELETE FROM token_usage WHERE input_tokens = 5", "6 of 1"),
        ("UPDATE token_usage SET input_tokens = 50 WHERE input_tokens = 5", "56 of 2"),
        ("UPDATE token_usage SET input_tokens = 11 - input_tokens, output_tokens = 1 WHERE tenant_id = 'a'", "13 of 2"),
        ("UPDATE token_usage SET created_at = created_at + interval '1 hour' WHERE input_tokens = 5", "6 of 1"),
        ("UPDATE token_usage SET tenant_id = 'c' WHERE input_tokens = 5", "6 of 1"),
        ("UPDATE token_usage SET billed = NOT billed WHERE input_tokens = 5", "6 of 1"),
        ("DELETE FROM token_usage WHERE tenant_id = 'a'", "0 of 0"),
    ],
)
@pytest.mark.parametrize("was", ["accepted", "billed"])
def test_rows_that_no_longer_agree_with_the_report_are_left_alone(accepted: World, was: str, tampering: str, found: str) -> None:
    """Which of them Stripe disowned is for a person to say."""
    if was == "billed":
        accepted.mark_billed()
    accepted.sql("ALTER TABLE token_usage DISABLE TRIGGER USER")
    accepted.sql(tampering)
    before = everything(accepted)
    with pytest.raises(ReportsDisagree, match=f"frozen 11 tokens of 2 rows, found {found}"):
        disown(accepted)
    assert everything(accepted) == before


def test_rows_that_retention_deleted_are_not_given_back(billed: World) -> None:
    """There is nothing left to send again."""
    with billed.connect() as db:
        db.execute("SET LOCAL billing.retention = 'on'")
        db.execute("DELETE FROM token_usage WHERE tenant_id = 'a'")
    with pytest.raises(ReportsDisagree, match="retention"):
        disown(billed)


def test_a_ledger_that_is_not_ready_revokes_nothing(billed: World) -> None:
    """In a copy of the database fences mean other rows."""
    report_id = report_of(billed)
    billed.sql("UPDATE billing.ledger SET system_identifier = 1")
    with pytest.raises(LedgerNotReady, match="database cluster"):
        disown(billed, report_id)
    assert billed.marked() == {"a": 11, "b": 7}
