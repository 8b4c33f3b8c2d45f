"""The database refuses illegal states, whoever writes them."""

import psycopg
import pytest

from token_billing.model import Disowned, RevocationCause
from token_billing.stages.revoke import revoke
from world import World


@pytest.fixture
def frozen(world: World) -> World:
    """One frozen report, id 1, of tenant a."""
    world.use("a", 5)
    world.freeze()
    return world


COPY_REPORT = (
    "INSERT INTO billing.usage_report (tenant_id, window_start, side_start, side_end, revision, identifier, row_count, token_count, "
    "frozen_at) SELECT {tenant}, window_start, {side_start}, {side_end}, {revision}, {identifier}, {rows}, {tokens}, frozen_at "
    "FROM billing.usage_report"
)
VALID = {
    "tenant": "'b'",
    "side_start": "side_start",
    "side_end": "side_end",
    "revision": "0",
    "identifier": "'i'",
    "rows": "1",
    "tokens": "5",
}


def test_a_valid_report_is_taken(frozen: World) -> None:
    """So that the refusals below are about what they say."""
    frozen.sql(COPY_REPORT.format(**VALID))


@pytest.mark.parametrize(
    "wrong",
    [
        {"identifier": "NULL"},
        {"identifier": "''"},
        {"identifier": "repeat('x', 101)"},
        {"identifier": "identifier"},
        {"tenant": "'a'"},
        {"tenant": "NULL"},
        {"tokens": "-1"},
        {"rows": "0"},
        {"revision": "1"},
        {"side_start": "side_start - interval '1 second'"},
        {"side_end": "side_end + interval '1 second'"},
        {"side_end": "side_start"},
    ],
)
def test_an_impossible_report_is_refused(frozen: World, wrong: dict[str, str]) -> None:
    """No identifier or somebody else's; a second report for one tenant, window, side and revision; negative tokens; no rows; a
    revision without a fence; a side that is not inside its window."""
    with pytest.raises(psycopg.IntegrityError):
        frozen.sql(COPY_REPORT.format(**{**VALID, **wrong}))


@pytest.mark.parametrize(
    "change",
    [
        "state = 'accepted'",
        "state = 'accepted', accepted_at = now()",
        "state = 'billed', accepted_at = now(), billed_at = now()",
        "state = 'sending'",
        "state = 'unresolved'",
        "state = 'rejected'",
        "state = 'revoked', accepted_at = now()",
        "state = 'quarantined'",
        "state = 'quarantined', quarantined_at = now()",
        "state = 'quarantined', quarantine_reason = 'no_customer'",
        "state = 'quarantined', quarantined_at = now(), quarantine_reason = 'whim'",
        "state = 'lost'",
        "accepted_at = now()",
        "billed_at = now()",
        "may_have_arrived = true",
        "attempt_count = 1",
        "attempt_count = 1, first_attempted_at = now()",
        "first_attempted_at = now()",
        "event_time = side_end",
        "event_time = side_start - interval '1 minute'",
        "tenant_id = 'b'",
        "token_count = 6",
        "row_count = 2",
        "identifier = 'another'",
        "identifier = NULL",
    ],
)
def test_an_impossible_state_is_refused(frozen: World, change: str) -> None:
    """Times belong to states, answers to attempts, reasons to quarantine, and what is frozen is frozen."""
    with pytest.raises(psycopg.IntegrityError):
        frozen.sql(f"UPDATE billing.usage_report SET {change}")


@pytest.mark.parametrize(
    "change",
    [
        "customer_id = 'cus_other'",
        "event_time = event_time + interval '1 minute'",
        "event_name = 'x'",
        "sink = 'usage_records', meter_id = NULL, event_name = NULL",
    ],
)
def test_the_first_attempt_fixes_where_a_report_goes(frozen: World, change: str) -> None:
    """A retry repeats what was attempted, not what the tenant points at today."""
    frozen.link("a")
    frozen.push()
    with pytest.raises(psycopg.IntegrityError, match="first attempt fixed"):
        frozen.sql(f"UPDATE billing.usage_report SET {change}")


