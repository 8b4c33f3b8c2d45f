"""Held usage is decided about in Airflow, by a person: through the API that the UI's "Required actions" calls.

After the tests of the stack itself, which count its runs."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
import pytest

from sandbox.postgres import PostgresServer
from stack_fixture import SandboxStack
from token_billing.adapters.clock import system_clock
from token_billing.stages.freeze import freeze
from token_billing.windows import Window, last_closed_window

pytestmark = pytest.mark.slow

Found = TypeVar("Found")


def wait_for(question: Callable[[], Found | None], seconds: float = 120) -> Found:
    """The first answer there is."""
    deadline = time.monotonic() + seconds
    while (found := question()) is None:
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.5)
    return found


def test_a_person_approves_one_total_and_refuses_another(stack: SandboxStack) -> None:
    """The approved one is billed by the late run, the refused one is quarantined, and both decisions keep who made them."""
    stack.up()
    api = stack.api()
    window = Window(last_closed_window(system_clock()).start - timedelta(days=20))
    dsn = PostgresServer(stack.home / "postgres").dsn("billing")
    with stack.billing() as db:
        db.execute(
            "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) "
            "SELECT id, 'm', 5, 0, %s FROM (SELECT id FROM tenants WHERE stripe_usage_item_id IS NOT NULL ORDER BY id LIMIT 2) two",
            (window.start,),
        )
    freeze(lambda: psycopg.connect(dsn), window, system_clock)
    with stack.billing() as db:
        db.execute("UPDATE billing.usage_report SET frozen_at = now() - interval '2 hours' WHERE window_start = %s", (window.start,))
        db.execute(
            "INSERT INTO billing.hold (report_id, reason, token_count, limit_tokens, held_at) "
            "SELECT id, 'absurd_total', token_count, 1, now() FROM billing.usage_report WHERE window_start = %s",
            (window.start,),
        )

    def run(dag_id: str) -> str:
        return str(api.call("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None})["dag_run_id"])

    def questions() -> list[dict[str, Any]] | None:
        found = api.call("GET", "/dags/approve_held_usage/dagRuns/~/hitlDetails")["hitl_details"]
        waiting = [one for one in found if one["task_instance"]["state"] == "awaiting_input"]
        return waiting if len(waiting) == 2 else None

    def decisions() -> list[tuple[str, str]] | None:
        with stack.billing() as db:
            found = db.execute("SELECT decision, decided_by FROM billing.hold WHERE decision IS NOT NULL ORDER BY report_id").fetchall()
        return found if len(found) == 2 else None

    def outcomes() -> list[tuple[str]] | None:
        with stack.billing() as db:
            found = db.execute("SELECT state FROM billing.usage_report WHERE window_start = %s ORDER BY id", (window.start,)).fetchall()
        return found if ("billed",) in found else None

    wait_for(lambda: api.is_paused("approve_held_usage") is not None or None)
    run("approve_held_usage")  # or the schedule's own run asks first
    wait_for(questions)
    # A person reads first. An answer within Airflow's heartbeat of 5 s, before the scheduler has heard that the task parked, makes it
    # take the task for a dead one: it is retried, and asks again.
    time.sleep(15)
    for question, choice in zip(sorted(wait_for(questions), key=lambda one: one["subject"]), ("Approve", "Refuse"), strict=True):
        instance = question["task_instance"]
        path = f"/dags/approve_held_usage/dagRuns/{instance['dag_run_id']}/taskInstances/{instance['task_id']}/{instance['map_index']}"
        api.call("PATCH", f"{path}/hitlDetails", {"chosen_options": [choice], "params_input": {}})
    assert [decision for decision, _ in wait_for(decisions)] == ["approved", "refused"]
    assert all(by and by != "somebody" for _, by in wait_for(decisions))
    run("report_late_usage")
    assert wait_for(outcomes) == [("billed",), ("quarantined",)]
