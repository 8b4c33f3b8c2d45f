"""The tests' world: one throw-away PostgreSQL, one Stripe simulator whose every exchange is held to Stripe's own description
at the end, and an environment without anything of the caller's that could lead to a real account.

Airflow reads its settings when it is first imported, so they are set here, before any test module is."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from adopted import adopted_copy, make_template
from pooler.pgbouncer import PROGRAM, PgBouncer, pgbouncer
from sandbox.environment import SandboxServices, airflow_environment
from sandbox.postgres import PostgresServer
from sandbox.stripe_simulator.process import StripeSimulator
from stack_fixture import stack as stack
from token_billing.model import Sink
from world import World

#: What Linux keeps in memory.
_IN_MEMORY = Path("/dev/shm")
#: Far more than the clusters of a session's processes take, together with what else the folder is for.
_ROOM_BYTES = 4 * 2**30


def _fast_folder() -> Path | None:
    """In memory, where there is room: a database that is copied for each test is hundreds of files, and a disk takes ten times as long."""
    if not os.access(_IN_MEMORY, os.W_OK):
        return None
    there = os.statvfs(_IN_MEMORY)
    # PostgreSQL's programs may have to be copied there, and run.
    return _IN_MEMORY if there.f_bavail * there.f_frsize > _ROOM_BYTES and not there.f_flag & os.ST_NOEXEC else None


_FOLDER = Path(tempfile.mkdtemp(prefix="token-billing-tests-", dir=_fast_folder()))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

_POSTGRES = PostgresServer(_FOLDER / "postgres", durable=False)
_POSTGRES.start()
atexit.register(_POSTGRES.stop)

#: Set by `make test-pooler`: the worlds' databases lie behind a connection pooler.
_POOLED = os.environ.get("BILLING_TEST_POOLER", "")

_NOBODY = SandboxServices("postgresql://nobody@127.0.0.1:9/none", _POSTGRES.ensure_database("airflow"), "http://127.0.0.1:9")
_ENVIRONMENT = airflow_environment(_NOBODY, _FOLDER / "airflow", replayed=False)
os.environ.clear()
os.environ.update(_ENVIRONMENT, AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR", BILLING_TEST_POOLER=_POOLED)


#: The groups that take longest, and so begin first: one that began last would end long after all others.
_LONGEST = ("airflow", "plugins", "crash/test_kill_points.py", "months", "mutation", "stripe_simulator", "deployment", "sandbox")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share servers, or Airflow in pytest's own process, run in the same process (`-n 2 --dist loadgroup`): those of a
    folder, and of a file in the larger ones."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: places.get(groups[item], len(places)))


def _group(item: pytest.Item) -> str:
    folder, _, rest = str(item.path.relative_to(Path(__file__).parent)).partition("/")
    fixtures = getattr(item, "fixturenames", ())
    if "stack" in fixtures:
        return "stack"
    if "runs_of" in fixtures or folder == "dags":
        return "airflow"
    return f"{folder}/{rest}" if folder in ("acceptance", "crash", "integration") else folder


def pytest_collection_finish(session: pytest.Session) -> None:
    """Two stacks side by side would take each other's ports: rather no test than tests that are not grouped."""
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist did not group the tests; see the note at pytest in pyproject.toml")


@pytest.fixture(scope="session")
def postgres() -> PostgresServer:
    """The tests' server: killed clients lose nothing, a power cut everything."""
    return _POSTGRES


@pytest.fixture(scope="session")
def _simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeSimulator]:
    from stripe_description import assert_recording_valid

    record = tmp_path_factory.mktemp("simulator") / "exchanges.jsonl"
    with StripeSimulator.start(record=record) as simulator:
        yield simulator
    assert_recording_valid(record)


@pytest.fixture
def simulator(_simulator: StripeSimulator) -> StripeSimulator:
    """An empty Stripe account whose meters show events at once; every exchange is validated when the session ends."""
    _simulator.reset(clock="real")
    _simulator.settings(summary_delay_seconds=0)
    return _simulator


@pytest.fixture(scope="session")
def _adopted_template(postgres: PostgresServer) -> str:
    """What is copied for each test."""
    return make_template(postgres)


@pytest.fixture(scope="session")
def pooler(postgres: PostgresServer) -> Iterator[PgBouncer]:
    """A connection pooler in transaction mode before the tests' server."""
    if PROGRAM is None:
        pytest.skip("there is no pgbouncer here; Debian's package of that name brings it")
    with pgbouncer(postgres.port) as running:
        yield running


@pytest.fixture
def billing_dsn(postgres: PostgresServer, _adopted_template: str, request: pytest.FixtureRequest) -> str:
    """A fresh, adopted billing database."""
    pooled = bool(_POOLED) or "pooler" in request.fixturenames
    pooler: PgBouncer | None = request.getfixturevalue("pooler") if pooled else None
    with pooler.without("billing") if pooler else nullcontext():
        adopted_copy(postgres, _adopted_template)
    return (pooler or postgres).dsn("billing")


@pytest.fixture
def sink(request: pytest.FixtureRequest) -> Sink:
    """Where usage is reported; a test that is marked `world.both_sinks` runs with either."""
    return getattr(request, "param", Sink.BILLING_METERS)


@pytest.fixture
def world(billing_dsn: str, simulator: StripeSimulator, sink: Sink) -> World:
    """An adopted database and an empty Stripe account."""
    return World(billing_dsn, simulator, sink=sink)
