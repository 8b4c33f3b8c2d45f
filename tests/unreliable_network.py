"""A network between the product and the simulator that loses, delays and garbles exactly what a test tells it to."""

import http.client
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from serving import serving


class UnreliableNetwork:
    """Forwards to the simulator; the next meter events, or usage records, meet the troubles in `troubles`, in order, then all goes well.

    Troubles: "ok"; "answer lost" (Stripe got it, we hear nothing); "request lost" (Stripe never got it); "garbled answer"
    (Stripe got it, the answer is no JSON); "answer cut off" (Stripe got it, the answer ends in its middle); a dict {"status",
    "headers", "error"} that is answered without forwarding, or with forwarding where it says {"after": True}; a callable, which is
    called first and returns one of these.

    Reads are written down in `read_paths`; those of a path in `broken_paths` are answered with its status, those of one in `answers` with
    what it makes of Stripe's own answer. Other writes to a path in `broken_writes` are answered with its status, those to one in
    `write_answers` with what it makes of Stripe's own answer."""

    def __init__(self, simulator_base: str) -> None:
        self.troubles: deque[Any] = deque()
        self.always: Any = "ok"
        self.meter_event_requests: list[dict[str, str]] = []
        self.read_paths: list[str] = []
        self.broken_paths: dict[str, int] = {}
        self.broken_writes: dict[str, int] = {}
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.write_answers: dict[str, Callable[[Any], Any]] = {}
        self._simulator = urlsplit(simulator_base)
        network = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                network.read_paths.append(path)
                if path in network.broken_paths:
                    return self._refuse(network.broken_paths[path])
                status, headers, content = network._forward(self, b"")
                if path in network.answers:
                    content = json.dumps(network.answers[path](json.loads(content))).encode()
                self._reply(status, headers, content)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.path in network.broken_writes:
                    return self._refuse(network.broken_writes[self.path])
                if self.path != "/v1/billing/meter_events" and not self.path.endswith("/usage_records"):
                    status, headers, content = network._forward(self, body)
                    if self.path in network.write_answers:
                        content = json.dumps(network.write_answers[self.path](json.loads(content))).encode()
                    return self._reply(status, headers, content)
                network.meter_event_requests.append({name.lower(): value for name, value in self.headers.items()})
                trouble = network.troubles.popleft() if network.troubles else network.always
                if callable(trouble):
                    trouble = trouble()
                if trouble == "request lost":
                    return self._hang_up()
                made_up = isinstance(trouble, dict)
                if not made_up or trouble.get("after"):
                    status, headers, content = network._forward(self, body)
                if trouble == "answer lost":
                    return self._hang_up()
                if trouble == "answer cut off":
                    self._reply(status, headers, content, cut_off=1)
                    return self._hang_up()
                if trouble == "garbled answer":
                    content = b"<html>gateway</html>"
                if made_up:
                    content = json.dumps({"error": trouble.get("error", {"type": "api_error", "message": "made up"})}).encode()
                    status, headers = trouble["status"], trouble.get("headers", {})
                self._reply(status, headers, content)

            def _refuse(self, status: int) -> None:
                error = {"error": {"type": "invalid_request_error", "message": f"made up for {self.path}"}}
                self._reply(status, {}, json.dumps(error).encode())

            def _hang_up(self) -> None:
                self.close_connection = True

            def _reply(self, status: int, headers: dict[str, str], content: bytes, cut_off: int = 0) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(content) + cut_off))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}"

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self._simulator.hostname or "", self._simulator.port, timeout=20)
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in ("host", "connection", "accept-encoding")}
        connection.request(handler.command, handler.path, body, headers)
        answer = connection.getresponse()
        reply = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return reply


@contextmanager
def unreliable_network(simulator_base: str) -> Iterator[UnreliableNetwork]:
    network = UnreliableNetwork(simulator_base)
    with serving(network._server):
        yield network
