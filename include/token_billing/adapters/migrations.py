"""Migrations of schema `billing` and the adoption's changes to token_usage; Alembic keeps the order, the SQL is in `sql/migrations/`."""

from importlib import resources
from pathlib import Path

from alembic import command, op
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from token_billing.adapters.database import Connect

MIGRATIONS = Path(str(resources.files("token_billing"))) / "sql" / "migrations"


def migrate(connect: Connect) -> None:
    """Brings the database to the newest migration, all or nothing; a second caller at the same time waits for the first."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    with engine.begin() as connection:
        # Waits for the table's writers a moment, rather than making all of the application wait behind it.
        connection.exec_driver_sql("SET LOCAL lock_timeout = '15s'")
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('token_billing.migrate'))")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def run_sql(revision: str) -> None:
    """Runs a migration's SQL file as it stands, inside the migration's transaction."""
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute((MIGRATIONS / f"{revision}.sql").read_text(encoding="utf-8"))
