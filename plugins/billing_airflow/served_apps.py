"""What Airflow's API server mounts for this project. Workers load plugins too and serve nothing: what an application needs is imported
with its first request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf

from billing_airflow.empty_port import EmptyPortIsNull

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class ImportedOnFirstRequest:
    """The ASGI application `app` of a module."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._app: Application | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:  # the SDK takes a second, in which the server must go on
            self._app = (await asyncio.to_thread(import_module, self._module)).app
        await self._app(scope, receive, send)


#: Mounted without a login: each application sees to its own door.
FASTAPI_APPS = [
    {"app": ImportedOnFirstRequest("billing_airflow.webhook"), "url_prefix": "/api/billing", "name": "Token billing webhook"},
    {"app": ImportedOnFirstRequest("billing_airflow.statement_pages"), "url_prefix": "/billing/statements", "name": "Billing statements"},
]

#: Pages of the menu; their addresses stand below that of the server itself.
EXTERNAL_VIEWS = [
    {
        "name": "Billing statements",
        "href": f"{urlsplit(conf.get('api', 'base_url', fallback='')).path.rstrip('/')}/billing/statements/",
        "destination": "nav",
        "category": "browse",
        "url_route": "billing-statements",
    }
]

FASTAPI_ROOT_MIDDLEWARES = [{"middleware": EmptyPortIsNull, "args": [], "kwargs": {}, "name": "Test button of connections without a port"}]
