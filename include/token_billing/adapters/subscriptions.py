"""Subscriptions, links and timelines: typed functions over `sql/subscriptions.sql`. None of them opens or ends a transaction."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from token_billing.adapters.database import Connection
from token_billing.adapters.queries import queries
from token_billing.linking import Checkout, Link
from token_billing.periods import BillingPeriod
from token_billing.stripe_events import StripeEvent, event_of
from token_billing.subscriptions import BilledPeriod, differ_from

SUBSCRIPTIONS = queries("subscriptions.sql")


def take_turn(db: Connection) -> None:
    """Waits until nobody else works out what follows from events; must be the first statement of its transaction."""
    db.execute(SUBSCRIPTIONS["take_turn"])


def cursor(db: Connection) -> datetime | None:
    """Until when every event that Stripe lists is known; None before the first sweep."""
    found = db.execute(SUBSCRIPTIONS["cursor"]).fetchone()
    return found[0] if found else None


def handled_until(db: Connection) -> datetime | None:
    """Until when all that follows from Stripe's list of events is known here: a sweep that was killed before its events were handled
    leaves them in the inbox. None before the first sweep."""
    found = db.execute(SUBSCRIPTIONS["handled_until"]).fetchone()
    return found[0] if found else None


def advance_cursor(db: Connection, until: datetime) -> None:
    """Every event until then is in the inbox."""
    db.execute(SUBSCRIPTIONS["advance_cursor"], {"until": until})


def unhandled_events(db: Connection, most: int) -> list[StripeEvent]:
    """Events that nothing has followed from yet, the oldest first."""
    return [event_of(payload) for (payload,) in db.execute(SUBSCRIPTIONS["unhandled_events"], {"most": most})]


def note_handled(db: Connection, events: Sequence[StripeEvent], now: datetime) -> None:
    """What follows from the events is done."""
    db.execute(SUBSCRIPTIONS["handled"], {"ids": [event.id for event in events], "now": now})


def subscriptions_to_look_at(db: Connection, now: datetime, most: int) -> list[str]:
    """Subscriptions that the application gave its tenants and that nobody follows yet, or of which no news came for long."""
    return [found for (found,) in db.execute(SUBSCRIPTIONS["subscriptions_to_look_at"], {"now": now, "most": most})]


def store_subscription(db: Connection, subscription: Mapping[str, Any], asked_at: datetime) -> None:
    """Keeps a subscription as Stripe showed it, unless newer news of it is kept."""
    parameters = {"id": subscription["id"], "payload": Jsonb(subscription), "asked_at": asked_at}
    db.execute(SUBSCRIPTIONS["store_subscription"], parameters)


def tenant_of(db: Connection, claims: Sequence[str], customer_id: str | None) -> str | None:
    """The first of the claimed tenants that exists, else the one whose customer it is."""
    found = db.execute(SUBSCRIPTIONS["tenant_of"], {"claims": list(claims), "customer_id": customer_id or ""}).fetchone()
    return found[0] if found else None


def add_checkout(db: Connection, checkout: Checkout) -> None:
    """Keeps a checkout, once."""
    db.execute(SUBSCRIPTIONS["add_checkout"], vars(checkout))


def checkouts_of_nobody(db: Connection) -> list[StripeEvent]:
    """Checkouts that no tenant was found for when they came."""
    return [event_of(payload) for (payload,) in db.execute(SUBSCRIPTIONS["checkouts_of_nobody"])]


def settle_checkout(db: Connection, event_id: str, now: datetime) -> None:
    """A tenant was found for a checkout after all."""
    db.execute(SUBSCRIPTIONS["settle_checkout"], {"event_id": event_id, "now": now})


def subscriptions_of_customer(db: Connection, customer_id: str) -> list[str]:
    """The followed subscriptions of a customer."""
    return [found for (found,) in db.execute(SUBSCRIPTIONS["subscriptions_of_customer"], {"customer_id": customer_id})]


def tenants_of(db: Connection, subscription_ids: Collection[str], adopted_ids: Collection[str]) -> list[str]:
    """The tenants that the subscriptions bill or were bought for; those to be adopted, as the application says."""
    parameters = {"ids": list(subscription_ids), "adopted_ids": list(adopted_ids)}
    return sorted(found for (found,) in db.execute(SUBSCRIPTIONS["tenants_of_subscriptions"], parameters))


def tenant_columns(db: Connection, tenant_id: str) -> tuple[str, str, str]:
    """Customer, subscription and item that the application's table names, locked; empty where it names none."""
    found = db.execute(SUBSCRIPTIONS["tenant_columns"], {"tenant_id": tenant_id}).fetchone()
    return found if found else ("", "", "")


def checkouts_of(db: Connection, tenant_id: str) -> list[Checkout]:
    """All checkouts of a tenant."""
    return [Checkout(*row) for row in db.execute(SUBSCRIPTIONS["checkouts_of"], {"tenant_id": tenant_id})]


