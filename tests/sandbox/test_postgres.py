"""What the sandbox promises of its PostgreSQL; each test runs a real server."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from sandbox import APPLICATION_SQL
from sandbox.postgres import PostgresError, PostgresServer

SOURCE_ROOT = Path(__file__).parents[2] / "include"

START_AND_TELL = """
import sys
from pathlib import Path
from sandbox.postgres import PostgresServer
server = PostgresServer(Path(sys.argv[1]), durable=False)
server.start()
print(server.dsn())
if "stop" in sys.argv:
    server.stop()
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One server for the tests of this file: in a folder with a space and a quote, 150 characters deep. Any of them may stop or kill it."""
    folder = tmp_path_factory.mktemp("with space and it's") / ("long" * 25) / "data"
    server = PostgresServer(folder, durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _running(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        request.getfixturevalue("server").start()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder every user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


def pid_of(server: PostgresServer) -> int:
    return int((server.data_dir / "cluster" / "postmaster.pid").read_text().splitlines()[0])


def launch(data_dir: Path, *arguments: str, prefix: tuple[str, ...] = (), path: str | None = None) -> subprocess.Popen[str]:
    """A fresh process that starts the server of that folder, with nothing in its environment but what Python needs to find this project."""
    environment = {"PYTHONPATH": str(SOURCE_ROOT)} | ({} if path is None else {"PATH": path})
    command = [*prefix, sys.executable, "-c", START_AND_TELL, str(data_dir), *arguments]
    return subprocess.Popen(command, env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_start_reuses_data_and_port(server: PostgresServer) -> None:
    """Stopped and started again by another object, the server is where it was, with what was in it."""
    dsn = server.ensure_database("kept")
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS note AS SELECT 'still here' AS text")
    server.stop()
    assert not server.is_running()
    again = PostgresServer(server.data_dir, durable=False)
    again.start()
    assert again.is_running()
    assert again.dsn("kept") == dsn
    assert one(dsn, "SELECT text FROM note") == "still here"


def test_a_killed_server_heals(server: PostgresServer) -> None:
    """kill -9 of the server while a client works: a start in the same instant notices, recovers, and committed rows are there."""
    dsn = server.ensure_database("kept")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = on")  # a throw-away cluster would be allowed to lose this
        connection.execute("CREATE TABLE IF NOT EXISTS committed (number integer)")
        connection.execute("INSERT INTO committed VALUES (1)")
        os.kill(pid_of(server), signal.SIGKILL)
        server.start()
    assert one(dsn, "SELECT count(*) > 0 FROM committed") is True


def test_a_dead_servers_pid_file_naming_a_living_process_heals(server: PostgresServer) -> None:
    """After a reboot the number in postmaster.pid may be somebody else's: that process is left alone, and the server starts."""
    pid_file = server.data_dir / "cluster" / "postmaster.pid"
    left_behind = pid_file.read_text().splitlines(keepends=True)
    server.stop()
    with subprocess.Popen(["sleep", "60"]) as bystander:
        pid_file.write_text(f"{bystander.pid}\n" + "".join(left_behind[1:]))
        if os.geteuid() == 0:
            os.chown(pid_file, pid_file.parent.stat().st_uid, pid_file.parent.stat().st_gid)
        assert not server.is_running()
        server.stop()
        assert bystander.poll() is None
        server.start()
        assert server.is_running()
        bystander.kill()


def test_an_empty_pid_file_heals(server: PostgresServer) -> None:
    """A power cut can leave postmaster.pid empty, which PostgreSQL itself refuses to start over."""
    server.stop()
    (server.data_dir / "cluster" / "postmaster.pid").touch()
    server.start()
    assert server.is_running()


def test_a_running_server_is_reused_and_left_running_by_who_did_not_start_it(server: PostgresServer) -> None:
    """Leaving a with block stops only a server that the block started."""
    pid = pid_of(server)
    with PostgresServer(server.data_dir) as guest:
        assert guest.dsn() == server.dsn()
    assert server.is_running()
    assert pid_of(server) == pid


def test_a_taken_remembered_port_is_replaced(server: PostgresServer) -> None:
    """A port nobody asked for is not worth a question: if another program took it, the server moves, and remembers where."""
    port = server.port
    server.stop()
    with socket.create_server(("127.0.0.1", port)):
        server.start()
        assert server.port != port
        assert one(server.dsn(), "SELECT current_setting('port')") == str(server.port)
    moved_to = server.port
    server.stop()
    server.start()
    assert server.port == moved_to


