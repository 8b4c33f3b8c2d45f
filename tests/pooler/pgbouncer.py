"""PgBouncer in transaction mode before a PostgreSQL of this machine: each transaction of a client may meet another server session."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

from sandbox.ports import free_port
from sandbox.unprivileged import Account, accounts

#: Debian keeps it where only root's PATH leads.
PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")

#: Sessions take turns, so that a client seldom meets the same one twice. Whoever waits for one too long is refused, not left hanging.
CONFIGURATION = """
[databases]
billing = host=127.0.0.1 port={postgres_port} user=postgres
* = host=127.0.0.1 port={postgres_port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
admin_users = postgres
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
server_round_robin = 1
query_wait_timeout = {wait_seconds}
log_connections = 0
log_disconnections = 0
"""

START_SECONDS = 10.0


class PgBouncerFailed(Exception):
    """It did not come up; the message holds what it said."""


@dataclass(frozen=True)
class PgBouncer:
    """One that runs."""

    port: int

    @contextmanager
    def without(self, database: str) -> Iterator[None]:
        """Cuts every connection to the database and makes none while the block drops and creates it; whoever comes meanwhile waits."""
        with psycopg.connect(self.dsn("pgbouncer"), autocommit=True, prepare_threshold=None) as console:
            # The console knows the simple query protocol alone.
            console.pgconn.exec_(f"KILL {database}".encode())
            try:
                yield
            finally:
                console.pgconn.exec_(f"RESUME {database}".encode())

    def dsn(self, database: str) -> str:
        """A ``postgresql://`` URL that leads to the database through it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database, safe='')}"


@contextmanager
def pgbouncer(postgres_port: int, *, pool_size: int = 20, wait_seconds: int = 60) -> Iterator[PgBouncer]:
    """One that runs as long as the block. Raises PgBouncerFailed where it does not start."""
    assert PROGRAM is not None
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        port = free_port(folder)
        assert port is not None
        settings = folder / "pgbouncer.ini"
        settings.write_text(CONFIGURATION.format(postgres_port=postgres_port, port=port, pool_size=pool_size, wait_seconds=wait_seconds))
        for path in (folder, settings):
            path.chmod(0o755)  # nothing in it is secret, and whoever runs it must read it
        said = []
        for account in accounts(folder.parent):
            with (folder / "log").open("w+") as log, _started(account, settings, log.fileno()) as process:
                if _answers(process, port):
                    yield PgBouncer(port)
                    return
                log.seek(0)
                said.append(log.read())
        raise PgBouncerFailed("\n".join(said))


@contextmanager
def _started(account: Account, settings: Path, log: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*account.prefix, str(PROGRAM), str(settings)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        user=account.uid if account.switch else None,
        group=account.gid if account.switch else None,
        extra_groups=[] if account.switch else None,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            psycopg.connect(PgBouncer(port).dsn("postgres"), connect_timeout=5).close()
            return True
        except psycopg.OperationalError:
            time.sleep(0.05)
    return False
