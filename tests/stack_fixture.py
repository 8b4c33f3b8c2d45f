"""One `make up` for the whole session, in a folder of its own: started by the first test that asks for it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest

from sandbox.airflow_api import AirflowApi
from sandbox.environment import ROOT
from sandbox.postgres import PostgresServer
from sandbox.stack import Stack

DAG_ID = "report_usage"

#: What a caller's shell may hold. None of it may reach the sandbox: with it, the first push would fail.
SOMEBODYS_PRODUCTION = {
    "STRIPE_SECRET_KEY": "sk_live_not_a_key",
    "AIRFLOW_CONN_STRIPE_DEFAULT": '{"conn_type": "generic", "password": "sk_live_not_a_key", "host": "https://stripe.invalid"}',
    "AIRFLOW_CONN_BILLING_DB": "postgres://billing.invalid/production",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://airflow.invalid/production",
    "AIRFLOW_HOME": "/nowhere",
    "HTTP_PROXY": "http://127.0.0.1:9",
}


@dataclass(frozen=True)
class SandboxStack:
    """The commands `up`, `down` and `status`, and what they leave in their folder."""

    home: Path

    def command(self, name: str) -> subprocess.CompletedProcess[str]:
        """Runs the command to its end, as make does."""
        environment = {**os.environ, **SOMEBODYS_PRODUCTION, "BILLING_SANDBOX_HOME": str(self.home)}
        environment["PYTHONPATH"] = f"{ROOT / 'include'}:{ROOT / 'plugins'}"
        command = [sys.executable, "-m", "sandbox", name]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, cwd=ROOT)

    def up(self) -> str:
        """What `up` printed; fails where it does."""
        ended = self.command("up")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def state(self) -> Stack:
        return Stack.saved(self.home / "up.json") or pytest.fail("the stack is not up")

    def api(self) -> AirflowApi:
        url = self.state().url
        assert url is not None
        return AirflowApi(url)

    def simulator_base(self) -> str:
        words = psutil.Process(self.state().pids["stripe-simulator"]).cmdline()
        return f"http://127.0.0.1:{words[words.index('--port') + 1]}"

    def wait_until(self, question: str, parameters: Sequence[object] = (), seconds: float = 200.0) -> None:
        """Until the billing database answers yes."""
        deadline = time.monotonic() + seconds
        with self.billing() as db:
            db.autocommit = True
            while db.execute(question, parameters).fetchone() != (True,):
                assert time.monotonic() < deadline, f"{question} is not so after {seconds} s; see {self.home}/airflow/logs"
                time.sleep(0.5)

    def billing(self) -> psycopg.Connection:
        return psycopg.connect(PostgresServer(self.home / "postgres").dsn("billing"))

    def wait_for_green_runs(self, count: int, seconds: float = 200.0) -> list[str]:
        """Returns the ids of the successful runs once there are so many; fails at once where a run has failed."""
        deadline = time.monotonic() + seconds
        while True:
            states = {run["dag_run_id"]: run["state"] for run in self.api().runs(DAG_ID)}
            green = [run for run, state in states.items() if state == "success"]
            assert "failed" not in states.values() and time.monotonic() < deadline, f"{states}; see {self.home}/airflow/logs"
            if len(green) >= count:
                return green
            time.sleep(0.5)

    def processes(self) -> list[psutil.Process]:
        """Every live process that has the folder in its command line or its environment."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                words = [*process.cmdline(), *process.environ().values()]
                if process.status() != psutil.STATUS_ZOMBIE and any(str(self.home) in word for word in words):
                    found.append(process)
        return found


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxStack]:
    """The sandbox, up."""
    sandbox = SandboxStack(tmp_path_factory.mktemp("sandbox"))
    try:
        sandbox.up()
        yield sandbox
    finally:
        sandbox.command("down")
