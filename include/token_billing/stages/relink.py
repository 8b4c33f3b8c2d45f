"""relink: a tenant's links and timeline, worked out anew from all that Stripe told."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from token_billing.adapters import discrepancies, subscriptions
from token_billing.adapters.database import Connection
from token_billing.linking import Link, all_links_of
from token_billing.reconciliation import Cause
from token_billing.stripe_events import StripeEvent
from token_billing.subscriptions import BilledPeriod, Choice, ItemSnapshot, Snapshot, Told, billed_periods, snapshot_of, timeline

_TOLD = {
    "customer.subscription.created": Told.CREATED,
    "customer.subscription.updated": Told.UPDATED,
    "customer.subscription.deleted": Told.DELETED,
}


def relink(db: Connection, tenant_id: str, metered_prices: Collection[str], now: datetime) -> datetime | None:
    """Brings the tenant's links, timeline and own columns to what follows from every event and reading known; returns from when on the
    timeline is another one. What does not fit together becomes discrepancies, and those that are no more are settled."""
    customer_id, subscription_id, usage_item_id = subscriptions.tenant_columns(db, tenant_id)
    checkouts = subscriptions.checkouts_of(db, tenant_id)
    known = {one.event_id: one for one in checkouts}
    linked = [Link(one, customer, known.get(event_id or "")) for one, customer, event_id in subscriptions.links_of(db, tenant_id)]
    candidates = {subscription_id, *(one.subscription_id for one in linked), *(one.subscription_id for one in checkouts)} - {""}
    snapshots, ended_at = _known(db, candidates, now)
    links, conflicts = all_links_of(Link(subscription_id, customer_id, None), linked, checkouts, ended_at)
    conflicting = {one.subscription_id for one in conflicts} - {link.subscription_id for link in links}
    mine = []
    for link in links:
        linked_at = link.checkout.happened_at if link.checkout else now
        if not snapshots[link.subscription_id]:
            details = "Stripe shows no such subscription, so its boundaries are unknown; usage goes to the item that `tenants` names"
            discrepancies.note(db, Cause.UNKNOWN_SUBSCRIPTION, details, now, tenant_id=tenant_id, stripe_id=link.subscription_id)
        elif subscriptions.set_link(db, tenant_id, link, linked_at, ended_at.get(link.subscription_id)):
            mine.append(link)
        else:
            conflicting.add(link.subscription_id)
    choose = _choice(metered_prices, usage_item_id)
    billed = [billed_periods(snapshots[link.subscription_id], choose) for link in reversed(mine)]
    merged, overlapping = timeline(billed)
    changed = subscriptions.set_timeline(db, tenant_id, [link.subscription_id for link in mine], merged)
    if mine:
        _set_columns(db, tenant_id, mine[-1], billed[0], usage_item_id if mine[-1].subscription_id == subscription_id else "", now)
    _note_conflicts(db, tenant_id, conflicting, overlapping, now)
    discrepancies.settle_gone(db, Cause.EVENT_NOT_APPLIED, tenant_id, [], now)  # what failed before was tried again with every drain
    return changed


def _known(db: Connection, candidates: Collection[str], now: datetime) -> tuple[dict[str, list[Snapshot]], dict[str, datetime]]:
    """All snapshots by subscription, and when those that have ended did."""
    found: dict[str, list[Snapshot]] = defaultdict(list)
    ended_at: dict[str, datetime] = {}

    def add(payload: object, snapshot: Snapshot) -> None:
        found[snapshot.subscription_id].append(snapshot)
        if isinstance(payload, dict) and (ended := payload.get("ended_at")):
            ended_at[snapshot.subscription_id] = datetime.fromtimestamp(ended, UTC)

    for event in subscriptions.subscription_events(db, candidates):
        if snapshot := _snapshot(db, event, now):
            add(event.object, snapshot)
    for payload, asked_at in subscriptions.known_subscriptions(db, candidates):
        add(payload, snapshot_of(payload, Told.READ, asked_at))
    return found, ended_at


def _snapshot(db: Connection, event: StripeEvent, now: datetime) -> Snapshot | None:
    try:
        return snapshot_of(event.object, _TOLD[event.type], event.happened_at, event.id, event.previous_attributes)
    except (KeyError, TypeError, ValueError) as bad:
        details = f"{event.type} is not as Stripe describes it ({type(bad).__name__}: {bad})"
        discrepancies.note(db, Cause.EVENT_NOT_APPLIED, details, now, stripe_id=event.id)
        return None


def _choice(metered_prices: Collection[str], usage_item_id: str) -> Choice:
    """Of several metered items the one whose price is in the catalogue; where no catalogue is known, the one that the application
    named, else the only one."""

    def choose(items: Sequence[ItemSnapshot]) -> ItemSnapshot | None:
        catalogued = [one for one in items if one.price_id in metered_prices]
        named = [one for one in items if one.id == usage_item_id]
        alone = list(items) if not metered_prices and len(items) == 1 else []
        return next(iter([*catalogued, *named, *alone]), None)

    return choose


def _set_columns(db: Connection, tenant_id: str, link: Link, billed: Sequence[BilledPeriod], item_before: str, now: datetime) -> None:
    usage_item_id = billed[-1].usage_item_id if billed else item_before
    subscriptions.set_tenant_columns(db, tenant_id, link.customer_id, link.subscription_id, usage_item_id)
    if billed:
        discrepancies.settle_gone(db, Cause.NO_METERED_ITEM, tenant_id, [], now)
    else:
        details = "no item of the subscription has the Bundled or the Pure metered price, so the tenant's usage is quarantined"
        discrepancies.note(db, Cause.NO_METERED_ITEM, details, now, tenant_id=tenant_id, stripe_id=link.subscription_id)


def _note_conflicts(
    db: Connection, tenant_id: str, conflicting: Collection[str], overlapping: Sequence[tuple[str, str]], now: datetime
) -> None:
    for subscription_id in sorted(conflicting):
        details = (
            "a checkout bought this subscription for a tenant that another one bills already, or it bills another tenant; cancel one of "
            "them at Stripe, or relink the tenant by its columns in `tenants`"
        )
        discrepancies.note(db, Cause.LINK_CONFLICT, details, now, tenant_id=tenant_id, stripe_id=subscription_id)
    for prevailing, other in overlapping:
        details = f"it would have billed at the same time as {prevailing}, which bills the tenant's usage; cancel one of them at Stripe"
        discrepancies.note(db, Cause.OVERLAPPING_SUBSCRIPTIONS, details, now, tenant_id=tenant_id, stripe_id=other)
    discrepancies.settle_gone(db, Cause.LINK_CONFLICT, tenant_id, conflicting, now)
    discrepancies.settle_gone(db, Cause.OVERLAPPING_SUBSCRIPTIONS, tenant_id, [other for _, other in overlapping], now)
