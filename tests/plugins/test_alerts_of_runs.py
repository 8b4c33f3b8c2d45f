"""Alerts from live servers: what no process of the task itself could tell.

Slow: starts Airflow's API server, scheduler (LocalExecutor) and DAG processor.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from tests.plugins.alert_sink import AlertSink

HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.slow


@contextmanager
def servers(airflow, *commands: tuple[str, ...]) -> Iterator[dict[str, subprocess.Popen]]:
    """Airflow's servers, by their command's first word; they and all their descendants are gone at the end."""
    running = {}
    try:
        for command in commands:
            with (airflow.home / f"{command[0]}.log").open("w") as log:
                running[command[0]] = subprocess.Popen(
                    [sys.executable, "-m", "airflow", *command], env=airflow.environ, stdout=log, stderr=subprocess.STDOUT
                )
        yield running
    finally:
        processes: list[psutil.Process] = []
        for server in running.values():
            with suppress(psutil.NoSuchProcess):  # it has ended already
                processes += [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
                server.terminate()
        _, survivors = psutil.wait_procs(processes, timeout=8)
        for process in survivors:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for server in running.values():
            server.wait(timeout=10)


@contextmanager
def api_server(airflow) -> Iterator[str]:
    """Airflow's API server, once it answers, by its URL: a task that finds none to report to fails at once."""
    port = airflow.environ["API_PORT"]
    url = f"http://127.0.0.1:{port}"
    with servers(airflow, ("api-server", "--host", "127.0.0.1", "--port", port, "--workers", "1")):
        give_up_at = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{url}/execution/health", timeout=20):
                    break
            except OSError:
                assert time.monotonic() < give_up_at, (airflow.home / "api-server.log").read_text()[-4000:]
                time.sleep(0.2)
        yield url


def wait_for_pids(file: Path, within_s: float) -> tuple[int, int]:
    give_up_at = time.monotonic() + within_s
    while not file.exists():
        assert time.monotonic() < give_up_at, f"{file.name} did not start within {within_s} s"
        time.sleep(0.1)
    task_pid, supervisor_pid = file.read_text().split()
    return int(task_pid), int(supervisor_pid)


def mark_failed(api: str, dag_id: str) -> None:
    """Does what the button in the UI does with the DAG's one scheduled run."""
    with urllib.request.urlopen(f"{api}/auth/token", timeout=20) as answer:
        token = json.load(answer)["access_token"]
    run = f"{api}/api/v2/dags/{dag_id}/dagRuns/{quote('scheduled__2026-01-01T00:00:00+00:00')}"
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(run, b'{"state": "failed"}', headers, method="PATCH"), timeout=20) as answer:
        assert answer.status == 200


@pytest.fixture
def scheduled(private_airflow, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    metadata = private_airflow.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    return private_airflow.with_settings(
        API_PORT=str(port),
        PIDS_FOLDER=str(tmp_path),
        AIRFLOW__API__BASE_URL="http://airflow.example",
        AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
        AIRFLOW__CORE__DAGS_FOLDER=str(HERE / "scheduled_dags"),
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"http://127.0.0.1:{port}/execution/",
        AIRFLOW__CORE__EXECUTOR="LocalExecutor",
        AIRFLOW__CORE__PARALLELISM="3",
        # Whoever reaches this API server on loopback is an administrator: the test asks it to mark a run failed.
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=metadata.removesuffix("/airflow") + "/scheduled",
        # A task whose supervisor is gone is missed after these seconds instead of after 300 s.
        AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT="6",
        AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL="2",
    )


def test_killed_and_hand_marked_tasks_are_told_and_the_scheduler_lives_on(scheduled, tmp_path):
    with AlertSink() as sink:
        # In the metadata database, so that the scheduler has to read it there, beside its own session.
        password = json.loads(sink.connection)["password"]
        scheduled.cli("connections", "add", "alerts", "--conn-type", "generic", "--conn-password", password)
        with api_server(scheduled) as api, servers(scheduled, ("scheduler", "--skip-serve-logs"), ("dag-processor",)) as running:

            def scheduler_lives() -> None:
                log = scheduled.home / "scheduler.log"
                assert running["scheduler"].poll() is None, f"the scheduler ended:\n{log.read_text()[-6000:]}"

            task_pid, _ = wait_for_pids(tmp_path / "is_killed", within_s=60)
            os.kill(task_pid, signal.SIGKILL)
            alert = sink.wait_for("Airflow run failed: is_killed\n", alive=scheduler_lives)
            assert "push, try 1: killed or lost" in alert
            assert "Next step: Look for an out-of-memory kill" in alert
            assert "Data interval: [2026-01-01T00:00+00:00" in alert
            assert "Run: http://airflow.example/dags/is_killed/runs/scheduled__2026-01-01" in alert

            task_pid, supervisor_pid = wait_for_pids(tmp_path / "is_killed_with_its_supervisor", within_s=30)
            os.kill(supervisor_pid, signal.SIGKILL)
            os.kill(task_pid, signal.SIGKILL)
            alert = sink.wait_for("Airflow task failed: is_killed_with_its_supervisor.push", within_s=30, alive=scheduler_lives)
            assert "Cause: killed or lost" in alert
            sink.wait_for("Airflow run failed: is_killed_with_its_supervisor\n", alive=scheduler_lives)

            wait_for_pids(tmp_path / "is_marked_failed", within_s=30)
            mark_failed(api, "is_marked_failed")
            alert = sink.wait_for("Airflow task failed: is_marked_failed.push")
            assert "Next step: A person marked it failed" in alert and "killed or lost" not in alert
            alert = sink.wait_for("Airflow run failed: is_marked_failed\n")
            assert "Cause: Dag Run's state was manually set to `failed`" in alert

            scheduled.cli("dags", "trigger", "fails_plainly")
            alert = sink.wait_for("Airflow task failed: fails_plainly.push", within_s=30, alive=scheduler_lives)
            assert "Cause: RuntimeError: plain failure" in alert
            alert = sink.wait_for("Airflow run failed: fails_plainly\n", alive=scheduler_lives)
            assert "push, try 1: RuntimeError: plain failure" in alert

            scheduler_lives()
            told = sink.told()
    titles = sorted(alert.splitlines()[0] for alert in told)
    assert len(titles) == len(set(titles)) == 7, f"each failure is told once: {titles}"
    logs = "".join((scheduled.home / f"{server}.log").read_text() for server in ("api-server", *running))
    for title in titles:
        assert f"BILLING ALERT | {title} |" in logs, "every alert is in the log too"
    assert "UNEXPECTED COMMIT" not in logs and AlertSink.SECRET_PATH not in logs
