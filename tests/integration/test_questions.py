"""Each held report is asked about once at a time, however many runs look for questions at once."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from token_billing.adapters import holds
from token_billing.adapters.database import session
from token_billing.stages.hold import ASK_AGAIN_AFTER, decide, held_reports, take_questions
from token_billing.windows import HOUR, Window
from world import World, now


@pytest.fixture
def held_ids(world: World) -> list[int]:
    """Forty reports that wait for a decision, oldest window first."""
    for hours in range(2):
        earlier = World(world.dsn, world.simulator, Window(world.window.start - hours * HOUR))
        for number in range(20):
            earlier.use(f"tenant {number}", 5)
        earlier.freeze()
    world.sql(
        "INSERT INTO billing.hold (report_id, reason, token_count, limit_tokens, held_at) "
        "SELECT id, 'absurd_total', token_count, 1, now() FROM billing.usage_report"
    )
    return [held.report_id for held in held_reports(world.connect)]


def test_runs_at_once_ask_each_question_once(world: World, held_ids: list[int]) -> None:
    """Every report is somebody's question, and none is two runs'."""
    with ThreadPoolExecutor(6) as runs:
        taken = [run.result() for run in [runs.submit(take_questions, world.connect, now) for _ in range(6)]]
    assert sorted(held.report_id for questions in taken for held in questions) == sorted(held_ids)


def test_a_run_does_not_wait_for_one_that_is_asking_and_takes_over_what_that_one_gave_up(world: World, held_ids: list[int]) -> None:
    """The first run dies before it has written down that it asks."""
    world.sql("ALTER DATABASE billing SET lock_timeout = '10s'")  # rather an error than a wait for ever
    with session(world.connect) as db, db.transaction(force_rollback=True):
        assert len(holds.take_questions(db, now() - ASK_AGAIN_AFTER, now())) == len(held_ids)
        assert take_questions(world.connect, now) == []
    assert [held.report_id for held in take_questions(world.connect, now)] == held_ids


def test_an_unanswered_question_is_asked_again_after_a_day_and_a_decided_one_never(world: World, held_ids: list[int]) -> None:
    """Asking starts the day anew."""
    decided, *others = held_ids
    assert [held.report_id for held in take_questions(world.connect, now)] == held_ids
    decide(world.connect, decided, approve=True, by="ada", clock=now)
    assert take_questions(world.connect, lambda: now() + ASK_AGAIN_AFTER - HOUR) == []
    assert [held.report_id for held in take_questions(world.connect, lambda: now() + ASK_AGAIN_AFTER + HOUR)] == others
    assert take_questions(world.connect, lambda: now() + ASK_AGAIN_AFTER + timedelta(hours=2)) == []
