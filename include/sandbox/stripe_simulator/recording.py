"""Writes down every exchange of Stripe's API, so that a test can hold all of them to Stripe's API description afterwards.

An answer that a fault kept from its caller is none, and is not written down.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sandbox.stripe_simulator.form import Decoded

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Recorder:
    """Appends one JSON line an exchange: `{"method", "path", "params", "status", "body"}`; params as decoded, all strings."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def record(self, method: str, path: str, params: dict[str, Decoded], status: int, body: bytes) -> None:
        exchange = {"method": method, "path": path, "params": params, "status": status, "body": json.loads(body)}
        os.write(self._fd, _encode(exchange).encode() + b"\n")