def test_a_generation_was_first_attempted_once(frozen: World) -> None:
    """Its 20 hours are counted from there."""
    frozen.link("a")
    frozen.push()
    with pytest.raises(psycopg.IntegrityError, match="first attempted once"):
        frozen.sql("UPDATE billing.usage_report SET first_attempted_at = first_attempted_at + interval '1 hour'")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE billing.fence SET snapshot = pg_current_snapshot()",
        "DELETE FROM billing.fence",
        "INSERT INTO billing.fence SELECT window_start + interval '1 minute', 1, snapshot, frozen_at FROM billing.fence",
        "INSERT INTO billing.fence SELECT window_start, 1, snapshot, window_start FROM billing.fence",
        "INSERT INTO billing.ledger (system_identifier, adopted_at) VALUES (1, now())",
        "UPDATE billing.ledger SET ledger_id = gen_random_uuid()",
        "UPDATE billing.ledger SET cut_over = date_trunc('hour', now())",
        "UPDATE billing.ledger SET epoch = 2",
        "UPDATE billing.ledger SET epoch = 2, recovered_at = now(); UPDATE billing.ledger SET epoch = 1, recovered_at = NULL",
        "UPDATE billing.ledger SET noted_attempts = 1; UPDATE billing.ledger SET noted_attempts = 0",
        "INSERT INTO billing.recovery VALUES (1, 'c', now(), 'ann', 1, 0, 0)",
        "INSERT INTO billing.recovery VALUES (2, 'c', now(), 'ann', 1, 0, 0); DELETE FROM billing.recovery",
        "INSERT INTO billing.push_attempt VALUES (1, 1, 'i', now(), now(), NULL)",
    ],
)
def test_a_fence_and_the_ledgers_identity_stand(frozen: World, change: str) -> None:
    """They say which rows a report holds and whose money it is."""
    with pytest.raises(psycopg.IntegrityError):
        frozen.sql(change)


NO_TIMES = "accepted_at = NULL, billed_at = NULL, quarantined_at = NULL, quarantine_reason = NULL"


@pytest.mark.parametrize("after", ["frozen", "sending", "unresolved", "rejected"])
def test_a_billed_report_takes_no_step_but_into_revocation(frozen: World, after: str) -> None:
    """Whatever else would be legal about the state."""
    frozen.link("a")
    frozen.bill()
    with pytest.raises(psycopg.IntegrityError, match="no such step"):
        frozen.sql(f"UPDATE billing.usage_report SET state = '{after}', {NO_TIMES}")


@pytest.mark.parametrize("after", ["sending", "accepted"])
def test_a_quarantined_report_takes_no_step_but_its_release(frozen: World, after: str) -> None:
    """It has to be frozen again before it is sent."""
    frozen.sql("UPDATE billing.usage_report SET state = 'quarantined', quarantined_at = now(), quarantine_reason = 'no_customer'")
    with pytest.raises(psycopg.IntegrityError):
        frozen.sql(f"UPDATE billing.usage_report SET state = '{after}', {NO_TIMES}")


@pytest.fixture
def revoked(frozen: World) -> World:
    """The report is billed and was revoked once before."""
    frozen.link("a")
    frozen.bill()
    disowned = Disowned(1, RevocationCause.OPERATOR, "evidence")
    revoke(frozen.connect, disowned, frozen.clock, revoked_by="ann")
    frozen.bill()
    return frozen


REVOCATION = (
    "INSERT INTO billing.revocation SELECT 1, 1, identifier, 'operator', 'e', 1, 5, true, true, now(), 'ann' FROM billing.usage_report"
)
REVOKE = "UPDATE billing.usage_report SET state = 'revoked', billed_at = NULL"
GO_ON = "UPDATE billing.usage_report SET state = 'frozen', accepted_at = NULL, generation = 2, identifier = 'third'"


