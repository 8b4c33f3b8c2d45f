"""The inbox: Stripe's events as they came, each once, however often and by whatever way. Typed functions over `sql/inbox.sql`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

import psycopg
from psycopg.types.json import Jsonb

from token_billing.adapters.database import Connection
from token_billing.adapters.ledger import ADOPT
from token_billing.adapters.queries import queries
from token_billing.errors import BadEvent, LedgerNotReady
from token_billing.stripe_events import StripeEvent

AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]
CameBy = Literal["webhook", "sweep"]

INBOX = queries("inbox.sql")

#: What Postgres says of texts, numbers and sizes that it cannot hold: a NUL, half a surrogate pair, 1e400, an id too long for an index.
_NOT_STORABLE = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, UnicodeEncodeError)


async def store(db: AsyncConnection, event: StripeEvent, came_by: CameBy, now: datetime) -> bool:
    """Keeps the event; False where it is there already. Raises BadEvent for one of the mode that the ledger does not bill, or that
    Postgres cannot hold, and LedgerNotReady where there is no ledger to keep it in."""
    with _explained():
        answer = await db.execute(INBOX["store"], _parameters(event, came_by, now))
        return _is_new(event, await answer.fetchone())


def store_all(db: Connection, events: Sequence[StripeEvent], came_by: CameBy, now: datetime) -> int:
    """Keeps the events and returns how many were not there already. Raises as `store`; all of them are kept, or none."""
    with _explained(), db.transaction(), db.cursor() as cursor:
        cursor.executemany(INBOX["store"], [_parameters(event, came_by, now) for event in events], returning=True)
        return sum(_is_new(event, answer.fetchone()) for event, answer in zip(events, cursor.results(), strict=True)) if events else 0


def _parameters(event: StripeEvent, came_by: CameBy, now: datetime) -> dict[str, Any]:
    return {
        "event_id": event.id,
        "event_type": event.type,
        "happened_at": event.happened_at,
        "livemode": event.livemode,
        "api_version": event.api_version,
        "subscription_id": event.subscription_id,
        "customer_id": event.customer_id,
        "payload": Jsonb(event.payload),
        "came_by": came_by,
        "now": now,
    }


def _is_new(event: StripeEvent, answer: tuple[Any, ...] | None) -> bool:
    if answer is None:
        raise LedgerNotReady(f"the adoption of the database behind `billing_db` was not finished; {ADOPT}")
    pinned_livemode, is_new = answer
    if pinned_livemode not in (None, event.livemode):
        modes = {True: "live", False: "test"}
        raise BadEvent(
            f"event {event.id} is of {modes[event.livemode]} mode, but this ledger bills {modes[pinned_livemode]} mode; remove the "
            f"webhook endpoint of {modes[event.livemode]} mode at Stripe"
        )
    return bool(is_new)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as missing:
        raise LedgerNotReady(f"the database behind `billing_db` has no ledger, or an older one; {ADOPT}") from missing
    except _NOT_STORABLE as error:
        raise BadEvent(f"the event holds what no database can: {error}") from error
