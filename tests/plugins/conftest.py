"""A private Airflow for this folder's tests: its own home, metadata database and plugins, reached only from child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sandbox.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: starts Airflow's servers; tens of seconds")


@dataclass(frozen=True)
class PrivateAirflow:
    """Where the private Airflow is, and the environment a child process needs to be part of it."""

    home: Path
    environ: dict[str, str] = field(repr=False)

    def with_settings(self, **settings: str) -> PrivateAirflow:
        """The same Airflow with other environment variables."""
        return PrivateAirflow(self.home, self.environ | settings)

    def cli(self, *arguments: str) -> str:
        """Runs `airflow …` to its end and returns what it printed; fails when it fails."""
        command = [sys.executable, "-m", "airflow", *arguments]
        ended = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, f"{command} ended with {ended.returncode}:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
        return ended.stdout


@pytest.fixture(scope="session")
def private_airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateAirflow]:
    """An Airflow with a migrated, empty metadata database on a PostgreSQL of its own.

    A second copy, the database `scheduled`, is for a live scheduler: `dag.test()` fails on a metadata database that has one.
    """
    home = tmp_path_factory.mktemp("airflow")
    with PostgresServer(home / "postgres", durable=False) as server:
        metadata = server.ensure_database("airflow").replace("postgresql://", "postgresql+psycopg2://")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "STRIPE_"))}
        airflow = PrivateAirflow(
            home,
            inherited
            | {
                "AIRFLOW_HOME": str(home),
                "AIRFLOW__CORE__DAGS_FOLDER": str(HERE / "failing_dags"),
                "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__CORE__FERNET_KEY": "cGxlYXNlLWRvLW5vdC11c2UtdGhpcy1vdXRzaWRlLXQ=",
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata,
                "AIRFLOW__API_AUTH__JWT_SECRET": "for-the-tests-only-" * 4,
                "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
                "PYTHONPATH": os.pathsep.join([str(ROOT / "plugins"), str(ROOT / "include")]),
            },
        )
        airflow.cli("db", "migrate")
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE scheduled TEMPLATE airflow")
        yield airflow


class DagRunner:
    """`dag_runner.py` as a running process."""

    def __init__(self, airflow: PrivateAirflow) -> None:
        self._stderr = (airflow.home / "dag_runner.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "dag_runner.py")],
            env=airflow.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def run(self, dag_id: str, *, alerts: str | None) -> dict[str, Any]:
        """Runs the DAG once with that `alerts` connection and returns the runner's answer."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"dag_id": dag_id, "alerts": alerts}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the runner ended:\n{Path(self._stderr.name).read_text()[-6000:]}"
        return json.loads(answer)

    def output(self) -> str:
        """Everything the runner and its tasks have logged."""
        return Path(self._stderr.name).read_text()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._stderr.close()


@pytest.fixture(scope="session")
def dag_runner(private_airflow: PrivateAirflow) -> Iterator[DagRunner]:
    runner = DagRunner(private_airflow)
    yield runner
    runner.close()
