"""Migrations of schema `billing` and the adoption's changes to token_usage; Alembic keeps the order, the SQL is in `sql/migrations/`."""

import psycopg
from alembic import command, op
from alembic.config import Config
from psycopg.errors import InsufficientPrivilege, LockNotAvailable
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from token_billing.adapters.database import Connect
from token_billing.adapters.queries import sql_path
from token_billing.errors import LedgerNotReady

MIGRATIONS = sql_path("migrations")

#: How long adopting a table may make its other users wait.
LOCK_TIMEOUT_S = 5


def migrate(connect: Connect) -> None:
    """Brings the database to the newest migration, all or nothing; a second caller at the same time waits for the first.

    Raises LedgerNotReady where long transactions on the application's tables do not let it in: it rather gives up than makes the
    application's writers queue behind it."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            # safeguard: one migration at a time
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('token_billing.migrate'))")
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (DBAPIError, psycopg.Error) as error:
        match error.orig if isinstance(error, DBAPIError) else error:
            case LockNotAvailable():
                cause = f"the application's tables were in use for more than {LOCK_TIMEOUT_S} s by a long transaction; try again"
            case InsufficientPrivilege() as refusal:
                cause = f"{str(refusal).splitlines()[0]}; connect `billing_db` as the owner of tenants and token_usage to adopt them"
            case _:
                raise
        raise LedgerNotReady(f"nothing was changed: {cause}") from error


def run_sql(revision: str) -> None:
    """Runs a migration's SQL file as it stands, inside the migration's transaction."""
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute((MIGRATIONS / f"{revision}.sql").read_text(encoding="utf-8"))
