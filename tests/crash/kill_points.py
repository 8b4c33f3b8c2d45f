"""Kills the process it runs in, with a real SIGKILL, at the n-th place where something may have left it: around every SQL
statement, every end of a transaction and every request."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import stripe


@contextmanager
def killed_at(point: int) -> Iterator[Callable[[], int]]:
    """Counts the places passed inside the block, and dies at the given one (0: never); hands out the count."""
    passed = 0

    def place() -> None:
        nonlocal passed
        passed += 1
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            place()
            result = original(*args, **kwargs)
            place()
            return result

        return wrapped

    def around_async(original: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            place()
            result = await original(*args, **kwargs)
            place()
            return result

        return wrapped

    doors = [
        (psycopg.Cursor, "execute", around),
        (psycopg.Transaction, "__exit__", around),
        (stripe.AIOHTTPClient, "request_async", around_async),
    ]
    originals = [getattr(owner, name) for owner, name, _ in doors]
    for (owner, name, wrap), original in zip(doors, originals, strict=True):
        setattr(owner, name, wrap(original))
    try:
        yield lambda: passed
    finally:
        for (owner, name, _), original in zip(doors, originals, strict=True):
            setattr(owner, name, original)


def run_in_child(work: Callable[[], object], point: int) -> int | None:
    """Runs the work in a forked child that dies at the given point; returns how many places it passed, None if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with killed_at(point) as passed:
                work()
            os.write(writer, str(passed()).encode())
            os._exit(0)
        except BaseException as error:  # the parent reports it; nothing of pytest may run in the child
            os.write(writer, repr(error).encode())
            os._exit(1)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        said = told.read()
    if os.WIFSIGNALED(status):
        return None
    assert os.WEXITSTATUS(status) == 0, said
    return int(said)
