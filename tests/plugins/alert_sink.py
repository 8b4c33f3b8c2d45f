"""A loopback HTTP server that keeps what Apprise's `json://` service posts to it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from serving import serving


class AlertSink:
    """Receives alerts on a free port of 127.0.0.1 while used as a context manager."""

    #: Long enough to be taken for a secret, as a chat service's token in a URL is.
    SECRET_PATH = "T0KENabcdefgh123456"

    def __init__(self) -> None:
        self._messages: list[str] = []
        self._until_the_end = ExitStack()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                post = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                sink._messages.append(f"{post['title']}\n{post['message']}")
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.connection = json.dumps(
            {"conn_type": "generic", "password": f"json://127.0.0.1:{self._server.server_port}/{self.SECRET_PATH}"}
        )

    def __enter__(self) -> Self:
        self._until_the_end.enter_context(serving(self._server))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._until_the_end.close()

    def told(self, *words: str) -> list[str]:
        """The messages so far that contain all the words."""
        return [message for message in self._messages if all(word in message for word in words)]

    def wait_for(self, *words: str, within_s: float = 30.0, alive: Callable[[], None] = lambda: None) -> str:
        """The first message that contains all the words; fails when none comes in time. `alive` may raise to end the waiting."""
        give_up_at = time.monotonic() + within_s
        while not self.told(*words):
            alive()
            assert time.monotonic() < give_up_at, f"no alert with {words} within {within_s} s; received: {self._messages}"
            time.sleep(0.05)
        return self.told(*words)[0]
