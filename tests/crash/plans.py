"""A random history as plain data, drawn from a seed: who uses what when, which hours are billed, and what goes wrong on the way."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random

from crash.faults import OUTAGES, READ_TROUBLES, TROUBLES, Door, Kill, RunTroubles

LINKED = ("a", "b", "c", "d", "e")
UNLINKED = "unlinked"
UNLINKED_KINDS = ("no customer", "no subscription item", "unknown tenant")

#: A history begins here; nothing in it may depend on today.
EPOCH = datetime(2026, 3, 1, tzinfo=UTC)

#: After so many read-backs, 25 h apart, nothing may be open any more: twice absent, a new generation, and some to spare.
MOST_READ_BACKS = 6

DAY = 24 * 60

# --- a history as data ------------------------------------------------------------------------------------------------

#: Tenant, minute of its event since the history's beginning, input and output tokens.
Row = tuple[str, int, int, int]


@dataclass(frozen=True)
class Pass:
    """Time passes."""

    minutes: int


@dataclass(frozen=True)
class Record:
    """Usage is recorded: at once, by a transaction that stays open (`writer`, ended by EndWriter), or not at all after all."""

    rows: tuple[Row, ...]
    writer: int | None = None
    rolled_back: bool = False


@dataclass(frozen=True)
class EndWriter:
    writer: int
    commit: bool


@dataclass(frozen=True)
class Outage:
    """Stripe is out for so long, in one of the ways of OUTAGES."""

    kind: str
    minutes: int


@dataclass(frozen=True)
class Attempt:
    """One worker's way through the stages. `looks`: before these statements the conservation law is looked at from outside.
    `pauses`: minutes between one stage and the next."""

    kill: Kill | None = None
    troubles: RunTroubles = field(default_factory=RunTroubles)
    looks: frozenset[int] = frozenset()
    tries: int = 3
    shard_count: int = 1
    pauses: tuple[int, ...] = ()


UNTROUBLED = Attempt()


@dataclass(frozen=True)
class Bill:
    """The hour is billed by one worker, or by two at once; None: whatever late usage finds."""

    hour: int | None
    attempts: tuple[Attempt, ...]


Step = Pass | Record | EndWriter | Outage | Bill


@dataclass(frozen=True)
class Plan:
    seed: int
    unlinked_kind: str
    steps: tuple[Step, ...]


def make_plan(seed: int) -> Plan:
    """The history of a seed: the same for ever, as long as this function is."""
    return _Planner(Random(seed)).plan(seed)


class _Planner:
    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.minute = 0
        self.hours: list[int] = []
        self.steps: list[Step] = []
        self.writer_count = 0
        self.open_writers: list[int] = []

    def plan(self, seed: int) -> Plan:
        rng = self.rng
        kind = rng.choice(UNLINKED_KINDS)
        for _ in range(rng.randint(3, 5)):
            self._use_an_hour()
            if rng.random() < 0.3:
                self.steps.append(Outage(rng.choice(OUTAGES), int(5 * (3 * DAY / 5) ** rng.random())))
            self._bill(self.hours[-1])
            while rng.random() < 0.45:
                self._something_later()
        return Plan(seed, kind, tuple(self.steps))

    def _pass(self, minutes: int) -> None:
        self.minute += minutes
        self.steps.append(Pass(minutes))

    def _use_an_hour(self) -> None:
        rng = self.rng
        self._pass(rng.randint(0, 50))
        hour = self.minute // 60
        self.hours.append(hour)
        self.steps.append(Record(self._rows(hour)))
        if rng.random() < 0.15:
            self.steps.append(Record(self._rows(hour), rolled_back=True))
        if rng.random() < 0.4:
            self.steps.append(Record(self._rows(rng.choice(self.hours)), writer=self.writer_count))
            self.open_writers.append(self.writer_count)
            self.writer_count += 1
        self._end_writers(0.2)
        self._pass((hour + 1) * 60 - self.minute + rng.randint(0, 9))

    def _something_later(self) -> None:
        rng = self.rng
        self._end_writers(0.5)
        if rng.random() < 0.4:
            self.steps.append(Record(self._rows(rng.choice(self.hours))))
        if rng.random() < 0.6:
            self._pass(rng.choice((1, 5, 30, 180, 19 * 60, 21 * 60, DAY, 2 * DAY)))
        self._bill(rng.choice((*self.hours, None)))

    def _end_writers(self, likelihood: float) -> None:
        for writer in [writer for writer in self.open_writers if self.rng.random() < likelihood]:
            self.open_writers.remove(writer)
            self.steps.append(EndWriter(writer, commit=self.rng.random() < 0.7))

    def _rows(self, hour: int) -> tuple[Row, ...]:
        rng = self.rng
        rows: list[Row] = []
        for tenant in (*LINKED, UNLINKED):
            for _ in range(rng.choice((0, 1, 1, 2, 4))):
                tokens = rng.choice((0, rng.randint(1, 99), rng.randint(100, 9_999), rng.randint(1, 2_000_000)))
                rows.append((tenant, hour * 60 + rng.randint(0, 59), tokens, rng.choice((0, tokens, 7))))
            if rows and rng.random() < 0.2:
                rows.append(rows[-1])  # two calls, equal in everything
        return tuple(rows)

    def _bill(self, hour: int | None) -> None:
        rng = self.rng
        attempts = [self._attempt()]
        if hour is not None and rng.random() < 0.2:
            attempts.append(self._attempt())
        self.steps.append(Bill(hour, tuple(attempts)))
        if len(attempts) == 1:
            self.minute += sum(attempts[0].pauses)
        if attempts[0].kill and rng.random() < 0.5:
            again = self._attempt()
            self.steps.append(Bill(hour, (again,)))
            self.minute += sum(again.pauses)

    def _attempt(self) -> Attempt:
        rng = self.rng
        kill = self._kill() if rng.random() < 0.5 else None
        troubles = RunTroubles()
        if rng.random() < 0.5:
            events = tuple(rng.choice(TROUBLES) if rng.random() < 0.45 else "" for _ in range(7))
            reads = tuple(rng.choice(READ_TROUBLES) if rng.random() < 0.3 else "" for _ in range(6)) if rng.random() < 0.4 else ()
            troubles = RunTroubles(events, reads, persistent=rng.random() < 0.35)
        looks = frozenset([rng.randint(1, 40)]) if rng.random() < 0.4 else frozenset()
        pauses = tuple(rng.choice((0, 0, 1, 45, 20 * 60)) for _ in range(2)) if rng.random() < 0.2 else ()
        return Attempt(kill, troubles, looks, rng.randint(1, 3), rng.choice((1, 1, 2)), pauses)

    def _kill(self) -> Kill:
        rng = self.rng
        door: Door = rng.choice(("statement", "statement", "commit", "request"))
        nth = rng.randint(1, {"statement": 36, "commit": 9, "request": 14}[door])
        return Kill(door, nth, after=rng.random() < 0.5, late_commit=rng.random() < 0.4)
