"""Two clusters, and a billing database in the first of them."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp

import pytest

from adopted import TEMPLATE, adopted_copy, make_template
from sandbox.postgres import PostgresServer
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.model import Sink
from world import World


@pytest.fixture(scope="module")
def clusters(postgres: PostgresServer) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Two, of which the tests stop and start the first; they lie beside the tests' own."""
    folder = Path(mkdtemp(prefix="clusters-", dir=postgres.data_dir.parent))
    with PostgresServer(folder / "original", durable=False) as one, PostgresServer(folder / "elsewhere", durable=False) as other:
        make_template(one)
        yield one, other
        one.stop()


@pytest.fixture
def original(clusters: tuple[PostgresServer, PostgresServer]) -> PostgresServer:
    clusters[0].start()
    return clusters[0]


@pytest.fixture
def elsewhere(clusters: tuple[PostgresServer, PostgresServer]) -> PostgresServer:
    return clusters[1]


@pytest.fixture
def world(original: PostgresServer, simulator: StripeSimulator, sink: Sink) -> World:
    """A billing database in a cluster of its own, in which a is frozen and not sent, while b has used nothing yet."""
    world = World(adopted_copy(original, TEMPLATE), simulator, sink=sink)
    simulator.reset(clock=world.window.end + timedelta(minutes=5))
    world.set_time(world.window.end + timedelta(minutes=5))
    world.link("a", "b")
    world.use("a", 5)
    world.freeze()
    return world


@pytest.fixture
def snapshot(original: PostgresServer, world: World, tmp_path: Path) -> Iterator[Callable[[], World]]:
    """The world as it is now, brought back from a copy of the volume when it is called; the original is gone then."""
    copy = tmp_path / "copy"
    original.stop()
    shutil.copytree(original.data_dir, copy)
    original.start()
    server = PostgresServer(copy, durable=False)

    def bring_back() -> World:
        original.stop()
        server.start()
        return replace(world, dsn=server.dsn("billing"))

    yield bring_back
    server.stop()
