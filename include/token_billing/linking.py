"""Whose subscription a checkout bought: which of a tenant's subscriptions bills it. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, order=True)
class Checkout:
    """A completed checkout of a tenant's that bought a subscription."""

    happened_at: datetime
    event_id: str
    tenant_id: str
    subscription_id: str
    customer_id: str


@dataclass(frozen=True)
class Link:
    """A subscription that bills, or billed, a tenant's usage. `checkout`: None where the application linked it."""

    subscription_id: str
    customer_id: str
    checkout: Checkout | None


def claimed_tenants(session: Mapping[str, Any]) -> list[str]:
    """Which tenants a checkout session may name, the surest first: the client reference, then its metadata. Its customer comes last,
    which the caller knows better."""
    metadata = session.get("metadata") or {}
    return [str(claim) for claim in (session.get("client_reference_id"), metadata.get("tenant_id")) if claim]


def links_of(
    linked_by_application: Link | None, checkouts: Iterable[Checkout], ended_at: Mapping[str, datetime]
) -> tuple[list[Link], list[Checkout]]:
    """A tenant's links, one after another (the last is the present one), and the checkouts that conflict with them. The same for the
    same checkouts in whatever order they were learned: who is linked is never relinked by a later checkout, unless the subscription it
    was linked to had ended by then."""
    links = [linked_by_application] if linked_by_application else []
    conflicts = []
    for checkout in sorted(set(checkouts)):
        present = links[-1] if links else None
        if present and checkout.subscription_id in {link.subscription_id for link in links}:
            continue
        # safeguard: a linked tenant is not relinked
        if present and not _had_ended(present, checkout.happened_at, ended_at):
            conflicts.append(checkout)
        else:
            links.append(Link(checkout.subscription_id, checkout.customer_id, checkout))
    return links, conflicts


def all_links_of(
    columns: Link, linked: Sequence[Link], checkouts: Sequence[Checkout], ended_at: Mapping[str, datetime]
) -> tuple[list[Link], list[Checkout]]:
    """The same with what was linked before (`linked`, in that order) and with what the tenant's own columns name: where no checkout
    bought that, the application wrote it, and it counts. What was linked before stays, for the usage of its time: every bought one, and
    what the application linked once it has ended, since before that it may have been a mistake."""
    present = next((link.checkout for link in linked if link.subscription_id == columns.subscription_id), None)
    others = [link for link in linked if link.subscription_id != columns.subscription_id]
    if columns.subscription_id and not present:
        links, conflicts = links_of(columns, checkouts, ended_at)
        return [link for link in others if link.checkout or link.subscription_id in ended_at] + links, conflicts
    # safeguard: what the application linked stays when a customer comes back
    before = [link for link in others if not link.checkout and link.subscription_id in ended_at]
    if present:
        before = [link for link in before if _had_ended(link, present.happened_at, ended_at)]
    links, conflicts = links_of(before[-1] if before else None, checkouts, ended_at)
    return before[:-1] + links, conflicts


def _had_ended(link: Link, by: datetime, ended_at: Mapping[str, datetime]) -> bool:
    end = ended_at.get(link.subscription_id)
    return end is not None and end <= by
