"""Histories in several processes at once, each with a database and a simulator of its own."""

import gc
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING

from crash.result import Result

if TYPE_CHECKING:
    from crash.histories import Histories, Subject

#: Histories handed to a process at once: asking for each by itself would cost more than it saves at the end.
AT_ONCE = 4

_process: "Histories"


def lived_in_parallel(dsns: Sequence[str], seeds: Sequence[int], subject: "Subject") -> Iterator[Result]:
    """The histories of the seeds, in their order; a seed is the same history in whichever process it is lived."""
    context = get_context("spawn")
    places: Queue[str] = context.Queue()
    for dsn in dsns:
        places.put(dsn)
    with ProcessPoolExecutor(len(dsns), context, _begin, (places, subject)) as processes:
        yield from processes.map(_live, seeds, chunksize=AT_ONCE)


def _begin(places: "Queue[str]", subject: "Subject") -> None:
    global _process
    from crash.histories import Histories
    from sandbox.stripe_simulator.process import StripeSimulator

    gc.freeze()
    gc.set_threshold(50_000)  # a history's garbage is small, looking for it is not
    threading.Thread(target=end_with_parent, daemon=True).start()
    resources = ExitStack()  # the simulator ends with the process
    simulator = resources.enter_context(StripeSimulator.start())
    _process = resources.enter_context(Histories(places.get(), simulator, subject))


def end_with_parent() -> None:
    """Whoever was killed leaves nobody behind who lives on."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _live(seed: int) -> Result:
    from crash.planner import make_plan

    return _process.live(make_plan(seed))
