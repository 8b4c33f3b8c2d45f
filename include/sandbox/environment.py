"""Where the sandbox keeps its things, and the environment in which its processes run: nothing of the caller's Stripe in it."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: The repository: dags/, plugins/ and include/ lie here.
ROOT = Path(__file__).resolve().parents[2]

#: Everything the sandbox writes; `make clean` removes it.
HOME = Path(os.environ.get("BILLING_SANDBOX_HOME") or ROOT / ".sandbox")

#: The simulator takes this key and no other.
SECRET_KEY = "sk_test_sandbox"


@dataclass(frozen=True)
class SandboxServices:
    """Addresses of what the sandbox runs: two databases of its PostgreSQL, and the Stripe simulator."""

    billing_dsn: str
    metadata_dsn: str
    stripe_base: str
    secret_key: str = SECRET_KEY


def without_stripe(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without anything that could lead to a real account, database or alert: the sandbox sets its own."""
    # safeguard: nothing of the caller's Stripe in the sandbox
    foreign = ("STRIPE_", "AIRFLOW_", "AIRFLOW__", "BILLING_", "PG")
    kept = {"PG_BIN", "BILLING_SANDBOX_HOME"}
    return {name: value for name, value in environment.items() if name in kept or not name.startswith(foreign)}


def airflow_environment(services: SandboxServices, airflow_home: Path, *, replayed: bool) -> dict[str, str]:
    """What Airflow's processes, and the stages in them, need to run in the sandbox. `replayed`: the simulator's clock decides
    what is closed and how old it is, instead of the system's."""
    stripe = {"conn_type": "stripe", "password": services.secret_key, "host": services.stripe_base}
    return {
        **without_stripe(os.environ),
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",  # nothing but the sandbox can be reached from here
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": services.metadata_dsn.replace("postgresql://", "postgresql+psycopg://"),
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_BILLING_DB": services.billing_dsn.replace("postgresql://", "postgres://"),
        "AIRFLOW_CONN_STRIPE_DEFAULT": json.dumps(stripe),
        "BILLING_SANDBOX": "1",
        "BILLING_STRIPE_CALLS_PER_SECOND": "5000",
        "BILLING_STRIPE_READS_PER_SECOND": "5000",
        "PYTHONPATH": f"{ROOT / 'include'}:{ROOT / 'plugins'}",
        **({"BILLING_CLOCK_URL": f"{services.stripe_base}/simulator/clock"} if replayed else {}),
    }


def kept_secret(name: str) -> str:
    """A secret of the sandbox's own, made at first use and the same ever after."""
    path = HOME / "airflow" / f"{name}.secret"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_urlsafe(64))
        path.chmod(0o600)
    return path.read_text()