def links_of(db: Connection, tenant_id: str) -> list[tuple[str, str, str | None]]:
    """Subscription, customer and checkout event of a tenant's links, in the order in which they were made."""
    return db.execute(SUBSCRIPTIONS["links_of"], {"tenant_id": tenant_id}).fetchall()


def known_subscriptions(db: Connection, subscription_ids: Collection[str]) -> list[tuple[Mapping[str, Any], datetime]]:
    """Subscriptions as last read, and when."""
    return db.execute(SUBSCRIPTIONS["known_subscriptions"], {"ids": list(subscription_ids)}).fetchall()


def subscription_events(db: Connection, subscription_ids: Collection[str]) -> list[StripeEvent]:
    """All that events told of subscriptions."""
    found = db.execute(SUBSCRIPTIONS["subscription_events"], {"ids": list(subscription_ids)})
    return [event_of(payload) for (payload,) in found]


def set_link(db: Connection, tenant_id: str, link: Link, linked_at: datetime, ended_at: datetime | None) -> bool:
    """Links a subscription to a tenant; False where it bills another one."""
    parameters = {
        "subscription_id": link.subscription_id,
        "tenant_id": tenant_id,
        "customer_id": link.customer_id,
        "checkout_event_id": link.checkout and link.checkout.event_id,
        "linked_at": linked_at,
        "ended_at": ended_at,
    }
    return db.execute(SUBSCRIPTIONS["set_link"], parameters).rowcount == 1


def set_timeline(db: Connection, tenant_id: str, links: Collection[str], periods: Sequence[BilledPeriod]) -> datetime | None:
    """Makes a tenant's timeline what it is, and drops links that are none any more; returns from when on it differs from what it was."""
    known = {_billed(*row): period_id for period_id, *row in db.execute(SUBSCRIPTIONS["periods_of"], {"tenant_id": tenant_id})}
    gone = [period_id for period, period_id in known.items() if period not in set(periods)]
    db.execute(SUBSCRIPTIONS["drop_periods"], {"ids": gone})
    db.execute(SUBSCRIPTIONS["drop_links"], {"tenant_id": tenant_id, "kept": list(links)})
    for one in periods:
        if one not in known:
            parameters = {**one._asdict(), "tenant_id": tenant_id, "period_start": one.period.start, "period_end": one.period.end}
            db.execute(SUBSCRIPTIONS["add_period"], parameters)
    return differ_from(list(known), periods)


def set_tenant_columns(db: Connection, tenant_id: str, customer_id: str, subscription_id: str, usage_item_id: str) -> None:
    """The application's own columns name the tenant's present link."""
    parameters = {
        "tenant_id": tenant_id,
        "customer_id": customer_id,
        "subscription_id": subscription_id,
        "usage_item_id": usage_item_id or None,
    }
    db.execute(SUBSCRIPTIONS["set_tenant_columns"], parameters)


def unknown_prices(db: Connection) -> list[str]:
    """Prices of timelines whose meter or terms nobody has asked Stripe about yet."""
    return [found for (found,) in db.execute(SUBSCRIPTIONS["unknown_prices"])]


def overtaken(db: Connection, since: datetime) -> dict[str, datetime]:
    """Tenants whose reports a push may have sent by what was known before news that was handled since then; and from when on."""
    return dict(db.execute(SUBSCRIPTIONS["overtaken"], {"since": since}).fetchall())


def items_of(db: Connection, subscription_id: str) -> list[str]:
    """The items that a subscription bills, or billed, a tenant's usage by."""
    return [found for (found,) in db.execute(SUBSCRIPTIONS["items_of"], {"subscription_id": subscription_id})]


def note_unusable_meters(db: Connection, unusable: Iterable[tuple[str, str]]) -> None:
    """Remembers meters that no usage can be billed from, and why."""
    for meter_id, problem in unusable:
        db.execute(SUBSCRIPTIONS["note_unusable_meter"], {"meter_id": meter_id, "problem": problem})


class Ending(NamedTuple):
    """The last part that a subscription billed of a tenant's timeline before it ended."""

    subscription_id: str
    tenant_id: str
    usage_item_id: str
    period: BillingPeriod
    billed_until: datetime
    ended_at: datetime


def endings(db: Connection, since: datetime, until: datetime) -> list[Ending]:
    """Subscriptions that ended in that time and whose last invoice is not known yet, nor told that there is none."""
    return [
        Ending(subscription_id, tenant_id, item, BillingPeriod(start, end), *rest)
        for subscription_id, tenant_id, item, start, end, *rest in db.execute(SUBSCRIPTIONS["endings"], {"since": since, "until": until})
    ]


def _billed(
    subscription_id: str,
    customer_id: str,
    usage_item_id: str,
    price_id: str,
    meter_id: str | None,
    period_start: datetime,
    period_end: datetime,
    billed_from: datetime,
    billed_until: datetime,
) -> BilledPeriod:
    period = BillingPeriod(period_start, period_end)
    return BilledPeriod(subscription_id, customer_id, usage_item_id, price_id, meter_id, period, billed_from, billed_until)
