"""receive_event: what is posted to the webhook is verified, understood and kept once. Nothing else is done here; a DAG handles it."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum

from token_billing.adapters import inbox
from token_billing.adapters.stripe_gateway.api_version import API_VERSION
from token_billing.adapters.stripe_gateway.webhook_signature import verify
from token_billing.errors import BadEvent
from token_billing.model import Clock
from token_billing.stripe_events import METER_ERROR_EVENTS, OLDEST_API_VERSION, SNAPSHOT_EVENTS, event_of, is_readable

#: Takes a connection for the block, from a pool.
AsyncConnect = Callable[[], AbstractAsyncContextManager[inbox.AsyncConnection]]

#: Stripe's events are nested about ten deep; what is read here, and by Postgres, must not be without end.
MOST_NESTED = 64


class Received(StrEnum):
    """What became of an event that Stripe signed: it is answered with 200 in each case."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    #: Of a type that nobody here wants.
    IGNORED = "ignored"


async def receive_event(connect: AsyncConnect, body: bytes, signature: str | None, secrets: Sequence[str], clock: Clock) -> Received:
    """Keeps the event in the body, once; `signature` is the header Stripe-Signature.

    Raises BadSignature and BadEvent for what is refused for good; NoWebhookSecret, LedgerNotReady and whatever connecting raises where it
    is not the sender's fault. Nothing is kept then."""
    now = clock()
    verify(body, signature, secrets, now)  # before anything in the body is believed
    event = event_of(_parsed(body))
    if not is_readable(event, API_VERSION):
        raise BadEvent(
            f"event {event.id} is of API version {event.api_version}; this code reads {OLDEST_API_VERSION} to {API_VERSION}: make the "
            "webhook endpoint with the DAG set_up_stripe, which fixes its version, and remove the other one at Stripe"
        )
    if event.type not in SNAPSHOT_EVENTS + METER_ERROR_EVENTS:
        return Received.IGNORED
    async with connect() as db:
        return Received.STORED if await inbox.store(db, event, "webhook", now) else Received.DUPLICATE


def _parsed(body: bytes) -> object:
    try:
        payload: object = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadEvent(f"the body is not JSON: {error}") from error
    # safeguard: nested no deeper than can be read
    if _is_nested_deeper(payload, MOST_NESTED):
        raise BadEvent(f"the body is nested more than {MOST_NESTED} deep")
    return payload


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _is_nested_deeper(payload: object, most: int) -> bool:
    level = [payload]
    for _ in range(most):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container if isinstance(container, list) else ())
        ]
        if not level:
            return False
    return True