@pytest.mark.parametrize("steps", [(REVOKE, REVOCATION, GO_ON), (REVOCATION, REVOKE, GO_ON)])
def test_a_whole_revocation_is_taken(revoked: World, steps: tuple[str, ...]) -> None:
    """So that the refusals below are about what they say."""
    revoked.sql(";".join(steps))


@pytest.mark.parametrize(
    "change",
    [
        REVOKE,
        f"{REVOKE}; {REVOCATION}",
        f"{REVOKE}; {GO_ON}",
        f"{REVOKE}; {REVOCATION.replace('1, 5', '2, 5')}; {GO_ON}",
        f"{REVOKE}; {REVOCATION.replace('1, 5', '1, 6')}; {GO_ON}",
        f"{REVOKE}; {REVOCATION.replace('SELECT 1, 1, identifier', 'SELECT 1, 7, identifier')}; {GO_ON}",
        f"{REVOKE}; {REVOCATION.replace('identifier', repr('i'))}; {GO_ON}",
        f"{REVOKE}; {REVOCATION}; {GO_ON.replace('generation = 2', 'generation = 1')}",
        f"{REVOKE}; {REVOCATION}; {GO_ON.replace('accepted_at = NULL, ', '')}",
        f"{REVOKE}; {REVOCATION}; {GO_ON}, event_time = event_time + interval '1 minute'",
        REVOCATION.replace("SELECT 1, 1", "SELECT 1, 0"),
        REVOCATION.replace("SELECT 1, 1", "SELECT 2, 1"),
        REVOCATION.replace("SELECT 1, 1", "SELECT 1, -1"),
        REVOCATION.replace("'operator'", "'whim'"),
        REVOCATION.replace("'e'", "' '"),
        REVOCATION.replace("'e'", "NULL"),
        REVOCATION.replace("'ann'", "''"),
        REVOCATION.replace("1, 5", "0, 5"),
        REVOCATION.replace("1, 5", "1, 0"),
        "UPDATE billing.revocation SET evidence = 'better'",
        "DELETE FROM billing.revocation",
        "UPDATE billing.push_attempt SET outcome = 'disowned'; UPDATE billing.push_attempt SET outcome = 'accepted'",
        "UPDATE billing.usage_report SET state = 'quarantined', quarantined_at = now(), quarantine_reason = 'disowned'",
    ],
)
def test_half_a_revocation_is_refused(revoked: World, change: str) -> None:
    """Nothing rests revoked; each revocation says once and for ever who took back which generation, and why; it goes on under a new
    generation; what was disowned gets no other answer."""
    with pytest.raises(psycopg.IntegrityError):
        revoked.sql(change)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE token_usage SET input_tokens = 6",
        "UPDATE token_usage SET output_tokens = 6",
        "UPDATE token_usage SET tenant_id = 'b'",
        "UPDATE token_usage SET created_at = created_at - interval '1 hour'",
        "UPDATE token_usage SET recorded_xid = '3'",
        "DELETE FROM token_usage",
        "TRUNCATE token_usage",
        "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens) VALUES ('a', 'm', -1, 0)",
        "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) VALUES ('a', 'm', 1, 0, 'infinity')",
    ],
)
def test_recorded_usage_stays_as_it_was_recorded(frozen: World, change: str) -> None:
    """Insert-only: a correction is a row of its own; only retention deletes, and only what is billed."""
    with pytest.raises(psycopg.IntegrityError):
        frozen.sql(change)
    with frozen.connect() as db:
        db.execute("SET LOCAL billing.retention = 'on'")
        with pytest.raises(psycopg.IntegrityError):
            db.execute("DELETE FROM token_usage")


