"""Databases to measure in: the application's tables full of usage, adopted or not, and equal copies of them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg
from psycopg import sql

from sandbox import APPLICATION_SQL
from sandbox.kept_in_files import KeptInFiles
from sandbox.postgres import PostgresServer
from token_billing.adapters.database import Connect
from token_billing.windows import Window

#: As an application makes them, without knowing of this product.
APPLICATION_MADE_SQL = Path(__file__).with_name("application_made.sql")

#: As the sandbox's own application makes them: half-full pages, so that marking is a HOT update.
SANDBOX_SQL = APPLICATION_SQL

#: So that neither a checkpoint nor a vacuum falls into one measured part and not into the other; every commit still waits for the disk.
QUIET = ("max_wal_size = '8GB'", "checkpoint_timeout = '1h'", "autovacuum = off")


def tenant_id(number: int) -> str:
    """The id of one of the benchmark's tenants; `usage_of_hour` makes the same."""
    return "org_" + hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()[:16]


# The cube of a uniform number: of 10,000 tenants the largest has 4.6 % of the rows, the median 0.008 %, the smallest 0.003 %.
_USAGE_OF_HOUR = """
INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, billed, created_at)
SELECT 'org_' || substr(md5(floor(%(tenants)s * power((hashint8extended(n, 1) & 1048575)::float8 / 1048576, 3))::bigint::text), 1, 16),
       (ARRAY['claude-sonnet-4-5', 'gpt-5-mini', 'llama-4-maverick', 'mistral-small-3.2'])[1 + (hashint8extended(n, 2) & 3)],
       1 + (hashint8extended(n, 3) & 4095), hashint8extended(n, 4) & 1023, %(billed)s,
       %(start)s::timestamptz + interval '1 hour' * ((n - 1)::float8 / %(rows)s)
FROM generate_series(1, %(rows)s) AS n
"""


def usage_of_hour(db: psycopg.Connection, window: Window, row_count: int, tenant_count: int, *, billed: bool = False) -> None:
    """Inserts an hour's usage in order of time, the same for the same numbers: a few tenants hold most of it."""
    db.execute(_USAGE_OF_HOUR, {"start": window.start, "rows": row_count, "tenants": tenant_count, "billed": billed})


@dataclass(frozen=True)
class Databases:
    """The databases of a server that is the benchmark's own."""

    server: PostgresServer

    @property
    def keeper(self) -> KeptInFiles:
        """Keeps what Airflow would."""
        return KeptInFiles(self.server.data_dir.parent)

    def make_quiet(self) -> None:
        """Has the server do nothing by itself while something is measured."""
        with self._server() as db:
            for setting in QUIET:
                db.execute(f"ALTER SYSTEM SET {setting}")  # type: ignore[arg-type]
            db.execute("SELECT pg_reload_conf()")

    def create(self, name: str, tables: Path) -> Connect:
        """A database with empty tables."""
        connect = partial(psycopg.connect, self.server.recreate_database(name))
        with connect() as db:
            db.execute(tables.read_bytes())
        return connect

    def settle(self, name: str) -> None:
        """Vacuums and analyses, so that no measured part pays for how the rows came in."""
        with psycopg.connect(self.server.dsn(name), autocommit=True) as db:
            db.execute("VACUUM ANALYZE")
            db.execute("CHECKPOINT")

    def copy(self, template: str, name: str) -> Connect:
        """Another database, file by file the same as the template, to which nobody may be connected."""
        with self._server() as db:
            db.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            db.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(name), sql.Identifier(template)))
        return partial(psycopg.connect, self.server.dsn(name))

    @contextmanager
    def fresh_copy(self, template: str) -> Iterator[Connect]:
        """A copy for one measured part, checkpointed, and dropped afterwards."""
        connect = self.copy(template, "measured")
        self.checkpoint()
        try:
            yield connect
        finally:
            with self._server() as db:
                db.execute("DROP DATABASE measured WITH (FORCE)")

    def checkpoint(self) -> None:
        """Leaves nothing for a measured part to write that is not its own."""
        with self._server() as db:
            db.execute("CHECKPOINT")

    def _server(self) -> psycopg.Connection:
        return psycopg.connect(self.server.dsn(), autocommit=True)
