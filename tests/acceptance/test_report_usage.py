"""The DAG report_usage through real Airflow task runs."""

import os
import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any

import pytest

from sandbox.airflow_runs import AirflowRuns
from sandbox.environment import ROOT
from task_states import states
from token_billing.windows import Window
from world import World, now

#: What the fixture `airflow` runs.
DAG_ID = "report_usage"


def test_a_run_bills_its_hour(world: World, airflow: AirflowRuns) -> None:
    """A run of logical date X without a scheduler covers [X − 1 h, X)."""
    world.link("a", "b")
    world.use("a", 5)
    world.use("b", 7)
    world.use("b", 100, at=world.window.start - timedelta(microseconds=1))
    run = airflow.run(world.window.end)
    assert states(run) == dict.fromkeys(("await_facts", "freeze", "push", "mark_billed", "check_conservation"), "success")
    assert world.marked() == world.at_stripe() == {"a": 5, "b": 7}


def test_running_a_billed_hour_again_is_a_successful_no_op(world: World, airflow: AirflowRuns) -> None:
    """There is nothing to push, and the run shows it."""
    world.link("a")
    world.use("a", 5)
    airflow.run(world.window.end)
    run = airflow.run(world.window.end)
    assert (str(run.state), states(run)["push"]) == ("success", "skipped")
    assert len(world.simulator.meter_events()) == 1


def test_an_hour_without_usage_succeeds(world: World, airflow: AirflowRuns) -> None:
    """And leaves its fence, so that it is known to have been looked at."""
    assert str(airflow.run(world.window.end).state) == "success"
    assert world.sql("SELECT count(*) FROM billing.fence") == [(1,)]


def test_a_large_hour_is_pushed_in_a_few_shards(world: World, airflow: AirflowRuns) -> None:
    """Never a task per tenant. Many tenants on few customers: more reports of a customer and hour than it has minutes."""
    customers = [f"customer {n}" for n in range(40)]
    world.link(*customers)
    world.sql(
        "INSERT INTO tenants SELECT 't' || n, 'T', stripe_customer_id, stripe_subscription_id, stripe_usage_item_id "
        "FROM generate_series(1, 5100) n JOIN tenants ON id = 'customer ' || n %% 40"
    )
    world.sql(
        "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) SELECT id, 'm', 1, 1, %s FROM tenants",
        world.window.start,
    )
    run = airflow.run(world.window.end)
    assert [instance.task_id for instance in run.get_task_instances()].count("push") == 2
    assert str(run.state) == "success"
    assert sum(world.marked().values()) == 5140 * 2
    assert sum(int(event["value"]) for event in world.simulator.meter_events()) == 5140 * 2


@pytest.mark.parametrize("trouble", ["wrong key", "unreachable"])
def test_a_run_without_stripe_fails_and_a_later_one_bills(
    world: World, airflow: AirflowRuns, monkeypatch: pytest.MonkeyPatch, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The failed task's message names the connection; nothing is marked; the run fails, though marking and the leaf's rules let
    the other tasks go on."""
    world.window = Window(world.window.start - timedelta(hours=1))  # nothing is waited for any more
    world.link("a")
    world.use("a", 5)
    right = os.environ["AIRFLOW_CONN_STRIPE_DEFAULT"]
    wrong = (
        right.replace("sk_test_sandbox", "sk_test_wrong")
        if trouble == "wrong key"
        else right.replace(world.simulator.base_url, "http://127.0.0.1:9")
    )
    monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", wrong)
    run = airflow.run(world.window.end)
    assert str(run.state) == "failed"
    assert [states(run)[task] for task in ("await_facts", "freeze", "push")] == ["failed", "success", "failed"]
    assert world.marked() == {}
    assert any("BILLING ALERT" in line and "stripe_default" in line for line in caplog.messages)
    monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", right)
    assert str(airflow.run(world.window.end).state) == "success"
    assert world.marked() == world.at_stripe() == {"a": 5}


def test_a_window_that_is_still_open_fails_clearly(world: World, airflow: AirflowRuns, caplog: pytest.LogCaptureFixture) -> None:
    """Its usage is not complete."""
    run = airflow.run(now().replace(minute=0, second=0, microsecond=0) + timedelta(hours=1))
    assert str(run.state) == "failed"
    assert any("still open" in line for line in caplog.messages)


def test_a_database_nobody_has_billed_from_is_adopted_by_the_first_run(
    world: World, airflow: AirflowRuns, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two connections are all it takes."""
    from integration.test_adoption import APPLICATION

    fresh = World(postgres.recreate_database("fresh"), world.simulator)
    fresh.sql(APPLICATION)
    fresh.link("a")
    fresh.use("a", 5)
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", fresh.dsn)
    assert str(airflow.run(fresh.window.end).state) == "success"
    assert fresh.marked() == fresh.at_stripe() == {"a": 5}


def test_a_database_another_job_bills_from_is_not_adopted_by_a_run(
    world: World, airflow: AirflowRuns, postgres: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says which command adopts it."""
    from integration.test_adoption import APPLICATION

    running = World(postgres.recreate_database("fresh"), world.simulator)
    running.sql(APPLICATION)
    running.use("a", 5)
    running.sql("UPDATE token_usage SET billed = true")
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", running.dsn)
    assert str(airflow.run(running.window.end).state) == "failed"
    assert any("--cut-over" in line for line in caplog.messages)


def test_airflow_dags_test_bills_the_hour_before_its_date(world: World, airflow: AirflowRuns) -> None:
    """The command line, with the two connections in the environment and no scheduler."""
    world.link("a")
    world.use("a", 5)
    logical_date: datetime = world.window.end
    command = [sys.executable, "-m", "airflow", "dags", "test", "report_usage", logical_date.isoformat()]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{ROOT}/include:{ROOT}/plugins"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert world.marked() == world.at_stripe() == {"a": 5}
