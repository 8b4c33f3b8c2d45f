"""What the demo's usage promises: real in its shape, awkward at its edges, the same for the same seed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.demo_usage import demo_tenants, demo_usage, fresh_usage
from sandbox.usage_csv import HOUR_MICROSECONDS, MAX_TENANT_ID_LENGTH, UsageRows, import_usage

FIRST_WINDOW = datetime(2026, 1, 30, 12, tzinfo=UTC)
SEED = 7


@pytest.fixture(scope="module")
def day() -> UsageRows:
    return demo_usage(FIRST_WINDOW, 24, 40, SEED)


def microseconds(rows: UsageRows) -> np.ndarray[Any, np.dtype[np.int64]]:
    return rows.created_at.astype(np.int64)


def table(rows: UsageRows) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.stack([microseconds(rows), rows.tenant_codes, rows.model_codes, rows.input_tokens, rows.output_tokens])


def test_the_same_seed_gives_the_same_usage(day: UsageRows) -> None:
    """A demo can be repeated and compared; another seed is another demo."""
    again, other = demo_usage(FIRST_WINDOW, 24, 40, SEED), demo_usage(FIRST_WINDOW, 24, 40, SEED + 1)
    assert again.tenant_ids == day.tenant_ids
    assert (table(again) == table(day)).all()
    assert (len(other), other.token_total) != (len(day), day.token_total)


@given(st.lists(st.integers(0, 3 * HOUR_MICROSECONDS), max_size=6))
def test_intervals_that_touch_neither_share_nor_miss_a_row(cuts: list[int]) -> None:
    """However live usage is cut into intervals, together they are what the demo would have put there."""
    edges = [FIRST_WINDOW + timedelta(microseconds=cut) for cut in sorted([0, *cuts, 3 * HOUR_MICROSECONDS])]
    parts = [table(fresh_usage(begin, end, 10, SEED)) for begin, end in pairwise(edges)]
    assert (np.concatenate(parts, axis=1) == table(demo_usage(FIRST_WINDOW, 3, 10, SEED))).all()


def test_a_day_of_forty_tenants_is_of_a_size_to_work_with(day: UsageRows) -> None:
    """Fifty to a hundred thousand calls, in order of time, every hour of the day among them, every tenant at some time."""
    assert 50_000 <= len(day) <= 100_000
    assert day.hours() == (FIRST_WINDOW, FIRST_WINDOW + timedelta(hours=24))
    assert (np.diff(microseconds(day)) >= 0).all()
    assert len(np.unique(microseconds(day) // HOUR_MICROSECONDS)) == 24
    assert len(day.tenants()) == 40


def test_a_few_tenants_hold_most_of_the_usage(day: UsageRows) -> None:
    """The largest fifth makes most of the calls; some tenants are silent in some hours."""
    calls = np.sort(np.bincount(day.tenant_codes, minlength=40))[::-1]
    assert calls[:8].sum() > 0.55 * len(day)
    assert 0.1 * len(day) < calls[0] < 0.5 * len(day)
    tenant_hours = len(set(zip((microseconds(day) // HOUR_MICROSECONDS).tolist(), day.tenant_codes.tolist(), strict=True)))
    assert 500 < tenant_hours < 900


def test_the_day_has_a_rhythm(day: UsageRows) -> None:
    """The busiest hour has far more calls than the quietest."""
    hourly = np.bincount((microseconds(day) // HOUR_MICROSECONDS) % 24)
    assert 1.5 * hourly.min() < hourly.max()


def test_token_counts_are_skewed_and_bounded(day: UsageRows) -> None:
    """The mean lies well above the median, several models take part, and no count leaves a context window or turns negative."""
    assert np.mean(day.input_tokens) > 1.4 * np.median(day.input_tokens) > 0
    assert (day.input_tokens.min(), day.output_tokens.min()) == (0, 0)
    assert day.input_tokens.max() <= 200_000
    assert day.output_tokens.max() <= 32_000
    assert (np.bincount(day.model_codes, minlength=len(day.models)) > 500).all()


def test_the_edges_are_in_it(day: UsageRows) -> None:
    """Calls on the exact hour and one microsecond before the next, in every hour; calls without tokens; equal calls."""
    in_hour, hours = np.remainder(microseconds(day), HOUR_MICROSECONDS), microseconds(day) // HOUR_MICROSECONDS
    assert len(np.unique(hours[in_hour == 0])) == 24
    assert len(np.unique(hours[in_hour == HOUR_MICROSECONDS - 1])) == 24
    assert (day.input_tokens + day.output_tokens == 0).any()
    assert ((day.input_tokens > 0) & (day.output_tokens == 0)).any()
    assert np.unique(table(day), axis=1).shape[1] < len(day)


def test_tenants_have_names_and_some_awkward_ids() -> None:
    """Slugs mostly; among forty, ids with a space, both quotes, a backslash, other scripts and 120 characters. All differ."""
    tenants = demo_tenants(40, SEED)
    ids = [tenant.id for tenant in tenants]
    assert len(set(ids)) == 40
    for part in (" ", "'", '"', "\\", "%", "ü", "株", "🚀", "/"):
        assert any(part in tenant_id for tenant_id in ids), part
    assert max(map(len, ids)) == 120 <= MAX_TENANT_ID_LENGTH
    assert all(tenant.name.strip() for tenant in tenants)
    assert demo_tenants(7, SEED) == tenants[:7]
    assert len({tenant.id for tenant in demo_tenants(5_000, SEED)}) == 5_000


def test_it_goes_into_the_applications_table(day: UsageRows, usage_database: psycopg.Connection[Any]) -> None:
    """The database holds every call and token, under ids it spells as we do."""
    import_usage(usage_database, day)
    stored = usage_database.execute("SELECT count(*), sum(input_tokens::bigint + output_tokens) FROM token_usage").fetchone()
    assert stored == (len(day), day.token_total)
    ids = usage_database.execute("SELECT DISTINCT tenant_id FROM token_usage ORDER BY tenant_id").fetchall()
    assert [row[0] for row in ids] == day.tenants()


@pytest.mark.parametrize(("hours", "tenant_count"), [(0, 40), (3, 0), (3, 1)])
def test_small_demos_work(hours: int, tenant_count: int) -> None:
    """No hours or no tenants are no rows; one tenant is enough for some."""
    assert (len(demo_usage(FIRST_WINDOW, hours, tenant_count, SEED)) > 0) == (hours * tenant_count > 0)


def test_times_without_an_offset_or_off_the_hour_are_refused() -> None:
    """A window is a UTC hour; a naive time is not."""
    with pytest.raises(ValueError, match="full UTC hour"):
        demo_usage(FIRST_WINDOW.replace(tzinfo=None), 1, 1, SEED)
    with pytest.raises(ValueError, match="full UTC hour"):
        demo_usage(FIRST_WINDOW.replace(minute=30), 1, 1, SEED)
    with pytest.raises(ValueError, match="offset"):
        fresh_usage(FIRST_WINDOW, FIRST_WINDOW.replace(tzinfo=None), 1, SEED)
