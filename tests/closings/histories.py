"""Histories one after the other in a database and a simulator, and in several processes at once."""

import gc
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

from closings.life import Life
from closings.plans import BEGIN, make_plan
from crash.network import doors
from crash.processes import end_with_parent
from crash.result import Result
from crash.stripe_account import StripeAccount
from crash.workers import Pool
from sandbox.postgres import PostgresServer
from sandbox.services import prepare_billing_database
from sandbox.stripe_simulator.process import StripeSimulator

_process: "Histories"


class Histories:
    """Use it as a context manager."""

    def __init__(self, dsn: str, simulator: StripeSimulator) -> None:
        self._simulator, self._pool, self._account = simulator, Pool(dsn), StripeAccount(simulator)
        self._resources = ExitStack()
        self._folder = self._resources.enter_context(TemporaryDirectory(prefix="closings-"))

    def __enter__(self) -> "Histories":
        self._resources.callback(self._pool.close)
        self._resources.callback(self._account.close)
        self._resources.enter_context(doors(lambda: self._life.network))
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def live(self, seed: int) -> Result:
        for kept in Path(self._folder).iterdir():
            kept.unlink()
        self._life = Life(self._pool, self._account, self._simulator, Path(self._folder), make_plan(seed))
        try:
            return self._life.live()
        except BaseException as error:
            error.add_note(f"in history {seed}")
            raise


def lived_in_parallel(postgres: PostgresServer, seeds: Sequence[int], processes: int) -> Iterator[Result]:
    """The histories of the seeds, in their order."""
    prepare_billing_database(postgres.recreate_database("closings"), lambda: BEGIN)
    context = get_context("spawn")
    places: Queue[str] = context.Queue()
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        for number in range(processes):
            admin.execute(f"CREATE DATABASE closings_{number} TEMPLATE closings")
            places.put(postgres.dsn(f"closings_{number}"))
    with ProcessPoolExecutor(processes, context, _begin, (places,)) as pool:
        yield from pool.map(_live, seeds, chunksize=4)


def _begin(places: "Queue[str]") -> None:
    global _process
    gc.freeze()
    threading.Thread(target=end_with_parent, daemon=True).start()
    resources = ExitStack()  # the simulator ends with the process
    _process = resources.enter_context(Histories(places.get(), resources.enter_context(StripeSimulator.start())))


def _live(seed: int) -> Result:
    return _process.live(seed)
