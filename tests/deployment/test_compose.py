"""docker-compose.yaml, Dockerfile and .env.example, checked without a container engine against the packages they name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from tests.deployment.compose_file import ROOT, TEXT, MissingVariable, load, variables

AIRFLOW_SERVICES = {
    "airflow-apiserver": "api-server",
    "airflow-scheduler": "scheduler",
    "airflow-dag-processor": "dag-processor",
    "airflow-triggerer": "triggerer",
    "airflow-worker": "celery worker",
}

ENV_EXAMPLE = (ROOT / ".env.example").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
REQUIREMENTS = (ROOT / "requirements.txt").read_text()

VALUES = {
    "AIRFLOW_FERNET_KEY": "cGxlYXNlLWRvLW5vdC11c2UtdGhpcy1vdXRzaWRlLXQ=",
    "AIRFLOW_API_SECRET_KEY": "a" * 32,
    "AIRFLOW_JWT_SECRET": "j" * 64,
    "POSTGRES_PASSWORD": "pgpassword",
    "REDIS_PASSWORD": "redispassword",
    "AIRFLOW_ADMIN_PASSWORD": "adminpassword",
}


@pytest.fixture(scope="module")
def compose():
    return load(VALUES)


def pinned(package: str) -> str:
    found = re.search(rf"^{re.escape(package)}==(\S+)", REQUIREMENTS, re.M)
    assert found, f"{package} is not in requirements.txt"
    return found[1]


def in_airflow(code: str, tmp_path: Path, **environ: str) -> str:
    """What the code prints, in a process whose Airflow has only these settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=clean | {"AIRFLOW_HOME": str(tmp_path)} | environ, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


def test_the_file_is_valid_compose():
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.compose-spec", "docker-compose.yaml"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_service_of_airflows_own_split_is_there(compose):
    assert set(compose["services"]) == {"postgres", "redis", "airflow-init", *AIRFLOW_SERVICES}
    assert {name: compose["services"][name]["command"] for name in AIRFLOW_SERVICES} == AIRFLOW_SERVICES


def test_every_command_is_one_of_airflows(tmp_path):
    code = f"""
from airflow.cli.cli_parser import get_parser
for command in {list(AIRFLOW_SERVICES.values())!r}:
    get_parser().parse_args(command.split())
    print("PARSED", command)
"""
    printed = in_airflow(code, tmp_path, AIRFLOW__CORE__EXECUTOR="CeleryExecutor")
    assert re.findall(r"PARSED (.*)", printed) == list(AIRFLOW_SERVICES.values())


def test_every_service_that_stays_up_has_a_health_check_and_comes_back(compose):
    for name, service in compose["services"].items():
        if name == "airflow-init":
            assert service["restart"] == "no", "it runs to its end"
            continue
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped", name


def test_airflow_starts_after_its_database_was_brought_up_to_date(compose):
    for name in AIRFLOW_SERVICES:
        assert compose["services"][name]["depends_on"]["airflow-init"] == {"condition": "service_completed_successfully"}, name


def test_no_port_is_published_beyond_loopback(compose):
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"airflow-apiserver": ["127.0.0.1:8080:8080"]}
    assert not any("network_mode" in service for service in compose["services"].values())


def test_every_airflow_service_shares_the_same_secrets_and_settings(compose):
    shared = compose["x-airflow"]["environment"]
    for name in AIRFLOW_SERVICES:
        assert shared.items() <= compose["services"][name]["environment"].items(), name


def test_every_setting_is_an_option_of_the_locked_airflow(compose, tmp_path):
    names = sorted({name for service in compose["services"].values() for name in service["environment"] if name.startswith("AIRFLOW__")})
    assert len(names) > 10
    code = f"""
from airflow.providers_manager import ProvidersManager
from airflow.configuration import conf
ProvidersManager().initialize_providers_configuration()
for name in {names!r}:
    section, key = name.removeprefix("AIRFLOW__").lower().split("__", 1)
    if key not in conf.configuration_description.get(section, {{}}).get("options", {{}}):
        print("UNKNOWN", name)
"""
    assert "UNKNOWN" not in in_airflow(code, tmp_path)


def test_the_classes_named_are_in_the_locked_packages(compose, tmp_path):
    environment = {name: value for name, value in compose["x-airflow"]["environment"].items() if value is not None}
    code = """
from airflow.configuration import conf
from airflow.executors.executor_loader import ExecutorLoader
executor, _ = ExecutorLoader.import_default_executor_cls()
print("EXECUTOR", executor.__name__)
print("AUTH_MANAGER", conf.getimport("core", "auth_manager").__name__)
from airflow.providers.celery.executors.celery_executor import app  # what the worker's health check names
print("BROKER", app.conf.broker_url)
"""
    printed = in_airflow(code, tmp_path, **environment)
    assert "EXECUTOR CeleryExecutor" in printed
    assert "AUTH_MANAGER FabAuthManager" in printed
    assert "BROKER redis://:redispassword@redis:6379/0" in printed