def test_a_taken_wanted_port_is_refused_by_name(server: PostgresServer, tmp_path: Path) -> None:
    """Asked for a certain port that another program holds, start() names the port and the ways out, and makes nothing."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PostgresError, match=rf"Port {port} .* taken .*lsof -i :{port}.* choose another"):
            PostgresServer(tmp_path / "data", port).start()
        assert not (tmp_path / "data" / "cluster").exists()
    with pytest.raises(PostgresError, match=f"already runs on port {server.port}, not on 5999"):
        PostgresServer(server.data_dir, 5999).start()


def test_a_wanted_port_is_used_and_kept(server: PostgresServer) -> None:
    """The port asked for is where the server listens, also for the next start that asks for none."""
    server.stop()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    PostgresServer(server.data_dir, port, durable=False).start()
    assert server.is_running()
    assert server.port == port
    server.stop()
    server.start()
    assert server.port == port


def test_it_listens_on_loopback_only_and_on_no_socket(server: PostgresServer) -> None:
    """Nobody beyond this machine reaches the server."""
    assert one(server.dsn(), "SELECT current_setting('listen_addresses')") == "127.0.0.1"
    assert one(server.dsn(), "SELECT current_setting('unix_socket_directories')") == ""
    assert one(server.dsn(), "SELECT current_setting('max_connections')::integer >= 200") is True


def test_unicode_is_understood_and_sorted_alike_everywhere(server: PostgresServer) -> None:
    """UTF-8, code-point order and UTC, whatever the machine's locale and zone."""
    assert one(server.dsn(), "SELECT current_setting('server_encoding')") == "UTF8"
    assert one(server.dsn(), "SELECT lower('ÉTÉ') || ('Z' < 'a')::text || ('z' < 'é')::text") == "ététruetrue"
    assert one(server.dsn(), "SELECT current_setting('timezone')") == "UTC"


