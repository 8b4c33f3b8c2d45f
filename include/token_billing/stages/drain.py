"""drain: what follows from the events in the inbox, whatever their order; each is handled once, and none holds another up."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import psycopg
from aiolimiter import AsyncLimiter

from token_billing.adapters import discrepancies, invoiced_periods, sending, subscriptions
from token_billing.adapters.database import Connection
from token_billing.adapters.stripe_gateway.events import EventGateway
from token_billing.adapters.stripe_gateway.objects import told_of_invoice
from token_billing.linking import Checkout, claimed_tenants
from token_billing.model import Clock
from token_billing.periods import InvoicedPeriod
from token_billing.reconciliation import Cause
from token_billing.settings import PushSettings
from token_billing.stages.meter_errors import apply_meter_error
from token_billing.stages.relink import relink
from token_billing.stripe_events import METER_ERROR_EVENTS, StripeEvent

Done = TypeVar("Done")

log = logging.getLogger(__name__)

#: Events of one transaction, and subscriptions that are adopted in one run: five minutes of them at Stripe's rate of reads.
MOST_EVENTS = 500
MOST_ADOPTED = 5000

#: A push that goes on while news is handled ends within the hour; a day, since the syncs after it may fail.
LOOKS_BACK = timedelta(days=1)


@dataclass(frozen=True)
class Readers:
    """The way to Stripe that a drain needs, and how fast it may read."""

    events: EventGateway
    settings: PushSettings


@dataclass
class Drained:
    """How many events were handled, and the tenants whose timeline changed."""

    event_count: int
    tenants: set[str]


async def drain(db: Connection, stripe: Readers, metered_prices: Collection[str], clock: Clock, *, adopt: bool) -> Drained:
    """Handles every event that is in the inbox; with `adopt`, subscriptions that the application linked are followed from now on.

    Raises StripeUnavailable or StripeRefusesKey, with nothing noted as handled that was not."""
    drained = Drained(0, set())
    adopted, adopted_count = subscriptions.subscriptions_to_look_at(db, clock(), MOST_EVENTS) if adopt else [], 0
    is_first = True  # without any news, a tenant may have come for whom there was a checkout
    while (events := subscriptions.unhandled_events(db, MOST_EVENTS)) or adopted or is_first:
        asked_at = clock()
        # What an invoice says is in the event itself: at the end of a month, one read for each would take longer than an hour.
        about = {event.subscription_id for event in events if event.subscription_id and not event.type.startswith("invoice.")}
        about |= set(adopted)
        for event in events:
            if event.type == "customer.deleted":
                about.update(subscriptions.subscriptions_of_customer(db, event.customer_id or ""))
        found = await _in_turn(stripe.settings, about, stripe.events.subscription)
        errors = {event.id for event in events if event.type in METER_ERROR_EVENTS}
        bodies = await _in_turn(stripe.settings, errors, stripe.events.core_event)
        changed: dict[str, datetime] = {}
        told: list[InvoicedPeriod] = []
        with db.transaction():
            subscriptions.take_turn(db)
            for subscription_id, subscription in found.items():
                if subscription:
                    store = partial(subscriptions.store_subscription, db, subscription, asked_at)
                    _carefully(db, clock(), store, stripe_id=subscription_id)
            for event in events:
                _carefully(db, clock(), partial(_apply, db, event, bodies.get(event.id), told, clock()), stripe_id=event.id)
            invoiced_periods.note_invoiced_periods(db, told)  # all at once, in an order that keeps others who note some from a deadlock
            about |= _found_tenants(db, clock())
            for tenant_id in subscriptions.tenants_of(db, about, adopted):
                work = partial(relink, db, tenant_id, metered_prices, clock())
                if since := _carefully(db, clock(), work, tenant_id=tenant_id):
                    changed[tenant_id] = since
            discrepancies.note_beyond_the_facts(db, changed, clock())
            subscriptions.note_handled(db, events, clock())
        drained.tenants |= changed.keys()
        drained.event_count += len(events)
        adopted_count += len(adopted)
        adopted = subscriptions.subscriptions_to_look_at(db, clock(), MOST_EVENTS) if adopted and adopted_count < MOST_ADOPTED else []
        is_first = False
    with db.transaction():
        # safeguard: news that overtakes a push
        discrepancies.note_beyond_the_facts(db, subscriptions.overtaken(db, clock() - LOOKS_BACK), clock())
    await _learn_prices(db, stripe, clock)
    if drained.event_count:
        log.info("%d events handled; the billing of %d tenants changed", drained.event_count, len(drained.tenants))
    return drained


def _apply(db: Connection, event: StripeEvent, body: Mapping[str, Any] | None, told: list[InvoicedPeriod], now: datetime) -> None:
    """What an event tells beside the subscription it is about, which is looked at anew in any case; what it tells of invoices is added to
    what is `told` of those."""
    if event.type == "checkout.session.completed":
        _note_checkout(db, event, now)
    elif event.type.startswith("invoice.") and event.subscription_id:
        items = subscriptions.items_of(db, event.subscription_id)
        told += told_of_invoice(event.object, items, event.happened_at)
    elif event.type in METER_ERROR_EVENTS:
        apply_meter_error(db, event, body, now)


def _note_checkout(db: Connection, event: StripeEvent, now: datetime) -> bool:
    session = event.object
    if session.get("mode", "subscription") != "subscription" or not event.subscription_id or not event.customer_id:
        return False
    claims = claimed_tenants(session)
    tenant_id = subscriptions.tenant_of(db, claims, event.customer_id)
    if tenant_id is None:
        details = f"checkout {session.get('id')} bought {event.subscription_id} for {claims or event.customer_id}, which no tenant is"
        discrepancies.note(db, Cause.UNKNOWN_TENANT, details, now, stripe_id=event.id)
        return False
    subscriptions.add_checkout(db, Checkout(event.happened_at, event.id, tenant_id, event.subscription_id, event.customer_id))
    return True


def _found_tenants(db: Connection, now: datetime) -> set[str]:
    """Checkouts whose tenant is known by now; returns their subscriptions."""
    found = set()
    for event in subscriptions.checkouts_of_nobody(db):
        if _note_checkout(db, event, now):
            subscriptions.settle_checkout(db, event.id, now)
            found.add(event.subscription_id or "")
    return found


def _carefully(
    db: Connection, now: datetime, work: Callable[[], Done], *, stripe_id: str | None = None, tenant_id: str | None = None
) -> Done | None:
    """Does it or nothing of it: what cannot be applied becomes a discrepancy and holds nothing else up."""
    try:
        with db.transaction():
            return work()
    except psycopg.OperationalError:  # the database went away, or others were in the way: the whole drain is tried again
        raise
    except Exception as trouble:
        log.exception("what follows from the news of %s could not be applied", stripe_id or f"tenant {tenant_id!r}")
        details = f"{type(trouble).__name__}: {trouble}"
        discrepancies.note(db, Cause.EVENT_NOT_APPLIED, details, now, stripe_id=stripe_id, tenant_id=tenant_id)
        return None


async def _in_turn(settings: PushSettings, ids: Iterable[str], read: Any) -> dict[str, Mapping[str, Any] | None]:
    """Reads objects by id, as fast as the setting lets."""
    reads, free = AsyncLimiter(settings.reads_per_second, 1), asyncio.Semaphore(settings.concurrency)

    async def one(object_id: str) -> tuple[str, Mapping[str, Any] | None]:
        async with free:
            await reads.acquire()
            return object_id, await read(object_id)

    return dict(await asyncio.gather(*(one(object_id) for object_id in sorted(ids))))


async def _learn_prices(db: Connection, stripe: Readers, clock: Clock) -> None:
    """Asks Stripe, once for each price of a timeline, about its meter and terms."""
    unknown = subscriptions.unknown_prices(db)
    if unknown:
        prices = [await stripe.events.priced(price_id) for price_id in unknown]
        with db.transaction():
            sending.add_prices(db, [(one.meter, one.price) for one in prices], clock())
            subscriptions.note_unusable_meters(db, [one.unusable for one in prices if one.unusable])