def test_the_database_urls_have_drivers_in_the_locked_packages(compose):
    environment = compose["x-airflow"]["environment"]
    for url in (environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"], environment["AIRFLOW__CELERY__RESULT_BACKEND"].removeprefix("db+")):
        engine = sqlalchemy.create_engine(url)  # imports the driver, connects nowhere
        assert (engine.url.host, engine.url.password) == ("postgres", "pgpassword")
    assert pinned("psycopg2-binary") and pinned("redis")


def test_no_secret_has_a_default_and_each_missing_one_is_named():
    ours = {name: kind for name, kind in variables().items() if not name.startswith("STRIPE_")}
    assert {name: kind for name, kind in ours.items() if re.search(r"PASSWORD|SECRET|KEY", name)} == dict.fromkeys(VALUES, "?")
    for name in VALUES:
        with pytest.raises(MissingVariable, match=name):
            load({other: value for other, value in VALUES.items() if other != name})


def test_the_operators_connections_and_settings_reach_every_airflow_service(compose):
    handed_on = {name for name, value in compose["x-airflow"]["environment"].items() if value is None}
    prices = {f"STRIPE_PRICE_ID_{plan}" for plan in ("SOLO", "TEAM", "ENTERPRISE", "MANAGED_AI_BUNDLED", "MANAGED_AI_PURE")}
    connections = {"AIRFLOW_CONN_BILLING_DB", "AIRFLOW_CONN_STRIPE_DEFAULT", "AIRFLOW_CONN_ALERTS"}
    speeds = {f"BILLING_{name}" for name in ("STRIPE_CALLS_PER_SECOND", "STRIPE_READS_PER_SECOND", "PUSH_CONCURRENCY", "LEASE_SECONDS")}
    gates = {"BILLING_GATE_TOKENS", "BILLING_GATE_TIMES_HISTORY"}
    bounds = {"BILLING_TOLERANCE_TOKENS", "BILLING_TOLERANCE_CENTS", "BILLING_HOLD_HOURS"}
    assert handed_on == connections | prices | speeds | gates | bounds | {"STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "BILLING_SINK"}


def test_the_example_env_file_names_every_variable_and_fills_in_none_that_is_secret():
    required = dict(re.findall(r"^(\w+)=(.*)$", ENV_EXAMPLE, re.M))
    optional = set(re.findall(r"^# ([A-Z_]+)=", ENV_EXAMPLE, re.M))
    asked = variables()
    assert required == dict.fromkeys(VALUES, "")
    assert optional == {name for name, kind in asked.items() if kind != "?"}


def test_the_example_connections_can_be_read_by_airflow(tmp_path):
    examples = dict(re.findall(r"^# (AIRFLOW_CONN_\w+)='?(.*?)'?$", ENV_EXAMPLE, re.M))
    code = """
import os
from airflow.sdk import Connection
for name in sorted(os.environ):
    if name.startswith("AIRFLOW_CONN_"):
        connection = Connection.get(name.removeprefix("AIRFLOW_CONN_").lower())
        print("READ", connection.conn_id, connection.conn_type, bool(connection.password))
"""
    printed = in_airflow(code, tmp_path, **examples)
    assert re.findall(r"READ (.*)", printed) == ["alerts generic True", "billing_db postgres True", "stripe_default stripe True"]


def test_the_image_has_the_airflow_and_python_that_the_lock_was_made_for():
    airflow, python = re.search(r"^FROM apache/airflow:slim-([\d.]+)-python([\d.]+)$", DOCKERFILE, re.M).groups()
    assert airflow == pinned("apache-airflow")
    assert python == re.search(r"--python-version ([\d.]+)", (ROOT / "Makefile").read_text())[1]


def test_the_image_installs_only_what_the_lock_pins_by_hash():
    assert "pip install --no-cache-dir --require-hashes -r /opt/airflow/requirements.txt" in DOCKERFILE
    requirements = [line for line in REQUIREMENTS.splitlines() if re.match(r"\w", line)]
    assert requirements and all("==" in line and line.endswith("\\") for line in requirements)
    assert len(requirements) <= REQUIREMENTS.count("--hash=sha256:")


def test_the_image_holds_the_product_and_nothing_of_the_sandbox():
    copied = re.findall(r"^COPY (?:--\S+ )?(\S+) ", DOCKERFILE, re.M)
    assert copied == ["requirements.txt", "dags", "plugins", "include/token_billing"]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(copied) <= set(allowed)
    assert "include/*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert "ENV PYTHONPATH=/opt/airflow/include:/opt/airflow/plugins" in DOCKERFILE


def test_every_airflow_service_runs_the_image_and_mounts_no_folder_of_the_project(compose):
    for name in ("airflow-init", *AIRFLOW_SERVICES):
        assert compose["services"][name]["image"] == "token-billing:latest"
        assert compose["services"][name]["volumes"] == ["airflow-logs:/opt/airflow/logs"]
    assert not re.search(r"^\s*- \.", TEXT, re.M)
    assert json.dumps(compose)  # nothing in it that YAML read as a date or a number with a meaning of its own
