"""The ASGI application: one thin route an endpoint, on the raw request, and the control routes.

Parameters are not declared to FastAPI: Stripe's bracket form, its wording and its order of checks are the simulator's own work, and
routes on the raw request answer half again as many calls a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.stripe_simulator.control import Control
from sandbox.stripe_simulator.endpoint import Endpoint
from sandbox.stripe_simulator.gateway import Gateway
from sandbox.stripe_simulator.recording import Recorder
from sandbox.stripe_simulator.resources import ENDPOINTS, LEGACY_ENDPOINTS
from sandbox.stripe_simulator.state import State

#: Accepted when no other is given.
DEFAULT_API_KEY = "sk_test_sandbox"


def create_application(state: State, api_keys: frozenset[str] = frozenset({DEFAULT_API_KEY}), recorder: Recorder | None = None) -> FastAPI:
    """An application over a state. The keys are the secret keys it accepts; no live key may be among them (ValueError)."""
    if live := [key for key in api_keys if "_live_" in key]:
        raise ValueError(f"the simulator never accepts a live key ({live[0][:8]}…)")
    application = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    gateway = Gateway(state, api_keys, recorder)
    application.state.timekeeper = gateway.timekeeper
    for endpoint in (*ENDPOINTS, *LEGACY_ENDPOINTS):
        application.router.add_route(endpoint.path, _route(gateway, endpoint), methods=[endpoint.method])
    for method, path, answer in Control(state, gateway).routes():
        application.router.add_route(path, answer, methods=[method])

    async def unrecognized(request: Request, error: Exception) -> Response:
        if request.url.path.startswith("/simulator/"):
            return JSONResponse({"error": f"there is no {request.method} {request.url.path}"}, 404)
        return await gateway.answer(request, None)

    application.add_exception_handler(404, unrecognized)
    application.add_exception_handler(405, unrecognized)
    return application


def _route(gateway: Gateway, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await gateway.answer(request, endpoint)

    return answer
