"""A webhook's receiving end on this machine: keeps every request it gets, and answers as it is told."""

from __future__ import annotations

import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving import serving


@dataclass
class Receiver:
    url: str
    #: as they came: the raw body and the signature header
    received: list[tuple[bytes, str]] = field(default_factory=list)
    #: the statuses of the next answers; 200 once they are used up
    answers: list[int] = field(default_factory=list)

    def types(self) -> list[str]:
        return [event["type"] for event in self.events()]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body, _ in self.received]


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.received.append((body, self.headers["Stripe-Signature"]))
            self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hook")
    with serving(server):
        yield receiver
