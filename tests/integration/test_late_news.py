"""News that comes when others have gone on: it tells of an earlier attempt, generation or cancellation, and decides nothing now."""

from collections.abc import Callable
from typing import Any

import pytest

from token_billing.adapters import sending, surplus
from token_billing.adapters.database import Connection
from token_billing.doubtful import DoubtfulReport
from token_billing.errors import StripeUnavailable
from token_billing.model import Accepted, AttemptResult, Outcome, Rejected, Shard, Undelivered, Unresolved
from token_billing.surplus import Cancellation, Cancelled, NotCancellable, StillSurplus
from world import World, now


@pytest.fixture
def unresolved(world: World) -> World:
    """The requests of the only attempt were lost."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    world.simulator.script_faults(["reset_before_effect"] * 5)
    with pytest.raises(StripeUnavailable):
        world.push()
    return world


def test_a_report_that_was_settled_since_it_was_listed_is_not_sent(world: World) -> None:
    """Two pushes list the same reports; the slower one leases the customer when the other is done."""
    world.link("a", "b")
    world.use("a", 5)
    world.freeze()
    world.push()
    world.use("b", 7)
    world.freeze()
    world.push()
    world.use("b", 11)
    world.freeze()
    with world.connect() as db:
        listed = sending.waiting_reports(db, world.window, Shard(0, 1), sending.last_report(db, world.window))
        world.push()
        assert len(listed) == 1 and sending.reports_to_send(db, listed) == []


def attempt_again(world: World) -> None:
    """A second attempt is noted and under way."""
    world.sql(
        "UPDATE billing.usage_report SET state = 'sending', attempt_count = 2;"
        "INSERT INTO billing.push_attempt (report_id, attempt, identifier, noted_at) "
        "SELECT id, 2, identifier, now() FROM billing.usage_report"
    )


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(Rejected("no", 400), "sending"), (Undelivered("no"), "sending"), (Unresolved("no"), "sending"), (Accepted(), "accepted")],
)
def test_an_earlier_attempts_answer_decides_nothing_but_that_stripe_has_it(unresolved: World, outcome: Outcome, state: str) -> None:
    """Its worker lost the lease while it waited; another one is sending."""
    attempt_again(unresolved)
    ((report_id, identifier),) = unresolved.sql("SELECT id, identifier FROM billing.usage_report")
    with unresolved.connect() as db:
        sending.record_outcomes(db, [AttemptResult(report_id, 1, identifier, outcome, False, 0, True)], now())
    assert unresolved.states() == {"a": state}


def test_an_acceptance_that_is_told_twice_is_no_surplus(unresolved: World) -> None:
    """The second time it changes nothing; what counts under the report's own identifier is never cancelled."""
    ((report_id, identifier),) = unresolved.sql("SELECT id, identifier FROM billing.usage_report")
    with unresolved.connect() as db:
        for _ in range(2):
            sending.record_outcomes(db, [AttemptResult(report_id, 1, identifier, Accepted(), False, 0, True)], now())
    assert unresolved.states() == {"a": "accepted"}
    assert unresolved.sql("SELECT count(*) FROM billing.surplus") == [(0,)]


Look = Callable[[Connection, DoubtfulReport], Any]
LOOKS: dict[str, Look] = {
    "present": lambda db, report: sending.accept_read_back(db, report, now()),
    "absent": lambda db, report: sending.note_absence(db, report, now(), now()),
    "proven absent": lambda db, report: sending.begin_generation(db, report, "third", now()),
}


@pytest.mark.parametrize("verdict", LOOKS)
def test_a_look_at_an_earlier_generation_decides_nothing(unresolved: World, verdict: str) -> None:
    """Of two that read the same minute at once, one has begun the next generation, and it is being sent."""
    with unresolved.connect() as db:
        (seen,) = sending.reports_to_read_back(db, unresolved.window, Shard(0, 1), now())
        sending.begin_generation(db, seen, "second", now())
        db.commit()
        attempt_again(unresolved)
        LOOKS[verdict](db, seen)
    assert unresolved.sql("SELECT state, generation, identifier FROM billing.usage_report") == [("sending", 1, "second")]


@pytest.mark.parametrize("later", [NotCancellable("too late"), StillSurplus("reset")])
def test_what_stripe_cancelled_stays_cancelled(unresolved: World, later: Cancellation) -> None:
    """Of two that asked at once, the slower one tells of something else."""
    unresolved.sql(
        "INSERT INTO billing.surplus (report_id, identifier, token_count, how, found_at) "
        "SELECT id, 'given up', token_count, 'read_back', now() FROM billing.usage_report"
    )
    with unresolved.connect() as db:
        (one,) = surplus.surplus_to_cancel(db)
        for ended in (Cancelled(), later):
            surplus.note_cancellation(db, one, now())
            surplus.record_cancellation(db, one, ended, now())
    assert unresolved.sql("SELECT cancelled_at IS NOT NULL, gave_up_at, message FROM billing.surplus") == [(True, None, None)]
