"""The DAG report_usage on a restored database: Airflow's own database tells that it is one."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from sandbox.airflow_runs import AirflowRuns
from sandbox.environment import ROOT
from world import World

#: What the fixture `airflow` runs.
DAG_ID = "report_usage"


def test_a_run_on_an_older_copy_fails_until_one_command_recovers_it(
    world: World, airflow: AirflowRuns, postgres: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the lost time sent is found at Stripe, and is not sent again."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS older WITH (FORCE)")
        admin.execute("CREATE DATABASE older TEMPLATE billing")
    assert str(airflow.run(world.window.end).state) == "success"

    older = replace(world, dsn=postgres.dsn("older"))
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", older.dsn)
    run = airflow.run(older.window.end)
    assert {str(instance.state) for instance in run.get_task_instances()} <= {"failed", "upstream_failed"}
    assert any("BILLING ALERT" in line and "billing_airflow recover" in line for line in caplog.messages)

    command = [sys.executable, "-m", "billing_airflow", "recover", "--by", "ops"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{ROOT}/include:{ROOT}/plugins"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(airflow.run(older.window.end).state) == "success"
    assert older.marked() == older.at_stripe() == {"a": 5}
    assert len(world.simulator.meter_events()) == 1
