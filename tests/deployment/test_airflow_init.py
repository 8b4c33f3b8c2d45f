"""What the service airflow-init runs, run for real: against a PostgreSQL, with the locked Airflow, and then logged in to.

Slow: migrates a database and starts an API server.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.deployment.compose_file import load
from tests.deployment.test_compose import VALUES

from sandbox.postgres import PostgresServer

pytestmark = pytest.mark.slow


def environment(service: str, home: Path, **values: str) -> dict[str, str]:
    """What the service's container would have in its environment, on this machine's Python."""
    given = load(VALUES | values)["services"][service]["environment"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "STRIPE_", "PYTHON"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    folders = {"AIRFLOW__CORE__DAGS_FOLDER": str(home), "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins")}
    given = {name: value for name, value in given.items() if value is not None}
    return clean | given | folders | {"AIRFLOW_HOME": str(home), "PATH": path}


def run_init(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = load(VALUES)["services"]["airflow-init"]["command"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"AIRFLOW_JWT_SECRET": "short"}, "AIRFLOW_JWT_SECRET is shorter than 64 bytes"),
        ({"AIRFLOW_FERNET_KEY": "no key"}, "AIRFLOW_FERNET_KEY is not a Fernet key"),
    ],
)
def test_a_useless_secret_is_refused_before_anything_is_touched(tmp_path, wrong, message):
    ended = run_init(environment("airflow-init", tmp_path, **wrong))
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "make one as .env.example says" in ended.stderr


def test_init_migrates_makes_the_administrator_and_may_run_again(tmp_path):
    with PostgresServer(tmp_path / "postgres", durable=False) as server:
        url = server.ensure_database("airflow").replace("postgresql://", "postgresql+psycopg2://")
        database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url}
        init = environment("airflow-init", tmp_path) | database
        for made in ('User "admin" created with role "Admin"', "admin already exists"):
            ended = run_init(init)
            assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
            assert made in ended.stdout
            assert ended.stdout.rstrip().endswith("airflow-init: done")
        assert "AIRFLOW_CONN_STRIPE_DEFAULT is not set" in ended.stderr

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = ["airflow", "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        with (tmp_path / "api-server.log").open("w") as log:
            api = subprocess.Popen(command, env=environment("airflow-apiserver", tmp_path) | database, stdout=log, stderr=log)
        try:
            healthcheck = load(VALUES)["services"]["airflow-apiserver"]["healthcheck"]["test"][-1].replace(":8080", f":{port}")
            give_up_at = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(healthcheck, timeout=5) as answer:
                        assert json.load(answer)["metadatabase"]["status"] == "healthy"
                    break
                except urllib.error.URLError:
                    assert api.poll() is None and time.monotonic() < give_up_at, (tmp_path / "api-server.log").read_text()[-4000:]
                    time.sleep(0.3)
            login = json.dumps({"username": "admin", "password": VALUES["AIRFLOW_ADMIN_PASSWORD"]}).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/auth/token", login, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=20) as answer:
                token = json.load(answer)["access_token"]
            request = urllib.request.Request(f"http://127.0.0.1:{port}/api/v2/dags", headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert answer.status == 200
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/dags", timeout=20)
        finally:
            api.terminate()
            api.wait(timeout=20)
