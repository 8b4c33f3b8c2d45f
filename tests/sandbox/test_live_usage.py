"""Live usage arrives once, whatever was killed or paused in between."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from sandbox.live_usage import FIRST_HOURS, TENANT_COUNT, first_window, let_usage_arrive
from token_billing.windows import HOUR

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
Rows = list[tuple[Any, ...]]


def rows_of(connection: psycopg.Connection[Any]) -> Rows:
    question = "SELECT created_at, tenant_id, model, input_tokens, output_tokens FROM token_usage ORDER BY 1, 2, 3, 4, 5"
    return connection.execute(question).fetchall()


def test_a_new_sandbox_begins_with_six_complete_hours(usage_database: psycopg.Connection[Any]) -> None:
    now = NOON + timedelta(minutes=25)
    let_usage_arrive(usage_database, now)
    times = [created_at for created_at, *_ in rows_of(usage_database)]
    assert first_window(now).start == NOON - FIRST_HOURS * HOUR
    assert first_window(now).start <= min(times) < first_window(now).end
    assert NOON < max(times) < now


def test_usage_that_arrives_in_pieces_is_the_usage_that_arrives_at_once(usage_database: psycopg.Connection[Any]) -> None:
    end = NOON + timedelta(minutes=70)
    let_usage_arrive(usage_database, NOON)
    for seconds in (5, 10, 10, 7, 3600, 3605):  # also twice, and backwards
        let_usage_arrive(usage_database, NOON + timedelta(seconds=seconds))
    let_usage_arrive(usage_database, end)
    in_pieces = rows_of(usage_database)
    usage_database.execute("TRUNCATE token_usage; TRUNCATE sandbox.live_usage")
    let_usage_arrive(usage_database, NOON)
    let_usage_arrive(usage_database, end)
    assert rows_of(usage_database) == in_pieces


def test_usage_that_was_not_committed_arrives_with_the_next(usage_database: psycopg.Connection[Any]) -> None:
    class PowerCut(Exception):
        pass

    with pytest.raises(PowerCut), usage_database.transaction():
        let_usage_arrive(usage_database, NOON)
        raise PowerCut
    assert rows_of(usage_database) == []
    assert let_usage_arrive(usage_database, NOON) == len(rows_of(usage_database)) > 0


def test_after_a_long_pause_the_usage_of_one_day_arrives(usage_database: psycopg.Connection[Any]) -> None:
    let_usage_arrive(usage_database, NOON)
    count = let_usage_arrive(usage_database, NOON + timedelta(days=9, minutes=30))
    late = [created_at for created_at, *_ in rows_of(usage_database) if created_at >= NOON]
    assert len(late) == count
    assert min(late) >= NOON + timedelta(days=8)
    assert count > TENANT_COUNT * 20 * 24  # a day's worth, not an hour's
