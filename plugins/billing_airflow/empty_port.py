"""Makes the test button of connections without a port work.

Airflow's connections page (3.3.2) sends an empty port as 0, and its API then takes the tested connection for another one than it has
stored, refuses to use the stored key, and answers 400. Here 0 becomes null again on its way in; where Airflow sends null by itself,
nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class EmptyPortIsNull:
    """Wraps Airflow's own application; touches one path of it."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/api/v2/connections/test"):
            receive = _with_empty_port_as_null(receive)
        await self._app(scope, receive, send)


def _with_empty_port_as_null(receive: Receive) -> Receive:
    is_read = False

    async def read() -> Message:
        nonlocal is_read
        message = await receive()
        if is_read or message["type"] != "http.request":
            return message
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            if message["type"] != "http.request":
                return message  # the caller has gone
            body += message.get("body", b"")
        is_read = True
        return {"type": "http.request", "body": _null_for_zero(body), "more_body": False}

    return read


def _null_for_zero(body: bytes) -> bytes:
    try:
        tested = json.loads(body)
    except ValueError:
        return body
    if not isinstance(tested, dict) or tested.get("port") != 0:
        return body
    return json.dumps({**tested, "port": None}).encode()
