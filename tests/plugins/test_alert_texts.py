"""What an alert says: pure functions, no Airflow."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from billing_airflow.alerts import (
    CAUSE_LIMIT,
    KILLED_OR_LOST,
    NO_EXCEPTION_GIVEN,
    Alert,
    Failure,
    describe,
    describe_run,
    mask,
    run_next_step,
)

HOUR = (datetime(2026, 1, 1, 5, tzinfo=UTC), datetime(2026, 1, 1, 6, tzinfo=UTC))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("key sk_" + "live_51AbCdEf refused", "key sk_live_*** refused"),
        ("Invalid API Key provided: sk_" + "test_****1234", "Invalid API Key provided: sk_test_***"),
        ("rk_" + "live_AbC, pk_" + "test_dEf", "rk_live_***, pk_test_***"),
        ("signed with whsec_" + "a1B2+c/3=", "signed with whsec_***"),
        ("postgresql://billing:p@ss@db:5432/app is down", "postgresql://billing:***@db:5432/app is down"),
        ("Authorization: Bearer eyJhbGciOi.x.y", "Authorization: Bearer ***"),
        ("password=hunter2 host=db", "password=*** host=db"),
        ("{'client_secret': 'a', 'api_key': 'b'}", "{'client_secret': 'a', 'api_key': '***'}"),
        ("billed 1200 input tokens of tenant t-1", "billed 1200 input tokens of tenant t-1"),
    ],
)
def test_secrets_are_masked_and_the_rest_is_not(text, masked):
    assert mask(text) == masked


def test_a_cut_never_leaves_part_of_a_key():
    for padding in range(CAUSE_LIMIT - 40, CAUSE_LIMIT):
        assert "AbCdEf" not in describe("x" * padding + " sk_" + "live_AbCdEfAbCdEfAbCdEfAbCdEf")


def test_a_long_cause_is_cut_and_says_so():
    described = describe(ValueError("x" * 5000))
    assert len(described) < CAUSE_LIMIT + 50
    assert described.endswith("(cut; the log has all of it)")


def test_an_exception_without_text_is_told_by_its_type():
    assert describe(KeyError()) == "KeyError"
    assert describe(None) == NO_EXCEPTION_GIVEN


def test_two_reports_of_one_failure_are_one_and_a_further_try_is_another():
    alert = dict(dag_id="d", run_id="r", task_id="t", cause="c", next_step="n")
    assert Alert(**alert, try_number=1).identity == Alert(**alert | {"cause": "other words"}, try_number=1).identity
    assert Alert(**alert, try_number=1).identity != Alert(**alert, try_number=2).identity
    assert Alert(**alert, map_index=0).identity != Alert(**alert, map_index=1).identity


def test_a_run_that_fails_again_after_it_was_cleared_is_told_again():
    first, second = (Alert("d", "r", "c", "n", run_ended_at=moment) for moment in HOUR)
    assert first.identity != second.identity


def test_a_log_line_is_one_line():
    alert = Alert("d", "r", "many\nlines\n\nof cause", "clear it", data_interval=HOUR)
    assert alert.line == (
        "Airflow run failed: d | DAG d, run r | Data interval: [2026-01-01T05:00+00:00, 2026-01-01T06:00+00:00) | "
        "Cause: many | lines | of cause | Next step: clear it"
    )


def test_a_run_of_many_failed_tasks_names_some_and_counts_the_rest():
    told = describe_run("task_failure", [Failure("push", index, 1, "no") for index in range(25)])
    assert "push[9], try 1: no" in told and "push[10]" not in told
    assert told.endswith("and 15 more")


@pytest.mark.parametrize(
    ("reason", "failures", "step"),
    [
        ("task_failure", [Failure("push", -1, 1, KILLED_OR_LOST)], "out-of-memory"),
        ("task_failure", [Failure("push", -1, 1, "ValueError: no")], "Remove the cause"),
        ("timed_out", [], "still running"),
        ("all_tasks_deadlocked", [], "waits for ever"),
    ],
)
def test_the_next_step_fits_the_reason(reason, failures, step):
    assert step in run_next_step(reason, failures)
