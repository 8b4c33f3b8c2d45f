"""`POST /api/billing/webhook`, for Stripe: keeps what it signed and answers; a DAG handles it. No login: the signature is the door."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from psycopg_pool import AsyncConnectionPool
from starlette.requests import ClientDisconnect

from billing_airflow.connections import billing_db_parameters
from billing_airflow.webhook_secrets import KeptSecrets
from token_billing.adapters.clock import system_clock
from token_billing.adapters.inbox import AsyncConnection
from token_billing.errors import BadEvent, BadSignature, BillingError
from token_billing.stages.receive_event import Received, receive_event

log = logging.getLogger(__name__)

# The pool tells of every connection it lends at INFO: two lines a webhook would bury the server's log.
logging.getLogger("psycopg.pool").setLevel(logging.WARNING)

#: Stripe's largest events are some ten thousand bytes.
MOST_BYTES = 512 * 1024
#: A sender that does not get its body across within this is not waited for.
READ_SECONDS = 10.0
#: Nor is a database that does not keep an event within this: 503 has Stripe send it again, and it gives an endpoint some ten seconds.
STORE_SECONDS = 5.0
#: Connections that the webhook holds at most, for each process of the API server. Commits that wait for the disk together are written
#: together: where the disk is busy, sixteen keep four times as many events a second as four. A minute later the idle ones are closed.
MOST_CONNECTIONS, IDLE_SECONDS = 16, 60.0


class BodyTooLarge(Exception):
    """The body is larger than any of Stripe's."""


class BodyCutOff(Exception):
    """The sender stopped in the middle of the body."""


class BillingDatabase:
    """Connections for the webhook: opened when the first one is needed, closed again when they are idle for long."""

    def __init__(self) -> None:
        self._pool: AsyncConnectionPool[AsyncConnection] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """One of the connections, for the block. Raises psycopg.Error where there is none, and TimeoutError when it all takes too long;
        what the database was at is cancelled then."""
        if self._pool is None or self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self._pool = AsyncConnectionPool(
                kwargs=_connection_parameters,
                min_size=0,
                max_size=MOST_CONNECTIONS,
                max_idle=IDLE_SECONDS,
                open=False,
                check=AsyncConnectionPool.check_connection,  # one that the database dropped must not cost an event
                timeout=STORE_SECONDS - 1,
                reconnect_timeout=STORE_SECONDS,  # then the next webhook tries anew
                name="webhook",
            )
        if self._pool.closed:
            await self._pool.open()
        async with asyncio.timeout(STORE_SECONDS), self._pool.connection() as connection:
            yield connection


async def _connection_parameters() -> dict[str, Any]:
    # Each statement is a transaction, and none is prepared: a transaction-mode pooler may stand in between.
    return {**await asyncio.to_thread(billing_db_parameters), "autocommit": True, "prepare_threshold": None}


def webhook_app() -> FastAPI:
    """The application, to be mounted at `/api/billing`."""
    app = FastAPI(title="Token billing webhook", openapi_url=None, redirect_slashes=False)
    secrets, database = KeptSecrets(), BillingDatabase()

    @app.post("/webhook")
    async def webhook(request: Request) -> JSONResponse:
        try:
            body = await _body(request)
            signature = request.headers.get("stripe-signature")
            received = await _receive(database, body, signature, secrets)
        except BodyTooLarge:
            log.warning("a webhook was refused: its body is larger than %d bytes", MOST_BYTES)
            return JSONResponse({"error": f"The body is larger than {MOST_BYTES} bytes."}, 413)
        except (BodyCutOff, BadSignature, BadEvent) as refusal:
            log.warning("a webhook was refused: %.1000s", refusal)
            return JSONResponse({"error": "The webhook was refused; the log of Airflow's API server says why."}, 400)
        except (BillingError, psycopg.Error, OSError) as trouble:  # TimeoutError is an OSError
            log.error("a webhook was not kept, and Stripe will send it again: %s: %.1000s", type(trouble).__name__, trouble)
            return JSONResponse({"error": "The webhook cannot be kept now; send it again later."}, 503)
        log.debug("a webhook was received: %s", received)
        return JSONResponse({"received": True})

    return app


async def _receive(database: BillingDatabase, body: bytes, signature: str | None, secrets: KeptSecrets) -> Received:
    known = await secrets.known()
    try:
        return await receive_event(database.connection, body, signature, known, system_clock)
    except BadSignature:
        newest = await secrets.newest()
        if newest == known:
            raise
        return await receive_event(database.connection, body, signature, newest, system_clock)


async def _body(request: Request) -> bytes:
    """The body as it was sent, to the byte. Raises BodyTooLarge, before reading it where its length is announced, and BodyCutOff."""
    # safeguard: a body is never read without end
    if _announced_length(request) > MOST_BYTES:
        raise BodyTooLarge
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in request.stream():
                body += chunk
                # safeguard: a body that does not say its length is cut off
                if len(body) > MOST_BYTES:
                    raise BodyTooLarge
    except (ClientDisconnect, TimeoutError) as cut_off:
        raise BodyCutOff("the sender stopped in the middle of the body") from cut_off
    return bytes(body)


def _announced_length(request: Request) -> int:
    """As the header Content-Length says; 0 where it says nothing that is a number."""
    try:
        return int(request.headers.get("content-length", "0"))
    except ValueError:
        return 0


app = webhook_app()
