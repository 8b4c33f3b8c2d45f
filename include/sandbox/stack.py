"""`make up` and `make down`: the sandbox in the background, with usage arriving and Airflow billing it every hour.

One supervising process owns all others (`sandbox.stack_supervisor`). Every process of the stack carries a mark in its environment;
whoever has the mark belongs to it, whatever became of its parent, and nobody else is ever signalled: a pid file may be stale, the
environment of a live process is not. `up.json` is for people, and for `up` and `down` to know how far the supervisor is.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from sandbox.environment import HOME, ROOT, without_stripe
from sandbox.services import Say, stop_unused_postgres

#: The mark: which sandbox, by its folder, and which part of it.
MARK, PART = "BILLING_SANDBOX_UP", "BILLING_SANDBOX_PART"
SUPERVISOR = "supervisor"

LOGS = HOME / "logs"
STATE_FILE = HOME / "up.json"

#: The supervisor gives every part its time to end, and then kills; this is more than all of that.
STOP_SECONDS = 90.0
#: For what is left when the supervisor was killed: Airflow's servers need some seconds to end tidily.
LEFTOVER_SECONDS = 15.0


class StackFailed(Exception):
    """The sandbox could not be started or stopped; the message says why and what to do."""


@dataclass(frozen=True)
class Stack:
    """What the supervisor tells about itself and the parts it owns."""

    phase: Literal["starting", "ready", "stopping"]
    url: str | None  #: of Airflow, once its port is chosen
    pids: dict[str, int]  #: by part, the supervisor's included
    created: dict[str, float]  #: when each of these processes was created, seconds since 1970

    def save(self) -> None:
        """Replaces the state file, whole or not at all."""
        unfinished = STATE_FILE.with_suffix(".new")
        unfinished.write_text(json.dumps(asdict(self), indent=2) + "\n")
        unfinished.replace(STATE_FILE)

    @classmethod
    def saved(cls, file: Path = STATE_FILE) -> "Stack | None":
        """What the last supervisor saved; None where there is nothing, or half of something."""
        try:
            return cls(**json.loads(file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def marked(part: str) -> dict[str, str]:
    """The environment's variables that make a process a part of this sandbox's stack."""
    # Without the third, processes that give themselves a title, as Airflow's do, overwrite their environment with it.
    return {MARK: str(HOME.resolve()), PART: part, "SPT_NOENV": "1"}


def stack_processes() -> list[tuple[psutil.Process, str]]:
    """Every live process of this sandbox's stack with the part it belongs to, children of children included."""
    mine, home = os.getpid(), str(HOME.resolve())
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it ended, or is somebody else's
            environment = process.environ()
            if environment.get(MARK) == home and process.pid != mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, environment[PART]))
    return found


def supervisor() -> psutil.Process | None:
    """The live supervisor."""
    # It leads its session; its children, between fork and exec, look like it but do not.
    leaders = [process for process, part in stack_processes() if part == SUPERVISOR and _leads_session(process.pid)]
    return leaders[0] if leaders else None


def up(say: Say, port: int | None = None) -> str:
    """Starts the stack, or joins another `up` that is starting it, and returns Airflow's URL when everything is healthy.

    `port`: where Airflow must listen; None takes the usual one, or another where that is taken. What the supervisor does is said
    line by line. Raises StackFailed when the stack does not come up, after everything that was started has been stopped."""
    child = None
    try:
        with _turn():
            owner, stack = supervisor(), Stack.saved()
            if owner is not None and stack is not None and stack.phase == "ready" and stack.url is not None:
                say("already up")
                return stack.url
            if owner is None:
                _stop_leftovers(say)
                child = _spawn_supervisor(port)
                owner = psutil.Process(child.pid)
                # Until the supervisor says so itself, the next `up` would not know that it is starting.
                while Stack.saved() is None and child.poll() is None:
                    time.sleep(0.02)
            else:
                say("another `make up` is starting it; waiting")
        return _follow(owner, say)
    except KeyboardInterrupt:
        if child is not None:
            say("interrupted: stopping what was started")
            child.terminate()
            child.wait()
        raise


