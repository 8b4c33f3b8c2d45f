"""Draws a world of months from a seed."""

from bisect import insort
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

from dateutil.relativedelta import relativedelta

from crash.faults import OUTAGES
from months.plans import Act, ActKind, Call, Outage, Plan
from months.plantings import draw_plantings
from months.price_list import PRICE_LIST, SOLO

#: Late in a month with 31 days, so that some anchors must come back after shorter ones.
BEGIN = datetime(2026, 1, 27, tzinfo=UTC)

HOUR = timedelta(hours=1)

#: So long after the last month usage goes on: the periods of those who bought early end in that time.
PERIODS_END = timedelta(days=4)

#: A tenant's plan at first; those who pay in yen go on doing so.
_FIRST_PLANS = ("bundled",) * 5 + ("pure",) * 3 + ("volume", "packages", "flat fees", "yen", "yen", "yen each")
_YEN = [name for name, terms in PRICE_LIST.items() if terms.currency == "jpy"]
_DOLLARS = [name for name in PRICE_LIST if name not in _YEN]

#: Days between two acts of a customer, on average.
_BETWEEN_ACTS = 20.0

#: So many of the hours hold usage of anybody, beside those around acts and period ends.
_ACTIVE_HOURS = 0.12

_BUYS_WITHIN = timedelta(days=3)

#: Months of a tenant for each event that is disowned.
_PER_DISOWNED = 12

#: How late a row may come: minutes, within two days, and far too late for its invoice.
_LATE = ((0.6, 5 / 60, 3.0), (0.3, 3.0, 48.0), (0.1, 48.0, 24.0 * 12))


