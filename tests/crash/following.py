"""A followed history's own part of its plan: what customers do at Stripe while usage goes on, and when their subscriptions are synced."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from crash.faults import READ_TROUBLES, Kill, RunTroubles

#: The other plan by other items, the other plan as another price of the same item, a plan without tokens, an end with a last invoice, and
#: a checkout.
ChangeKind = Literal["other items", "other price", "no tokens", "leave", "buy"]

#: What may follow each; at first a tenant has a plan that somebody bought, or none that it has left.
_NEXT: dict[ChangeKind, tuple[ChangeKind, ...]] = {
    "no tokens": ("other items", "other items", "leave"),
    "leave": ("buy",),
}
_USUALLY: tuple[ChangeKind, ...] = ("other items", "other items", "other price", "other price", "no tokens", "leave", "leave")

#: Seconds after which Stripe lists an event. Half of the histories know of none; the sweep finds no event that is listed later than ten
#: minutes after it happened.
EVENTS_DELAYS = (0, 0, 0, 20, 50, 90, 240, 500)

#: Seconds for which an invoice is a draft: Stripe's default, three days, or longer than any history.
GRACES = (3600, 3 * 86_400, 365 * 86_400, 365 * 86_400)

#: So often syncs run at once, are killed, or meet trouble when they read.
_AT_ONCE, _KILLED, _TROUBLED = 0.2, 0.35, 0.35


@dataclass(frozen=True)
class Change:
    """A tenant's customer changes something at Stripe at a second since the history's beginning."""

    second: int
    tenant: str
    kind: ChangeKind


@dataclass(frozen=True)
class Sync:
    """Subscriptions are synced at a second since the history's beginning, so often at once; the first of them may be killed."""

    second: int
    kill: Kill | None = None
    troubles: RunTroubles = field(default_factory=RunTroubles)
    at_once: int = 1


@dataclass(frozen=True)
class Following:
    """`changes_and_syncs` are in the order in which they happen. `anchors`: at which second a tenant's first billing period ends, where
    that is no month after its beginning. `unsubscribed`: tenants without a subscription at first."""

    changes_and_syncs: tuple[Change | Sync, ...]
    anchors: dict[str, int]
    unsubscribed: frozenset[str]
    events_delay_s: int
    grace_s: int

    @property
    def boundaries(self) -> list[tuple[str, int]]:
        """Tenants and seconds at which their billing begins, changes or ends."""
        changes = [(one.tenant, one.second) for one in self.changes_and_syncs if isinstance(one, Change)]
        return sorted({*changes, *self.anchors.items()})


def draw_following(rng: Random, tenants: Sequence[str], hours: Sequence[int], minutes: int, draw_kill: Callable[[], Kill]) -> Following:
    """Changes lie in the hours of usage, syncs anywhere in the history's `minutes`."""
    seconds: list[int] = []

    def instant() -> int:
        """Anywhere in an hour, on its beginning or end, on a whole minute, or together with another change or shortly after it."""
        hour = 3600 * rng.choice(hours)
        near = rng.choice(seconds) + rng.choice((0, 0, 1, 30, 61, 240)) if seconds and rng.random() < 0.35 else None
        ways = (hour + rng.randrange(3600), hour + rng.randrange(3600), hour + 60 * rng.randrange(60), hour, hour + 3600)
        seconds.append(max(1, near if near is not None else rng.choice(ways)))
        return seconds[-1]

    changes: list[Change] = []
    unsubscribed = frozenset(tenant for tenant in tenants[-1:] if rng.random() < 0.4)
    anchors = {tenant: instant() for tenant in tenants if tenant not in unsubscribed and rng.random() < 0.4}
    for tenant in tenants:
        changes += _changes_of(rng, tenant, sorted(instant() for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))), tenant not in unsubscribed)
    syncs = [draw_sync(rng, 60 * rng.randint(1, minutes), draw_kill) for _ in range(rng.randint(1, 7))]
    syncs += [draw_sync(rng, change.second + rng.choice((0, 5, 60, 300)), draw_kill) for change in changes if rng.random() < 0.3]
    together: list[Change | Sync] = [*changes, *syncs]
    together.sort(key=lambda one: one.second)  # changes of one second come before its syncs, and each tenant's in their order
    return Following(tuple(together), anchors, unsubscribed, rng.choice(EVENTS_DELAYS), rng.choice(GRACES))


def _changes_of(rng: Random, tenant: str, seconds: Sequence[int], subscribed: bool) -> list[Change]:
    changes: list[Change] = []
    kind: ChangeKind = "buy" if subscribed else "leave"
    for second in seconds:
        kind = rng.choice(_NEXT.get(kind, _USUALLY))
        changes.append(Change(second, tenant, kind))
    return changes


def draw_sync(rng: Random, second: int, draw_kill: Callable[[], Kill]) -> Sync:
    """A sync at that second, which others may run beside, or which fails or dies."""
    troubles = RunTroubles()
    if rng.random() < _TROUBLED:
        troubles = RunTroubles(reads=tuple(rng.choice(READ_TROUBLES) if rng.random() < 0.25 else "" for _ in range(8)))
    return Sync(second, draw_kill() if rng.random() < _KILLED else None, troubles, rng.choice((2, 3)) if rng.random() < _AT_ONCE else 1)