def down(say: Say) -> bool:
    """Stops everything that `up` started, also where parts or the supervisor had died; False where nothing was running.

    Raises StackFailed for a process that cannot be ended."""
    with _turn():
        owner = supervisor()
        if owner is not None:
            say("stopping")
            owner.send_signal(signal.SIGTERM)
            _wait_for([owner], STOP_SECONDS)
        left = _stop_leftovers(say)
        stop_unused_postgres()
        STATE_FILE.unlink(missing_ok=True)
    return owner is not None or left


def status(say: Say) -> bool:
    """Says which parts run; whether the stack is up."""
    stack, processes = Stack.saved(), stack_processes()
    if supervisor() is None:
        say("not up" + (f", but {len(processes)} processes are left of it: `make down` ends them" if processes else ""))
        return False
    assert stack is not None
    say(f"{stack.phase}: {stack.url}")
    alive = {process.pid for process, _ in processes}
    for part, pid in stack.pids.items():
        say(f"  {part:17} {f'pid {pid}' if pid in alive else 'not running'}")
    return stack.phase == "ready"


@contextmanager
def _turn() -> Iterator[None]:
    """One `up` or `down` at a time decides what to do. The lock ends with its process."""
    HOME.mkdir(parents=True, exist_ok=True)
    lock = os.open(HOME / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _spawn_supervisor(port: int | None) -> subprocess.Popen[bytes]:
    """The supervisor, in a session of its own: no terminal's Ctrl-C or end reaches it."""
    STATE_FILE.unlink(missing_ok=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    environment = {
        **without_stripe(os.environ),
        **marked(SUPERVISOR),
        "BILLING_SANDBOX_HOME": str(HOME.resolve()),
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("include", "plugins")),
    }
    command = [sys.executable, "-m", "sandbox.stack_supervisor", *([] if port is None else ["--port", str(port)])]
    with fresh_log(SUPERVISOR).open("wb") as log:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def fresh_log(part: str) -> Path:
    """The file for a part's output in this life of the stack; the last life's is kept beside it."""
    log = LOGS / f"{part}.log"
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    return log


def _follow(owner: psutil.Process, say: Say) -> str:
    """Says what the supervisor writes until it is ready; Airflow's URL."""
    with (LOGS / f"{SUPERVISOR}.log").open() as log:
        line = ""
        while True:
            alive, stack = _is_alive(owner), Stack.saved()  # before reading: what led to it has been written by then
            while piece := log.readline():
                line += piece
                if line.endswith("\n"):
                    say(line.rstrip("\n"))
                    line = ""
            if not alive:
                raise StackFailed(f"the sandbox did not start, and what was started is stopped again; the logs are in {LOGS}")
            if stack is not None and stack.phase == "ready" and stack.url is not None:
                return stack.url
            time.sleep(0.1)


def _stop_leftovers(say: Say) -> bool:
    """Ends what a killed supervisor left behind; whether there was anything."""
    left, stack = [process for process, _ in stack_processes()], Stack.saved()
    if not left:
        return False
    say(f"ending {len(left)} processes that an earlier start left behind")
    # Servers are asked first, because they end their own children; an orphan among those would never answer.
    servers = [process for process in left if stack is not None and process.pid in stack.pids.values()]
    for server in servers:
        with suppress(psutil.Error):
            server.terminate()
    _wait_for(servers, LEFTOVER_SECONDS)
    kill_all(lambda: [process for process, _ in stack_processes()])
    return True


def kill_all(remaining: Callable[[], list[psutil.Process]]) -> None:
    """Kills until none remains: one that is killed may have just forked. Raises StackFailed for what does not end."""
    for _ in range(20):
        processes = remaining()
        if not processes:
            return
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        _wait_for(processes, 1.0)
    raise StackFailed(f"these processes do not end: {', '.join(str(process.pid) for process in processes)}; look at them with `ps`")


def _wait_for(processes: list[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_is_alive(process) for process in processes):
        time.sleep(0.05)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False
