"""Ports of 127.0.0.1 for the sandbox's servers: found free, and the same from one start to the next."""

import os
import socket
import zlib
from collections.abc import Iterable
from pathlib import Path

#: Below every system's range for outgoing connections (Linux from 32768, macOS from 49152), so that none takes the port between two starts.
AUTOMATIC_PORTS = range(20000, 32000)


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket() as listener, socket.socket() as caller:
        # As servers do, so that old connections of an ended server do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        listener.close()
        # macOS lets two programs listen on one port when one of them listens on every address.
        caller.settimeout(1.0)
        return caller.connect_ex(("127.0.0.1", port)) != 0


def free_port(owner: Path, preferred: Iterable[int] = ()) -> int | None:
    """The first free one of the preferred ports, else the next free one after the place in the automatic range that the owner's
    name gives; None where no port is free."""
    first = zlib.crc32(os.fsencode(owner))
    in_turn = (AUTOMATIC_PORTS[(first + step) % len(AUTOMATIC_PORTS)] for step in range(len(AUTOMATIC_PORTS)))
    return next((port for port in (*preferred, *in_turn) if is_free(port)), None)
