"""A real push in a process of its own that is stopped (SIGSTOP, as by a paused machine) between its last check and its write."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from sandbox.kept_in_files import KeptInFiles
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.model import Clock, Shard
from token_billing.settings import PushSettings
from token_billing.stages.push import push
from token_billing.windows import Window

#: Others wait for the customer until the stopped worker's lease has run out; its request must fit into the lease.
LEASE = timedelta(seconds=4)
TIMEOUT_S = 2.0


def clock_in(file: Path) -> Clock:
    """The system's clock, ahead by as many hours as the file says; processes share it."""
    return lambda: datetime.now(UTC) + timedelta(hours=float(file.read_text()))


class LateWorker:
    """The process; it is stopped when the constructor returns. Its request, once it goes on, goes through `stripe_base`."""

    def __init__(self, dsn: str, stripe_base: str, api_key: str, window: Window, clock_file: Path, keeper_folder: Path) -> None:
        command = [sys.executable, __file__, dsn, stripe_base, api_key, window.start.isoformat(), str(clock_file), str(keeper_folder)]
        self._process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"the worker ended instead of being stopped: {status}"

    def go_on(self) -> int:
        """Lets it finish; returns its exit status, which is negative where a signal ended it."""
        self._process.send_signal(signal.SIGCONT)
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """SIGKILL, whether it is stopped or running."""
        self._process.kill()


def _stopping_before_the_write(clock: Clock, dsn: str) -> Clock:
    """The clock, which stops the process where the event loop asks it for the time after the attempt was noted: in the check right
    before the write, which has then read the time and goes on with it."""
    stopped = False

    def read() -> datetime:
        nonlocal stopped
        time = clock()
        if not stopped and threading.current_thread() is threading.main_thread():
            with psycopg.connect(dsn) as db:
                stopped = db.execute("SELECT EXISTS (SELECT FROM billing.push_attempt)").fetchone() == (True,)
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
        return time

    return read


def main(dsn: str, stripe_base: str, api_key: str, window_start: str, clock_file: str, keeper_folder: str) -> None:
    connect: Callable[[], psycopg.Connection] = lambda: psycopg.connect(dsn)  # noqa: E731
    clock = _stopping_before_the_write(clock_in(Path(clock_file)), dsn)
    settings = PushSettings(calls_per_second=5000, reads_per_second=5000, lease=LEASE, backoff_s=0.01)
    target = StripeTarget(api_key, stripe_base, sandbox=True, timeout_s=TIMEOUT_S)
    window = Window(datetime.fromisoformat(window_start))
    push(connect, target, window, Shard(0, 1), clock, settings, KeptInFiles(Path(keeper_folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
