"""sync_subscriptions: what Stripe knows of checkouts and subscriptions becomes links, timelines and discrepancies of ours."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import timedelta

from token_billing.adapters import catalogue, discrepancies, invoiced_periods, ledger, subscriptions
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.stripe_gateway import StripeGateway, StripeTarget
from token_billing.adapters.stripe_gateway.connection import open_gateway
from token_billing.adapters.stripe_gateway.events import EventGateway
from token_billing.errors import BillingError, EventsNotListed, FactsUnknown, StripeRefusesKey, StripeUnavailable
from token_billing.model import Clock
from token_billing.reconciliation import Cause
from token_billing.settings import PushSettings
from token_billing.stages.drain import Drained, Readers, drain
from token_billing.stages.meter_errors import take_back
from token_billing.stages.sweep import LIST_LAG, sweep
from token_billing.windows import Window, require_closed

log = logging.getLogger(__name__)

#: So long after a subscription's end its last invoice is looked for.
LOOKED_AFTER = timedelta(days=2)

#: Freezing waits so long after a window's end for what Stripe knows of it; then it goes on with what is known, and somebody is told.
#: Where Stripe cannot be reached nothing is sent either, and what is learned by then divides what waits to be sent.
LONGEST_WAIT = timedelta(minutes=5)


def sync_subscriptions(
    connect: Connect, target: StripeTarget, clock: Clock, settings: PushSettings, overrides: Mapping[str, str]
) -> Drained:
    """Sweeps Stripe's list for what webhooks missed, handles all that is in the inbox, and follows what the application linked.
    `overrides`: prices that settings name in the catalogue's stead, by its names.

    Safe to run twice at once. Raises EventsNotListed, after what webhooks brought was handled, StripeUnavailable, StripeRefusesKey and
    WrongStripeAccount."""
    try:
        return asyncio.run(_sync(connect, target, clock, settings, overrides, adopt=True))
    finally:
        take_back(connect, clock)


def facts_are_known(
    connect: Connect, target: StripeTarget, window: Window, clock: Clock, settings: PushSettings, overrides: Mapping[str, str]
) -> bool:
    """Whether it is known which subscriptions began, changed and ended up to the window's end; what Stripe lists of it is fetched now.
    True as well where Stripe has no list for us: nobody will ever know more.

    Raises WindowStillOpen, and FactsUnknown where Stripe refuses the key, and once a window has waited for LONGEST_WAIT: what is learned
    later splits what was never attempted."""
    require_closed(window, clock())
    if _cursor_has_passed(connect, window):
        return True
    if clock() < window.end + LIST_LAG:
        return False
    trouble: BillingError
    try:
        asyncio.run(_sync(connect, target, clock, settings, overrides, adopt=False))
        if _cursor_has_passed(connect, window):
            return True
        trouble = StripeUnavailable("by Stripe's own clock, that time has not come yet: see to this machine's clock.")
    except EventsNotListed as refusal:
        log.warning("%s", refusal)
        return True
    except (StripeUnavailable, StripeRefusesKey) as refusal:
        trouble = refusal
    if isinstance(trouble, StripeUnavailable) and clock() < window.end + LONGEST_WAIT:
        log.warning("Stripe's events up to %s cannot be had yet: %s", window.end, trouble)
        return False
    raise FactsUnknown(
        f"Stripe's list of events up to {window.end:%Y-%m-%dT%H:%MZ} cannot be had, and the run goes on without: {trouble} Plan changes of "
        "that hour are not known; what is learned later splits what was not sent by then, and the rest becomes discrepancies."
    ) from trouble


def _cursor_has_passed(connect: Connect, window: Window) -> bool:
    with session(connect) as db:
        known = subscriptions.handled_until(db)  # a sweep may have been killed before its events were handled
    # safeguard: the facts up to the window's end
    return known is not None and known >= window.end


async def _sync(
    connect: Connect, target: StripeTarget, clock: Clock, settings: PushSettings, overrides: Mapping[str, str], *, adopt: bool
) -> Drained:
    with session(connect) as db:
        identity = ledger.identity(db)
        async with open_gateway(EventGateway, target) as events, open_gateway(StripeGateway, target) as usage:
            ledger.pin_account(db, identity.account, await events.account(), clock())
            metered_prices = catalogue.metered_price_ids(db, overrides)
            not_listed = None
            try:
                await sweep(db, events, clock)
            except (EventsNotListed, StripeUnavailable) as refusal:  # what webhooks brought is handled all the same
                not_listed = refusal
            drained = await drain(db, Readers(events, settings), metered_prices, clock, adopt=adopt)
            await _look_after_last_invoices(db, usage, clock)
            if not_listed:
                raise not_listed
            return drained


async def _look_after_last_invoices(db: Connection, usage: StripeGateway, clock: Clock) -> None:
    """An end without an invoice is told: Stripe then drops the usage since the one before. (Drafts are close_billing_periods' to hold.)"""
    for last in subscriptions.endings(db, clock() - LOOKED_AFTER, clock()):
        found = await usage.invoiced_periods(last.usage_item_id, last.subscription_id, last.period.start, clock())
        with db.transaction():
            invoiced_periods.note_invoiced_periods(db, found)
        is_invoiced = any(one.period.start < last.billed_until <= one.period.end for one in found)
        if not is_invoiced and clock() > last.ended_at + LIST_LAG:
            details = (
                f"it ended at {last.ended_at:%Y-%m-%dT%H:%M:%SZ} without a last invoice (cancel with invoice_now), so Stripe bills "
                f"nothing of what was used since {last.period.start:%Y-%m-%dT%H:%M:%SZ}; invoice it by hand, see the runbook under "
                '"Cancellations"'
            )
            discrepancies.note(
                db, Cause.CANCELLED_WITHOUT_INVOICE, details, clock(), tenant_id=last.tenant_id, stripe_id=last.subscription_id
            )
