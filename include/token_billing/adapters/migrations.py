"""Migrations of schema `billing` and the adoption's changes to token_usage; Alembic keeps the order, the SQL is in `sql/migrations/`."""

from alembic import command, op
from alembic.config import Config
from psycopg.errors import LockNotAvailable
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
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('token_billing.migrate'))")
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (DBAPIError, LockNotAvailable) as busy:
        if not isinstance(busy, LockNotAvailable) and not isinstance(busy.orig, LockNotAvailable):
            raise
        raise LedgerNotReady(
            f"the application's tables were in use for more than {LOCK_TIMEOUT_S} s by a long transaction; nothing was changed, try again"
        ) from busy


def run_sql(revision: str) -> None:
    """Runs a migration's SQL file as it stands, inside the migration's transaction."""
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute((MIGRATIONS / f"{revision}.sql").read_text(encoding="utf-8"))
