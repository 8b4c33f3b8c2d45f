"""sweep: what webhooks missed is fetched from Stripe's list of events."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from token_billing.adapters import inbox, subscriptions
from token_billing.adapters.database import Connection
from token_billing.adapters.stripe_gateway.events import EventGateway
from token_billing.errors import BadEvent
from token_billing.model import Clock
from token_billing.stripe_events import StripeEvent

log = logging.getLogger(__name__)

#: Stripe's list is eventually consistent, without a published bound: what it shows of the last minute is not taken for all there is.
LIST_LAG = timedelta(minutes=1)

#: What was listed lately is listed again: an event that appeared late is found all the same.
OVERLAP = timedelta(minutes=10)

#: Stripe keeps events for 30 days (API reference, events).
RETENTION = timedelta(days=30) - timedelta(minutes=5)


async def sweep(db: Connection, stripe: EventGateway, clock: Clock) -> int:
    """Puts every listed event since the last sweep into the inbox, once each, and advances the cursor; returns how many were news.

    Raises EventsNotListed where there is no list, StripeUnavailable or StripeRefusesKey as every read may."""
    began = clock()
    until, known = began - LIST_LAG, subscriptions.cursor(db)
    if known and until - known > RETENTION:
        log.warning("events between %s and %s are listed no more; subscriptions are taken as they are now", known, until - RETENTION)
    since = max(known - OVERLAP, until - RETENTION) if known else until - RETENTION
    events = await stripe.events(since, began)
    if stripe.server_time is not None:  # where our clock is ahead of Stripe's, what happens there from now on lies before it
        until = min(until, stripe.server_time - LIST_LAG)
    with db.transaction():
        news = _stored(db, events, clock())
        # safeguard: the cursor lags behind
        subscriptions.advance_cursor(db, until)
    if news:
        log.info("%d events found that no webhook had brought", news)
    return news


def _stored(db: Connection, events: Sequence[StripeEvent], now: datetime) -> int:
    """Keeps the events; one that no database can hold, or of the mode that is not ours, is told of and holds no other up."""
    try:
        return inbox.store_all(db, events, "sweep", now)
    except BadEvent:
        return sum(_kept(db, event, now) for event in events)


def _kept(db: Connection, event: StripeEvent, now: datetime) -> bool:
    try:
        return inbox.store_all(db, [event], "sweep", now) == 1
    except BadEvent as bad:
        log.error("%s", bad)
        return False
