"""What happens around the ends of a few billing periods, drawn from a seed, as plain data."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Literal

from crash.faults import OUTAGES, Door, Kill

#: When everybody subscribes; the first periods end hours later.
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)

#: Outages last so long, spread so that every order of length is drawn as often.
OUTAGE_LENGTHS = [(10 * MINUTE, 50 * MINUTE), (HOUR, 5 * HOUR), (6 * HOUR, 40 * HOUR), (41 * HOUR, 71 * HOUR)]

DOORS: tuple[Door, ...] = ("statement", "commit", "request")


@dataclass(frozen=True)
class Call:
    """Usage, and when it was recorded."""

    tenant: str
    at: datetime
    recorded_at: datetime
    tokens: int


@dataclass(frozen=True)
class Outage:
    """Nobody runs here, or Stripe meets every request with its kind of trouble."""

    of: Literal["scheduler", "Stripe"]
    since: datetime
    until: datetime
    kind: str


@dataclass(frozen=True)
class Act:
    """What a person does about a tenant's draft, or about its usage that is kept aside."""

    at: datetime
    tenant: str
    kind: Literal["finalises", "moves", "switches off", "acknowledges"]
    to: datetime | None = None


@dataclass(frozen=True)
class Plan:
    """One history. `kills`: the closing runs that die, by their number; `set_aside`: tenants whose usage cannot be sent."""

    seed: int
    grace: timedelta
    ends: dict[str, datetime]
    calls: list[Call]
    outages: list[Outage]
    acts: list[Act]
    kills: dict[int, Kill]
    set_aside: frozenset[str]
    excluded: frozenset[str]


def make_plan(seed: int) -> Plan:
    rng = Random(seed)
    ends = {f"t{n}": _end(rng) for n in range(rng.randint(1, 3))}
    return Plan(
        seed,
        rng.choice((HOUR, 72 * HOUR)),
        ends,
        sorted((call for tenant, end in ends.items() for call in _calls(rng, tenant, end)), key=lambda call: call.recorded_at),
        [outage for end in ends.values() for outage in _outages(rng, end)],
        sorted((act for tenant, end in ends.items() for act in _acts(rng, tenant, end)), key=lambda act: act.at),
        {rng.randint(0, 30): Kill(rng.choice(DOORS), rng.randint(1, 25), rng.random() < 0.5) for _ in range(rng.choice((0, 0, 2, 6)))},
        frozenset(tenant for tenant in ends if rng.random() < 0.15),
        frozenset(tenant for tenant in ends if rng.random() < 0.07),
    )


def _end(rng: Random) -> datetime:
    """In mid-hour, mostly; on the hour now and then."""
    whole = BEGIN + rng.randint(8, 20) * HOUR
    return whole + rng.choice((0, 1, rng.randint(2, 3598), rng.randint(2, 3598), 3599)) * SECOND


def _calls(rng: Random, tenant: str, end: datetime) -> list[Call]:
    """Before, at and after the end; some recorded late, some very late."""
    if rng.random() < 0.1:
        return []
    instants = [end - rng.random() * 6 * HOUR for _ in range(rng.randint(1, 3))]
    instants += rng.sample([end - SECOND, end - timedelta(microseconds=1), end, end + SECOND, end + rng.random() * HOUR], rng.randint(0, 4))
    lateness = [timedelta(), timedelta(), timedelta(), rng.random() * HOUR, rng.random() * 10 * HOUR, rng.random() * 75 * HOUR]
    return [Call(tenant, at, max(at, BEGIN) + rng.choice(lateness) + SECOND, rng.randint(1, 10**6)) for at in instants]


def _outages(rng: Random, end: datetime) -> list[Outage]:
    if rng.random() < 0.3:
        return []
    since = end + rng.choice((-1, -1, 1)) * rng.random() * rng.choice((HOUR, 3 * HOUR)) + rng.choice((0, 0, 0, 40)) * HOUR
    until = since + _between(rng, *rng.choice(OUTAGE_LENGTHS))
    kind = rng.choice(OUTAGES)
    both = [Outage("scheduler", since, until, ""), Outage("Stripe", since, since + (until - since) * rng.random(), kind)]
    return rng.choice((both, both[:1], both[:1], both[1:]))


def _acts(rng: Random, tenant: str, end: datetime) -> list[Act]:
    acts = []
    at = end + _between(rng, 2 * MINUTE, rng.choice((HOUR, 60 * HOUR)))
    match rng.random():
        case chance if chance < 0.10:
            acts.append(Act(at, tenant, "finalises"))
        case chance if chance < 0.18:
            acts.append(Act(at, tenant, "moves", at + _between(rng, 20 * MINUTE, 20 * HOUR)))
        case chance if chance < 0.23:
            acts.append(Act(at, tenant, "switches off"))
    if rng.random() < 0.6:
        acts.append(Act(end + _between(rng, 2 * HOUR, 60 * HOUR), tenant, "acknowledges"))
    return acts


def _between(rng: Random, least: timedelta, most: timedelta) -> timedelta:
    return least + rng.random() * (most - least)