def test_databases_are_ensured_and_recreated_by_any_name(server: PostgresServer) -> None:
    """Ensuring keeps what is there; recreating empties it, though somebody is connected. The URL carries any name."""
    name = "a name/with ?odd#parts%20"
    dsn = server.ensure_database(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept ()")
        assert server.ensure_database(name) == dsn
        assert one(dsn, "SELECT current_database()") == name
        assert one(dsn, "SELECT count(*) FROM pg_tables WHERE tablename = 'kept'") == 1
        assert server.recreate_database(name) == dsn
    assert one(dsn, "SELECT count(*) FROM pg_tables WHERE tablename = 'kept'") == 0


def test_a_database_ensured_by_many_at_once_is_made_once(server: PostgresServer) -> None:
    """Losing the race to create a database is not an error."""
    errors: list[Exception] = []

    def ensure() -> None:
        try:
            server.ensure_database("raced_for")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_marking_rows_billed_touches_no_index(server: PostgresServer) -> None:
    """The application's layout keeps the promise its comment makes: marking an hour's rows is a HOT update."""
    with psycopg.connect(server.recreate_database("application"), autocommit=True) as connection:
        connection.execute(APPLICATION_SQL.read_text())  # type: ignore[arg-type]
        connection.execute(APPLICATION_SQL.read_text())  # type: ignore[arg-type]
        connection.execute(
            "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at)"
            " SELECT 'tenant ' || n % 7, 'a model', n, n, '2025-01-01Z'::timestamptz + n * interval '1 s' FROM generate_series(1, 3600) n"
        )
        connection.execute("UPDATE token_usage SET billed = true")
        connection.execute("SELECT pg_stat_force_next_flush()")
        row = connection.execute("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'token_usage'").fetchone()
    assert row == (3600, 3600)


def test_usage_of_an_unknown_tenant_is_kept(server: PostgresServer) -> None:
    """The contract's columns suffice, and no tenant needs to exist."""
    with psycopg.connect(server.recreate_database("application"), autocommit=True) as connection:
        connection.execute(APPLICATION_SQL.read_text())  # type: ignore[arg-type]
        connection.execute("INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens) VALUES ('nobody knows', 'm', 1, 2)")
        assert connection.execute("SELECT id, billed, created_at <= now() FROM token_usage").fetchone() == (1, False, True)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A folder with anything in it that this sandbox did not make is not written to, let alone emptied."""
    letter = tmp_path / "letter.txt"
    letter.write_text("dear reader")
    with pytest.raises(PostgresError, match=r"is not empty and was not made by this sandbox.*name another"):
        PostgresServer(tmp_path).start()
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(PostgresError, match=r"letter\.txt is a file where a folder should be"):
        PostgresServer(letter).start()
    with pytest.raises(PostgresError, match=r"letter\.txt.* is a file where a folder should be"):
        PostgresServer(letter / "data").start()


def test_two_processes_may_start_at_once_over_a_half_made_folder_with_an_empty_environment(tmp_path: Path) -> None:
    """One makes the data anew over what an interrupted creation left, the others wait for it, and all are told the same server."""
    data_dir = tmp_path / "data"
    half_made = data_dir / "cluster.unfinished"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    (data_dir / "sandbox-postgres.json").write_text("")
    processes = [launch(data_dir) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    server = PostgresServer(data_dir)
    try:
        assert [error for _, error in outputs] == ["", "", ""]
        assert {dsn.strip() for dsn, _ in outputs} == {server.dsn()}
        assert one(server.dsn(), "SELECT 1") == 1
        assert server.log_file.read_text().count("starting PostgreSQL") == 1
    finally:
        server.stop()
    assert not half_made.exists()
    assert not server.is_running()


def test_data_of_another_version_is_named_and_kept(server: PostgresServer) -> None:
    """The message names both versions and the way out; the data stays."""
    server.stop()
    version_file = server.data_dir / "cluster" / "PG_VERSION"
    version = version_file.read_text()
    version_file.write_text("15\n")
    try:
        with pytest.raises(PostgresError, match=r"is of PostgreSQL 15, the programs .* are \d+: .*make clean"):
            server.start()
    finally:
        version_file.write_text(version)
    server.start()


def test_a_server_that_cannot_start_shows_its_log(server: PostgresServer) -> None:
    """What the server said last is in the error, so that nobody has to look for the log."""
    server.stop()
    settings = server.data_dir / "cluster" / "postgresql.auto.conf"
    before = settings.read_text()
    settings.write_text("wal_level = sideways\n")
    try:
        with pytest.raises(PostgresError, match=r'(?s)ended while it started\. Its log says:.*invalid value for parameter "wal_level"'):
            server.start()
    finally:
        settings.write_text(before)
    server.start()


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PG_BIN pointing at the wrong folder is an error that says so."""
    monkeypatch.setenv("PG_BIN", str(tmp_path))
    with pytest.raises(PostgresError, match=r"There is no postgres in .*PG_BIN"):
        PostgresServer(tmp_path / "data").start()


def test_a_server_never_started_has_no_port(tmp_path: Path) -> None:
    """Asking for the URL before the first start is an error that says what to call; stopping is none."""
    server = PostgresServer(tmp_path / "data")
    with pytest.raises(PostgresError, match=r"never been started.*call start\(\)"):
        server.dsn()
    assert not server.is_running()
    server.stop()


def test_an_unreadable_port_note_is_no_obstacle(server: PostgresServer) -> None:
    """The remembered port is a convenience: a running server is found without it."""
    note = server.data_dir / "sandbox-postgres.json"
    port = server.port
    note.write_text("")
    server.start()
    assert json.loads(note.read_text()) == {"port": port}


@needs_root
@pytest.mark.parametrize("way", ["unshare", "setpriv", "neither"])
def test_root_may_start_it(way: str, tmp_path: Path, open_folder: Path) -> None:
    """Root's PostgreSQL runs as an unprivileged user: in a user namespace, or else with setpriv, both below a folder closed to others; and
    where neither is to be had, as nobody in a folder open to others, from a copy of the programs if need be."""
    programs = tmp_path / "path"
    programs.mkdir()
    if way != "neither":
        found = shutil.which(way)
        if found is None:
            pytest.skip(f"{way} is not installed")
        (programs / way).symlink_to(found)
    home = open_folder if way == "neither" else tmp_path
    assert home is open_folder or home.parent.stat().st_mode & 0o077 == 0
    server = PostgresServer(home / "project" / "data")
    try:
        for arguments in (["stop"], []):  # the second start finds data that an unprivileged user wrote
            dsn, error = (process := launch(server.data_dir, *arguments, path=str(programs))).communicate(timeout=60)
            assert (process.returncode, error) == (0, "")
        assert one(dsn.strip(), "SELECT 1") == 1
        owner = (server.data_dir / "cluster").stat().st_uid
        assert (owner == 0) == (way == "unshare")
        assert all(path.lstat().st_uid == owner for path in server.data_dir.rglob("*"))
    finally:
        server.stop()
    assert not server.is_running()


@needs_root
def test_an_ordinary_user_may_start_it_and_others_are_told_whose_it_is(open_folder: Path) -> None:
    """An ordinary user runs it as itself; root, as after sudo, leaves that user's data usable; another user's is refused, and named."""
    nobody = pwd.getpwnam("nobody")
    prefix = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    reachable = subprocess.run([*prefix, sys.executable, "-c", "import psycopg"], env={}, cwd="/", check=False, capture_output=True)
    if shutil.which("setpriv") is None or reachable.returncode != 0:
        pytest.skip("the user nobody cannot run this Python")
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    for prefix_of_run in (prefix, (), prefix):  # nobody, root, nobody again
        process = launch(home / "data", "stop", prefix=prefix_of_run)
        assert process.communicate(timeout=60)[1] == ""
        assert {path.lstat().st_uid for path in (home / "data").rglob("*")} == {nobody.pw_uid}

    roots = open_folder / "roots"
    roots.mkdir()
    (roots / "sandbox-postgres.json").write_text("{}")
    (roots / "cluster").mkdir(mode=0o700)
    _, error = launch(roots, prefix=prefix).communicate(timeout=60)
    assert "PostgresError" in error
    assert "is not yours to use (the folder is root's" in error
