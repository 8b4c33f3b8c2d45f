"""An append-only file of state changes: one JSON array a line, one line a request, written before the request is answered.

Each line goes out in a single unbuffered write, so it is in the kernel's hands when the answer leaves: a killed process loses nothing.
(A machine that loses power may; nothing is fsynced.) A line cut off in the middle was never answered and is removed at the next start.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Change = list[Any]

_FILE_NAME = "journal.jsonl"
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class JournalError(Exception):
    """The journal cannot be used; the message says why and what to do."""


class Journal:
    """The journal of one state directory; only one simulator may hold it at a time."""

    def __init__(self, state_dir: Path) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        self._path = state_dir / _FILE_NAME
        self._lock_fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(f"{state_dir} is in use by another simulator: stop that one or choose another --state-dir") from error
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def replay(self) -> Iterator[list[Change]]:
        """The changes of every complete line, oldest first. A torn last line is cut off the file. Raises JournalError."""
        length = 0
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    changes = json.loads(line.decode())
                except ValueError as error:
                    raise JournalError(f"{self._path}, line {number}, is damaged ({error}): move the folder away") from error
                length += len(line)
                yield changes
        if length != self._path.stat().st_size:
            os.truncate(self._fd, length)

    def append(self, changes: list[Change]) -> None:
        """Write one line. An error of the operating system (disk full) is raised as it is: the caller must not answer."""
        _write_all(self._fd, _encode(changes).encode() + b"\n")

    def start_over(self, changes: Iterable[list[Change]]) -> None:
        """Replace the whole journal with these lines, at once: a crash leaves either the old or the new one."""
        fresh_path = self._path.with_suffix(".fresh")
        fd = os.open(fresh_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for line in changes:
            _write_all(fd, _encode(line).encode() + b"\n")
        fresh_path.rename(self._path)
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._lock_fd)


def _write_all(fd: int, line: bytes) -> None:
    written = os.write(fd, line)
    while written < len(line):
        written += os.write(fd, line[written:])