def make_plan(
    seed: int, months: int, tenants: int, *, active: float = _ACTIVE_HOURS, kinds: Sequence[str] = (), buys_within: timedelta = _BUYS_WITHIN
) -> Plan:
    """The same plan for the same arguments. `kinds`: of the errors that are planted, each in the billing of one more tenant, which buys
    within so long from the beginning."""
    rng = Random(f"{seed} {months} {tenants}")
    end = BEGIN + relativedelta(months=months) + PERIODS_END
    names = tuple(f"tenant-{number:02}" for number in range(1, tenants + 1))
    first = {name: rng.choice(_FIRST_PLANS) for name in names}
    # The second of each pair buys as the first one's customer: each has a meter of its own.
    customer_of = {names[n + 1]: names[n] for n in range(0, tenants - 1, max(6, tenants // 3))}
    for follower, leader in customer_of.items():
        first[leader], first[follower] = "bundled", "pure"
    shared = {*customer_of, *customer_of.values()}
    acts: list[Act] = []
    for name in names:
        acts += _acts(rng, name, first[name], BEGIN, end, changes_plans=name not in shared)
    calls = list(_calls(rng, names, acts, BEGIN, end, active))
    outages = tuple(_outages(rng, acts, BEGIN, end))
    disownings = tuple(sorted(BEGIN + rng.random() * (end - BEGIN) for _ in range(1 + months * tenants // _PER_DISOWNED)))
    plantings, their_acts, their_calls = draw_plantings(rng, kinds, BEGIN, end, buys_within, active)
    names += tuple(one.tenant for one in plantings)
    acts, calls = sorted([*acts, *their_acts]), sorted([*calls, *their_calls])
    return Plan(seed, BEGIN, end, names, tuple(acts), tuple(calls), outages, customer_of, disownings, tuple(plantings))


def _acts(rng: Random, tenant: str, first_plan: str, begin: datetime, end: datetime, *, changes_plans: bool) -> Iterator[Act]:
    """What one customer does, one thing after another and each at its second."""
    at = begin + timedelta(seconds=rng.randint(60, rng.choice((4, 8, 8, 50)) * 86_400))
    plan, kind = first_plan, "buy"
    currency = _YEN if first_plan in _YEN else _DOLLARS
    yield Act(at, tenant, "buy", plan, trial_days=rng.choice((0,) * 7 + (14,)))
    if not changes_plans:
        return
    while True:
        gap = timedelta(seconds=2 * 3600 + rng.expovariate(1 / (_BETWEEN_ACTS * 86_400)))
        if kind in ("leave with the period", "leave at once"):  # a period ends within a month
            gap = timedelta(days=rng.randint(1, 12), seconds=rng.randrange(86_400)) + timedelta(days=32) * (kind == "leave with the period")
        elif kind == "pause":
            gap = timedelta(days=rng.randint(3, 40), seconds=rng.randrange(86_400))
        at = (at + gap).replace(microsecond=0)
        if at >= end - timedelta(days=2):
            return
        kind = _next(rng, kind, plan)
        if kind in ("buy", "other items", "other price"):
            plan = rng.choice([name for name in currency if name != plan or kind == "buy"])
        elif kind == "no tokens":
            plan = SOLO
        yield Act(at, tenant, kind, plan if kind in ("buy", "other items", "other price", "no tokens") else "")


def _next(rng: Random, kind: ActKind, plan: str) -> ActKind:
    if kind in ("leave with the period", "leave at once"):
        return "buy"
    if kind == "pause":
        return "resume"
    if plan == SOLO:
        return "other items"
    usually: tuple[ActKind, ...] = ("other items", "other items", "other price", "leave with the period", "leave at once", "pause")
    return rng.choice((*usually, "no tokens") if plan not in _YEN else usually)


# --- Usage --------------------------------------------------------------------------------------------------------------


def _calls(rng: Random, names: Sequence[str], acts: Sequence[Act], begin: datetime, end: datetime, active: float) -> Iterator[Call]:
    """The first tenants use tokens in most of the hours in which anybody does, the last ones now and then (Zipf); everybody does around
    the instants at which its billing changes or its period ends."""
    hours = [begin + number * HOUR for number in range(int((end - begin) / HOUR))]
    busy = [hour for hour in hours if rng.random() < active]
    for rank, name in enumerate(names):
        mine = [act for act in acts if act.tenant == name]
        share = max(0.06, 0.9 / (rank + 1) ** 0.8)
        first = mine[0].at - timedelta(hours=2)
        for hour in busy:
            if hour >= first and rng.random() < share:
                for _ in range(rng.randint(1, 3)):
                    yield _call(rng, name, rank, hour + timedelta(seconds=rng.randrange(3600)))
        for instant in _instants(mine, end):
            if rng.random() < 0.6:
                for offset in (-1, 0, rng.randint(-4000, -2), rng.randint(1, 4000)):
                    at = instant + timedelta(seconds=offset)
                    if begin <= at < end:
                        yield _call(rng, name, rank, at, late=0.08)


def _instants(acts: Sequence[Act], end: datetime) -> list[datetime]:
    """When a tenant's billing changes, and about when its periods end."""
    instants: list[datetime] = []
    for act in acts:
        instants.append(act.at)
        if act.kind == "buy":
            until = next((other.at for other in acts if other.at > act.at and other.kind == "leave at once"), end)
            months = 1
            while (renewal := act.at + relativedelta(months=months)) < until:
                insort(instants, renewal)
                months += 1
    return instants


def _call(rng: Random, tenant: str, rank: int, at: datetime, late: float = 0.02) -> Call:
    at += timedelta(microseconds=rng.randrange(1_000_000))
    recorded_at = at
    if rng.random() < late:
        low, high = rng.choices([span for _, *span in _LATE], [weight for weight, *_ in _LATE])[0]
        recorded_at += timedelta(hours=rng.uniform(low, high))
    most = 900_000 if rank < 4 else 400_000
    return Call(recorded_at, at, tenant, rng.randint(0, most), rng.randint(0, most // 3))


# --- Outages ------------------------------------------------------------------------------------------------------------


def _outages(rng: Random, acts: Sequence[Act], begin: datetime, end: datetime) -> Iterator[Outage]:
    """About two a month, some around period ends; none is so long that a draft could not wait for its end."""
    renewals = [instant for act in acts if act.kind == "buy" for instant in _instants([act], end) if instant < end]
    count = max(1, round((end - begin) / timedelta(days=14)))
    last = begin
    chosen = sorted(
        rng.choice(renewals) - timedelta(minutes=rng.randint(1, 200))
        if renewals and rng.random() < 0.6
        else begin + rng.random() * (end - begin)
        for _ in range(count)
    )
    for since in chosen:
        if since < last + timedelta(days=1):
            continue
        since = since.replace(microsecond=0)
        last = since + timedelta(minutes=rng.choice((20, 75, 180, 400, 1000, 1700)))
        of = rng.choice(("Stripe", "scheduler"))
        yield Outage(since, last, of, rng.choice(OUTAGES) if of == "Stripe" else "")
