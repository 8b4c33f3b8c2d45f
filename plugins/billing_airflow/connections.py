"""The product's ways out, from Airflow's connections `billing_db` and `stripe_default`, whatever backend keeps them."""

import os
from typing import Any

from airflow.exceptions import AirflowNotFoundException
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import BaseHook, Connection

from billing_airflow.variables import AirflowVariables
from token_billing.adapters.clock import replayed_clock, system_clock
from token_billing.adapters.database import Connect
from token_billing.adapters.database import Connection as DatabaseConnection
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.errors import OperatorNeeded
from token_billing.model import Clock
from token_billing.stages.kept_mark import require_newest
from token_billing.targets import STRIPE_BASE, is_loopback

BILLING_DB = "billing_db"
STRIPE_DEFAULT = "stripe_default"


def billing_db() -> DatabaseConnection:
    """A new connection to the database of connection `billing_db`."""
    try:
        connection: DatabaseConnection = PostgresHook(postgres_conn_id=BILLING_DB).get_conn()
    except AirflowNotFoundException as missing:
        raise OperatorNeeded(f"connection `{BILLING_DB}` does not exist; add it in the UI or set AIRFLOW_CONN_BILLING_DB") from missing
    return connection


def billing_db_parameters() -> dict[str, Any]:
    """What opens further connections to that database, by any driver of libpq's: as of a connection that was opened for it just now,
    whatever the Airflow connection's extras ask for."""
    with billing_db() as opened:
        return {**opened.info.get_parameters(), "password": opened.info.password}


def newest_billing_db() -> Connect:
    """Opens connections to the database of connection `billing_db`, once it is clear that it is not an older copy of it."""
    # safeguard: every task compares the kept mark
    require_newest(billing_db, AirflowVariables())
    return billing_db


def stripe_target() -> StripeTarget:
    """Which Stripe: connection `stripe_default`, else the setting STRIPE_SECRET_KEY; inside the sandbox only its simulator."""
    try:
        return stripe_target_of(BaseHook.get_connection(STRIPE_DEFAULT))
    except AirflowNotFoundException:
        return _stripe_target(os.environ.get("STRIPE_SECRET_KEY", ""), STRIPE_BASE)


def stripe_target_of(connection: Connection) -> StripeTarget:
    """Which Stripe a connection names."""
    return _stripe_target(connection.password or "", _base(connection))


def _stripe_target(secret_key: str, base: str) -> StripeTarget:
    if not secret_key:
        raise OperatorNeeded(
            f"connection `{STRIPE_DEFAULT}` does not exist or has no password; put the Stripe secret key there "
            "(or set AIRFLOW_CONN_STRIPE_DEFAULT, or STRIPE_SECRET_KEY)"
        )
    # safeguard: tasks in the sandbox stay in it
    return StripeTarget(secret_key, base, sandbox=os.environ.get("BILLING_SANDBOX") == "1")


def _base(connection: Connection) -> str:
    """The API base: a URL in the host field, or host, port and scheme apart, as connection URIs give them."""
    host = connection.host or ""
    if not host or "://" in host:
        return host.rstrip("/") or STRIPE_BASE
    scheme = "http" if is_loopback(f"http://{host}") else "https"
    return f"{scheme}://{host}" + (f":{connection.port}" if connection.port else "")


def billing_clock() -> Clock:
    """The system's clock, or the replayed one that the sandbox names."""
    url = os.environ.get("BILLING_CLOCK_URL")
    # safeguard: the clock of the sandbox
    return replayed_clock(url) if url and os.environ.get("BILLING_SANDBOX") == "1" else system_clock
