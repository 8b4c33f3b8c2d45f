"""Held usage and proposals are decided about in Airflow, by a person: through the API that the UI's "Required actions" calls.

After the tests of the stack itself, which count its runs."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, LiteralString, TypeVar

import psycopg
import pytest

from sandbox.airflow_api import AirflowApi
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


class Questions:
    """What a DAG asks people."""

    def __init__(self, api: AirflowApi, dag_id: str) -> None:
        self._api, self._dag_id = api, dag_id

    def answer(self, *choices: str) -> None:
        """Has the DAG ask, and answers each of its questions, in the order of their subjects."""
        wait_for(lambda: self._api.is_paused(self._dag_id) is not None or None)
        run(self._api, self._dag_id)  # or the schedule's own run asks first
        wait_for(lambda: self._waiting(len(choices)))
        # A person reads first. An answer within Airflow's heartbeat of 5 s, before the scheduler has heard that the task parked, makes it
        # take the task for a dead one: it is retried, and asks again.
        time.sleep(15)
        waiting = sorted(wait_for(lambda: self._waiting(len(choices))), key=lambda one: str(one["subject"]))
        for question, choice in zip(waiting, choices, strict=True):
            instance = question["task_instance"]
            path = f"/dags/{self._dag_id}/dagRuns/{instance['dag_run_id']}/taskInstances/{instance['task_id']}/{instance['map_index']}"
            self._api.call("PATCH", f"{path}/hitlDetails", {"chosen_options": [choice], "params_input": {}})

    def _waiting(self, count: int) -> list[dict[str, Any]] | None:
        found = self._api.call("GET", f"/dags/{self._dag_id}/dagRuns/~/hitlDetails")["hitl_details"]
        waiting = [one for one in found if one["task_instance"]["state"] == "awaiting_input"]
        return waiting if len(waiting) == count else None


def run(api: AirflowApi, dag_id: str) -> None:
    api.call("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None})


def freeze_an_hour(stack: SandboxStack, days_ago: int, whose: LiteralString) -> Window:
    """An hour so many days ago, in which each tenant of the query used five tokens, is frozen."""
    window = Window(last_closed_window(system_clock()).start - timedelta(days=days_ago))
    with stack.billing() as db:
        db.execute(
            "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) "
            f"SELECT id, 'm', 5, 0, %s FROM ({whose}) AS used (id)",
            (window.start,),
        )
    dsn = PostgresServer(stack.home / "postgres").dsn("billing")
    freeze(lambda: psycopg.connect(dsn), window, system_clock)
    return window


def test_a_person_approves_one_total_and_refuses_another(stack: SandboxStack) -> None:
    """The approved one is billed by the late run, the refused one is quarantined, and both decisions keep who made them."""
    stack.up()
    api = stack.api()
    window = freeze_an_hour(stack, 20, "SELECT id FROM tenants WHERE stripe_usage_item_id IS NOT NULL ORDER BY id LIMIT 2")
    with stack.billing() as db:
        db.execute("UPDATE billing.usage_report SET frozen_at = now() - interval '2 hours' WHERE window_start = %s", (window.start,))
        db.execute(
            "INSERT INTO billing.hold (report_id, reason, token_count, limit_tokens, held_at) "
            "SELECT id, 'absurd_total', token_count, 1, now() FROM billing.usage_report WHERE window_start = %s",
            (window.start,),
        )

    def decisions() -> list[tuple[str, str]] | None:
        with stack.billing() as db:
            found = db.execute("SELECT decision, decided_by FROM billing.hold WHERE decision IS NOT NULL ORDER BY report_id").fetchall()
        return found if len(found) == 2 else None

    def outcomes() -> list[tuple[str]] | None:
        with stack.billing() as db:
            found = db.execute("SELECT state FROM billing.usage_report WHERE window_start = %s ORDER BY id", (window.start,)).fetchall()
        return found if ("billed",) in found else None

    Questions(api, "approve_held_usage").answer("Approve", "Refuse")
    assert [decision for decision, _ in wait_for(decisions)] == ["approved", "refused"]
    assert all(by and by != "somebody" for _, by in wait_for(decisions))
    run(api, "report_late_usage")
    assert wait_for(outcomes) == [("billed",), ("quarantined",)]


def test_a_person_releases_usage_whose_tenant_is_known_by_now(stack: SandboxStack) -> None:
    """The proposal is asked about, the answer carried out with an audit row that names who gave it, and the usage billed."""
    stack.up()
    api = stack.api()
    window = freeze_an_hour(stack, 19, "SELECT 'newcomer'")
    with stack.billing() as db:
        db.execute(
            "UPDATE billing.usage_report SET state = 'quarantined', quarantine_reason = 'unknown_tenant', quarantined_at = now(), "
            "frozen_at = now() - interval '2 hours' WHERE window_start = %s",
            (window.start,),
        )
        db.execute(
            "INSERT INTO tenants SELECT 'newcomer', 'Newcomer', stripe_customer_id, stripe_subscription_id, stripe_usage_item_id "
            "FROM tenants WHERE stripe_usage_item_id IS NOT NULL ORDER BY id LIMIT 1"
        )
    Questions(api, "approve_proposals").answer("release")
    stack.wait_until("SELECT count(*) = 1 FROM billing.audit WHERE action = 'release' AND decided_by <> 'somebody'")
    run(api, "report_late_usage")
    stack.wait_until("SELECT state = 'billed' FROM billing.usage_report WHERE tenant_id = 'newcomer'")