def test_retention_may_delete_what_is_billed(frozen: World) -> None:
    """In a transaction that says so, and in no other."""
    frozen.link("a")
    frozen.push()
    frozen.mark_billed()
    with pytest.raises(psycopg.IntegrityError, match="only billed rows, by retention"):
        frozen.sql("DELETE FROM token_usage")
    with frozen.connect() as db:
        db.execute("SET LOCAL billing.retention = 'on'")
        assert db.execute("DELETE FROM token_usage").rowcount == 1


def test_the_application_cannot_say_who_recorded_a_row(world: World) -> None:
    """Whatever it writes there is replaced by the transaction's own id."""
    world.sql(
        "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at, recorded_xid) "
        "VALUES ('a', 'm', 5, 0, %s, '3')",
        world.window.start,
    )
    assert world.sql("SELECT recorded_xid > '3' FROM token_usage") == [(True,)]


PRICE = (
    "INSERT INTO billing.price (price_id, currency, mode, tiers, package_size, package_rounds_up, learned_at) "
    "VALUES ({id}, {currency}, {mode}, {tiers}, {size}, {up}, now())"
)
VALID_PRICE = {"id": "'p'", "currency": "'usd'", "mode": "'per_unit'", "tiers": """'[[null, "1", "0"]]'""", "size": "10", "up": "true"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "''"},
        {"currency": "'USD'"},
        {"mode": "'tiered'"},
        {"tiers": "'[]'"},
        {"tiers": """'[[5, "1", "0"]]'"""},
        {"size": "0"},
        {"size": "NULL"},
        {"up": "NULL"},
        {"mode": "'volume'"},
    ],
)
def test_an_impossible_price_is_refused(world: World, wrong: dict[str, str]) -> None:
    """A mode nobody can rate, tiers that end, packages among tiers, or half a package rule."""
    world.sql(PRICE.format(**VALID_PRICE))
    with pytest.raises(psycopg.IntegrityError):
        world.sql(PRICE.format(**{**VALID_PRICE, "id": "'q'", **wrong}))


@pytest.mark.parametrize("period", ["now(), NULL", "NULL, now()", "now(), now()"])
def test_a_billing_period_is_whole_and_goes_forward(world: World, period: str) -> None:
    """An item's as well as an invoice's."""
    with pytest.raises(psycopg.IntegrityError):
        world.sql(
            "INSERT INTO billing.metered_item (usage_item_id, problem, looked_up_at, period_start, period_end) "
            f"VALUES ('si', 'none', now(), {period})"
        )
    with pytest.raises(psycopg.IntegrityError):
        world.sql(
            "INSERT INTO billing.invoiced_period (usage_item_id, invoice_id, invoice_status, seen_at, period_start, period_end) "
            f"VALUES ('si', 'in', 'paid', now(), {period})"
        )


def test_an_application_that_may_only_insert_records_usage(world: World) -> None:
    """Its role needs no right in schema billing, whether or not it tries to set what it must not."""
    with world.connect() as db:
        db.execute("CREATE ROLE application; GRANT INSERT ON token_usage TO application; SET LOCAL ROLE application")
        insert = "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at{}) VALUES ('a', 'm', 5, 0, now(){})"
        db.execute(insert.format("", ""))
        db.execute(insert.format(", recorded_xid", ", '3'"))
        db.execute("RESET ROLE")
        assert db.execute("SELECT count(*), bool_and(recorded_xid = pg_current_xact_id()) FROM token_usage").fetchone() == (2, True)
        db.rollback()


@pytest.mark.parametrize("change", ["UPDATE billing.audit SET decided_by = 'bob'", "DELETE FROM billing.audit"])
def test_an_audit_row_stands(world: World, change: str) -> None:
    """What was decided, and by whom, is written down for ever."""
    world.sql(
        "INSERT INTO billing.audit (action, subject, decided_by, decided_at, before, after) "
        "VALUES ('release', 'r', 'ann', now(), '{}', '{}')"
    )
    with pytest.raises(psycopg.errors.CheckViolation, match="for ever"):
        world.sql(change)
