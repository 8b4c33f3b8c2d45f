"""`python -m sandbox.stripe_simulator`: serves the simulator on a loopback address until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import contextlib
import gc
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from sandbox.stripe_simulator.application import DEFAULT_API_KEY, create_application
from sandbox.stripe_simulator.broken_connection import LendingProtocol
from sandbox.stripe_simulator.clock import ClockRefusal, parse_clock, rfc3339
from sandbox.stripe_simulator.journal import Journal, JournalError
from sandbox.stripe_simulator.recording import Recorder
from sandbox.stripe_simulator.state import State


class CannotStart(Exception):
    """The simulator cannot start; the message is the one line that the operator sees."""


class _Server(uvicorn.Server):
    """Says when it is ready, and takes SIGTERM and SIGINT as a request to end, not as a death to repeat (uvicorn raises them again)."""

    def __init__(self, config: uvicorn.Config, ready_line: str, keep_up: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready_line = ready_line
        self._keep_up = keep_up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._keep_up()  # what fell due while nothing ran, and the webhooks that were still to be delivered
        print(self._ready_line, flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def end(number: int, frame: FrameType | None) -> None:
            self.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        yield


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        serve(options)
    except CannotStart as reason:
        print(f"stripe simulator: {reason}", file=sys.stderr)
        return 1
    return 0


def serve(options: argparse.Namespace) -> None:
    """Serve until told to end. Raises CannotStart."""
    # What the journal brings back lives as long as the process: looking through it for garbage would double the time to start.
    gc.disable()
    try:
        listening = _listening_socket(options.host, options.port)
        state = State(parse_clock(options.clock), None if options.state_dir is None else Journal(options.state_dir))
        recorder = None if options.record is None else Recorder(options.record)
        application = create_application(state, frozenset(options.api_key or [DEFAULT_API_KEY]), recorder)
    except (ClockRefusal, JournalError, OSError, ValueError) as error:
        raise CannotStart(str(error)) from error
    gc.freeze()
    gc.enable()
    host, port = listening.getsockname()[:2]
    shown_host = f"[{host}]" if ":" in host else host
    clock = state.clock.setting.mode if state.clock.setting.mode == "real" else rfc3339(state.clock.now_ms())
    ready_line = (
        f"stripe simulator ready on http://{shown_host}:{port} (pid {os.getpid()}, clock {clock}, {len(state.meter_events)} meter events)"
    )
    if options.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    config = uvicorn.Config(
        application,
        loop="uvloop",
        http=LendingProtocol,
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
        server_header=False,
        date_header=False,  # every answer has the simulator's own time
    )
    _Server(config, ready_line, application.state.timekeeper.keep_up).run(sockets=[listening])


def _end_with_stdin() -> None:
    while os.read(0, 4096):  # not through sys.stdin: its lock, held here, would abort the interpreter's end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox.stripe_simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (default 127.0.0.1)")
    parser.add_argument("--port", type=int, required=True, help="0 takes any free port; the ready line names it")
    parser.add_argument("--state-dir", type=Path, help="keep every change here, so that the simulator survives being killed")
    parser.add_argument(
        "--clock", default="real", help="'real' or an instant to stand still at; a clock already kept in --state-dir has precedence"
    )
    parser.add_argument("--api-key", action="append", help=f"a secret key to accept, repeatable (default {DEFAULT_API_KEY})")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when the standard input does: whoever started it has died")
    parser.add_argument("--record", type=Path, help="append every exchange to this file as a JSON line")
    return parser.parse_args(arguments)


def _listening_socket(host: str, port: int) -> socket.socket:
    """Bind before anything else, so that a taken port is told in one line. Raises CannotStart."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise CannotStart(f"--host {host} is not an address") from error
    if not address.is_loopback:
        raise CannotStart(f"--host {host} is not a loopback address: the simulator takes test keys and serves this machine only")
    listening = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((str(address), port))
        # A bound socket that does not listen can still be shared; listening makes the port ours.
        listening.listen(2048)
    except OSError as error:
        raise CannotStart(f"port {port} on {host} is taken ({error.strerror}): stop what listens there or choose another --port") from error
    return listening


if __name__ == "__main__":
    sys.exit(main())
