"""The webhook's application behind a real HTTP server, in a thread of the test's process."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import uvicorn

from billing_airflow.webhook import webhook_app
from signed_events import body_of, signed


class WebhookServer:
    """What a test asks of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20)

    def post(self, body: bytes | Iterator[bytes], headers: Mapping[Any, Any] | None = None) -> httpx.Response:
        return self._client.post("/webhook", content=body, headers=dict(headers or {}))

    def deliver(self, event: object, **how: Any) -> int:
        """Posts the event as Stripe does, signed, and returns the status; whatever happens, the answer is one that tells nothing."""
        body = body_of(event)
        return told(self.post(body, signed(body, **how)))


def told(answer: httpx.Response) -> int:
    """The status, once it is clear that the answer is one of the four sentences."""
    said = json.loads(answer.content)
    assert said == {"received": True} if answer.status_code == 200 else list(said) == ["error"], answer.text
    assert "Traceback" not in answer.text and len(answer.content) < 120
    return answer.status_code


@contextmanager
def webhook_server() -> Iterator[WebhookServer]:
    """A fresh application: nothing of an earlier one's secrets or connections."""
    server = uvicorn.Server(uvicorn.Config(webhook_app(), host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield WebhookServer(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)


def kept_events(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as db:
        return db.execute("SELECT event_id, event_type, came_by FROM billing.stripe_event ORDER BY event_id").fetchall()
