"""Alerts from the process that runs a task, with real Airflow (`dag.test()`) and a real HTTP receiver."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time

import pytest
from tests.plugins.alert_sink import AlertSink


def connection(url: str) -> str:
    return json.dumps({"conn_type": "generic", "password": url})


def test_a_failed_task_is_told_with_what_where_why_and_the_next_step(dag_runner):
    with AlertSink() as sink:
        answer = dag_runner.run("fails_with_secrets", alerts=sink.connection)
        alert = sink.wait_for("Airflow task failed: fails_with_secrets.push")
        run_alert = sink.wait_for("Airflow run failed: fails_with_secrets")
    assert answer["run"] == "failed"
    # dag.test() of 05:00 covers the hour before it.
    for words in (
        "DAG fails_with_secrets, run manual__",
        "Data interval: [2026-01-02T04:00+00:00, 2026-01-02T05:00+00:00)",
        "Task push, try 1",
        "Cause: ValueError: Stripe refused key",
        "Next step: Read the task's log and remove the cause, then clear task push",
        "Log: http://localhost:8080/dags/fails_with_secrets/runs/manual__",
    ):
        assert words in alert, f"{words!r} is missing from:\n{alert}"
    assert "push, try 1: ValueError: Stripe refused key" in run_alert
    assert "killed or lost" not in run_alert


def test_no_alert_carries_a_key_a_password_or_the_apprise_url(dag_runner):
    with AlertSink() as sink:
        answer = dag_runner.run("fails_with_secrets", alerts=sink.connection)
        told = sink.told("fails_with_secrets")
    assert len(told) == 2
    for text in [*told, *answer["log"]]:
        assert "sk_live_***" in text
        assert "a1B2c3D4" not in text
        assert "hunter2" not in text
        assert AlertSink.SECRET_PATH not in text


def test_a_retried_failure_is_silent_and_the_final_one_is_told_once(dag_runner):
    with AlertSink() as sink:
        answer = dag_runner.run("fails_after_a_retry", alerts=sink.connection)
        told = sink.told("Airflow task failed")
    assert answer["tasks"] == {"push[-1]": "failed"}
    assert len(told) == 1
    assert "try 2" in told[0] and "no luck at try 2" in told[0]


def test_a_mapped_task_is_told_by_its_index(dag_runner):
    with AlertSink() as sink:
        answer = dag_runner.run("fails_in_one_shard", alerts=sink.connection)
        alert = sink.wait_for("Airflow task failed: fails_in_one_shard.push[1]")
        run_alert = sink.wait_for("Airflow run failed: fails_in_one_shard")
    assert answer["tasks"] == {"push[0]": "success", "push[1]": "failed", "push[2]": "success"}
    assert "map index 1" in alert
    assert "push[1], try 1: RuntimeError: shard 1 is broken" in run_alert


def test_without_a_connection_alerts_go_to_the_log_only(dag_runner):
    answer = dag_runner.run("fails_plainly", alerts=None)
    assert [line.split(" | ")[:2] for line in answer["log"]] == [
        ["BILLING ALERT", "Airflow task failed: fails_plainly.push"],
        ["BILLING ALERT", "Airflow run failed: fails_plainly"],
    ]
    assert all("\n" not in line for line in answer["log"])


def refusing_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        pytest.param("", "has no password; write the Apprise URL there", id="no url"),
        pytest.param("carrier-pigeon://T0KENabcdefgh123456", "URL 1 of connection 'alerts'", id="unknown service"),
        pytest.param(f"json://127.0.0.1:{refusing_port()}/T0KENabcdefgh123456", "URL 1 of connection 'alerts'", id="refused"),
    ],
)
def test_an_alert_that_cannot_be_sent_is_logged_and_changes_nothing_else(dag_runner, url, why):
    answer = dag_runner.run("fails_plainly", alerts=connection(url))
    assert (answer["run"], answer["tasks"]) == ("failed", {"push[-1]": "failed"})
    not_sent = [line for line in answer["log"] if line.startswith("BILLING ALERT NOT SENT | Airflow")]
    assert len(not_sent) == 2 and all(why in line for line in not_sent), answer["log"]
    assert "T0KENabcdefgh123456" not in dag_runner.output()


def test_a_service_that_never_answers_holds_a_task_for_seconds_only(dag_runner):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        answer = dag_runner.run("fails_plainly", alerts=connection(f"json://127.0.0.1:{silent.getsockname()[1]}/?rto=60&cto=60"))
        seconds = time.monotonic() - began
    assert answer["run"] == "failed"
    # One time-out of 3 s for the task, one for its run, and the run itself.
    assert seconds < 15
    assert any(line.startswith("BILLING ALERT NOT SENT") for line in answer["log"])


def test_the_other_services_are_told_when_one_refuses(dag_runner):
    with AlertSink() as sink:
        working = json.loads(sink.connection)["password"]
        answer = dag_runner.run("fails_plainly", alerts=connection(f"json://127.0.0.1:{refusing_port()}/ {working}"))
        assert len(sink.told("plain failure")) == 2
    assert all("URL 1 of" in line and "URL 2" not in line for line in answer["log"] if "NOT SENT" in line)


def test_a_server_hands_its_alert_over_at_once_and_sends_it_before_it_ends(private_airflow):
    code = """
import time
import airflow.models, airflow.sdk  # loaded in every server long before its first alert
from billing_airflow.alert_delivery import tell_from_server
from billing_airflow.alerts import Alert
began = time.monotonic()
tell_from_server(Alert("some_dag", "some_run", "a cause", "a step"))
print("SECONDS", time.monotonic() - began)
"""
    with AlertSink() as sink:
        environ = private_airflow.environ | {"AIRFLOW_CONN_ALERTS": sink.connection}
        ended = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        assert float(re.search(r"SECONDS ([\d.]+)", ended.stdout)[1]) < 0.5
        assert len(sink.told("Airflow run failed: some_dag", "a cause", "a step")) == 1
