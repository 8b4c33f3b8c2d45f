"""Draws a history from a seed."""

from dataclasses import replace
from random import Random

from crash.faults import OUTAGES, READ_TROUBLES, TROUBLES, Door, Kill, RunTroubles
from crash.following import Following, draw_following, draw_sync
from crash.plans import (
    DAY,
    LINKED,
    RELINKED,
    UNLINKED,
    UNLINKED_KINDS,
    Act,
    BackUp,
    Bill,
    ClockJump,
    Decide,
    Disown,
    EndWriter,
    Foreign,
    Outage,
    Pass,
    Pause,
    Plan,
    Record,
    Relink,
    Restore,
    Resume,
    Revoke,
    Row,
    Run,
    Stage,
    Step,
)

#: Minutes by which clocks are wrong. All clocks and one worker's add up: at most 110 minutes either way, so that no two workers differ
#: by the four hours that lie between the product's limit for resending and the end of Stripe's memory.
CLOCKS_OFF = (-60, -30, -5, -1, 1, 5, 30, 60)
WORKER_OFF = (-50, -20, -2, 2, 20, 50)


#: The share of histories whose tenants are on the legacy metered billing system.
USAGE_RECORDS = 0.25

#: Of the others, the share whose tenants' subscriptions are followed, while their customers change them.
FOLLOWED = 0.44


def make_plan(seed: int) -> Plan:
    """The history of a seed: the same for ever, as long as this module is."""
    usage_records = Random(f"sink of {seed}").random() < USAGE_RECORDS
    followed = not usage_records and Random(f"subscriptions of {seed}").random() < FOLLOWED
    return _Planner(Random(seed), usage_records, followed).plan(seed)


class _Planner:
    def __init__(self, rng: Random, usage_records: bool, followed: bool) -> None:
        self.rng = rng
        self.usage_records, self.followed = usage_records, followed
        self.minute = 0
        self.hours: list[int] = []
        #: Where the first rows of an hour are recorded.
        self.first_records: dict[int, int] = {}
        self.steps: list[Step] = []
        self.writer_count = 0
        self.open_writers: list[int] = []
        # Most histories know a few kinds of interference each: all of them in each would leave little that goes well.
        self.people = rng.random() < 0.6
        self.wrong_clocks = rng.random() < 0.4
        # A clock ahead of its time would take for known what has not happened at Stripe yet.
        self.clocks_off = tuple(minutes for minutes in CLOCKS_OFF if minutes < 0 or not followed)
        self.worker_off = tuple(minutes for minutes in WORKER_OFF if minutes < 0 or not followed)
        # What another system records at an item is not ours to tell apart, and Stripe disowns no usage record.
        self.foreign = rng.random() < 0.3 and not usage_records
        self.disowning = rng.random() < 0.4 and not usage_records

    def plan(self, seed: int) -> Plan:
        rng = self.rng
        kind = rng.choice(UNLINKED_KINDS)
        gate_tokens = rng.choice((10_000, 500_000, 3_000_000)) if rng.random() < 0.35 else None
        for _ in range(rng.randint(2, 4)):
            self._use_an_hour()
            if rng.random() < 0.3:
                self.steps.append(Outage(rng.choice(OUTAGES), int(5 * (3 * DAY / 5) ** rng.random())))
            self._bill(self.hours[-1])
            while rng.random() < 0.45:
                self._something_later()
            if rng.random() < 0.045 and not self.followed:
                self._lose_the_database()
        last_decisions = tuple(rng.random() < 0.7 for _ in range(3))
        following = self._follow() if self.followed else None
        return Plan(seed, kind, tuple(self.steps), gate_tokens, last_decisions, self.usage_records, following)

    def _follow(self) -> Following:
        """What happens at Stripe, and usage on either side of it: in its second, and in the microsecond before."""
        rng = self.rng
        following = draw_following(rng, LINKED, self.hours, self.minute, self._kill)
        for tenant, second in following.boundaries:
            for microsecond in (-1, 0):
                minute = second / 60 + (microsecond - 7_000_000) / 60_000_000
                index = self.first_records.get((1_000_000 * second + microsecond) // 3_600_000_000)
                if index is not None and rng.random() < 0.7:
                    recorded = self.steps[index]
                    assert isinstance(recorded, Record)
                    self.steps[index] = replace(recorded, rows=(*recorded.rows, (tenant, minute, rng.randint(1, 99_999), 0)))
        return following

    def _pass(self, minutes: int) -> None:
        self.minute += minutes
        self.steps.append(Pass(minutes))

    def _use_an_hour(self) -> None:
        rng = self.rng
        self._pass(rng.randint(0, 50))
        hour = self.minute // 60
        self.hours.append(hour)
        self.first_records[hour] = len(self.steps)
        self.steps.append(Record(self._rows(hour)))
        if rng.random() < 0.15:
            self.steps.append(Record(self._rows(hour), rolled_back=True))
        if rng.random() < 0.4:
            self.steps.append(Record(self._rows(rng.choice(self.hours)), writer=self.writer_count))
            self.open_writers.append(self.writer_count)
            self.writer_count += 1
        self._end_writers(0.2)
        if self.wrong_clocks and rng.random() < 0.3 and not self.followed:
            self.steps.append(Bill((self._run(None, clock_off=60),)))  # takes the hour for over
        self._pass((hour + 1) * 60 - self.minute + rng.randint(0, 9))
        self._interfere()

    def _interfere(self) -> None:
        """What other systems do, and people by themselves."""
        rng = self.rng
        if self.wrong_clocks and rng.random() < 0.4:
            self.steps.append(ClockJump(rng.choice((0, *self.clocks_off))))
        if self.foreign and rng.random() < 0.6:
            hour = rng.choice(self.hours)
            # Ours are dated in an hour's first minutes: theirs often are too.
            minutes = [hour * 60 + rng.choice((0, 0, 1, 2, 40)) for _ in range(rng.randint(1, 4))]
            self.steps.append(Foreign(tuple((rng.choice(LINKED), minute, rng.randint(1, 99_999)) for minute in minutes)))
        if self.disowning and rng.random() < 0.5:
            self.steps.append(Disown(tuple(rng.randint(0, 999) for _ in range(rng.randint(1, 3))), noticed=rng.random() < 0.7))
        if (self.people or self.disowning) and rng.random() < 0.4:
            self.steps.append(self._act())

    def _lose_the_database(self) -> None:
        """What a copy cannot hold is what its ledger did since: usage recorded since, and what people decided, would be lost for good.
        Only of what Stripe disowned they hear again."""
        rng = self.rng
        chance = Random(f"what is disowned after minute {self.minute}")  # of its own, so that no seed's history changes but for this
        self._end_writers(1)
        self.steps.append(BackUp())
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.5:
                self._pass(rng.choice((1, 30, 180, 21 * 60, DAY)))
            self._add([self._run(rng.choice((*self.hours, None))) for _ in range(rng.choice((1, 1, 2)))], beside=False)
            if self.disowning and chance.random() < 0.5:
                self.steps.append(Disown(tuple(chance.randint(0, 999) for _ in range(chance.randint(1, 3))), noticed=chance.random() < 0.7))
                if chance.random() < 0.7:
                    self.steps.append(Revoke(resend=True))
        self.steps.append(Restore(self._run(rng.choice(self.hours)), self._kill() if rng.random() < 0.3 else None))

    def _act(self) -> Act:
        rng = self.rng
        kinds = [*(("pause", "resume", "decide", "relink") if self.people else ()), *(("revoke", "revoke") if self.disowning else ())]
        if self.followed:
            kinds = [kind for kind in kinds if kind != "relink"]
        match rng.choice(kinds):
            case "pause":
                return Pause()
            case "resume":
                return Resume()
            case "decide":
                return Decide(tuple(rng.random() < 0.7 for _ in range(3)))
            case "relink":
                return Relink(rng.choice(RELINKED))
            case _:
                return Revoke(rng.random() < 0.8, self._kill() if rng.random() < 0.4 else None)

    def _something_later(self) -> None:
        rng = self.rng
        self._end_writers(0.5)
        if rng.random() < 0.4:
            self.steps.append(Record(self._rows(rng.choice(self.hours))))
        if rng.random() < 0.6:
            self._pass(rng.choice((1, 5, 30, 180, 19 * 60, 21 * 60, DAY, 2 * DAY)))
        self._interfere()
        if rng.random() < 0.2 and len(self.hours) > 1:
            self._backfill()
        else:
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
        runs = [self._run(hour)]
        if hour is not None and rng.random() < 0.2:
            runs.append(self._run(hour))
        self._add(runs)
        if runs[0].kill and rng.random() < 0.5:
            self._add([self._run(hour)])  # cleared, at once

    def _backfill(self) -> None:
        """Several hours at once, beside whatever late usage finds or one of them again."""
        rng = self.rng
        hours = rng.sample(sorted(set(self.hours)), min(len(set(self.hours)), rng.randint(2, 4)))
        self._add([self._run(hour) for hour in (*hours, rng.choice((None, hours[0])))])

    def _add(self, runs: list[Run], beside: bool = True) -> None:
        beside = self.rng.random() < 0.15 and beside and (self.people or self.disowning)
        syncs = (draw_sync(self.rng, 0, self._kill),) if self.followed and self.rng.random() < 0.25 else ()
        self.steps.append(Bill(tuple(runs), (self._act(),) if beside else (), syncs))
        if len(runs) == 1 and not beside and not syncs:
            self.minute += sum(runs[0].pauses)

    def _run(self, hour: int | None, clock_off: int = 0) -> Run:
        rng = self.rng
        kill = self._kill() if rng.random() < 0.5 else None
        troubles = RunTroubles()
        if rng.random() < 0.5:
            events = tuple(rng.choice(TROUBLES) if rng.random() < 0.45 else "" for _ in range(7))
            reads = tuple(rng.choice(READ_TROUBLES) if rng.random() < 0.3 else "" for _ in range(6)) if rng.random() < 0.4 else ()
            troubles = RunTroubles(events, reads, persistent=rng.random() < 0.35)
        looks = frozenset([rng.randint(1, 40)]) if rng.random() < 0.4 else frozenset()
        pauses = tuple(rng.choice((0, 0, 1, 45, 20 * 60)) for _ in range(2)) if rng.random() < 0.2 else ()
        first_stage: Stage = rng.choice(("push", "push", "mark_billed")) if rng.random() < 0.12 else "freeze"
        if self.wrong_clocks and not clock_off and rng.random() < 0.3:
            clock_off = rng.choice(self.worker_off)
        tries, shards = rng.randint(1, 3), rng.choice((1, 1, 2))
        awaits_facts = not self.followed or rng.random() < 0.8
        return Run(hour, kill, troubles, looks, tries, shards, pauses, first_stage, clock_off, awaits_facts)

    def _kill(self) -> Kill:
        rng = self.rng
        door: Door = rng.choice(("statement", "statement", "commit", "request"))
        nth = rng.randint(1, {"statement": 36, "commit": 9, "request": 14}[door])
        return Kill(door, nth, after=rng.random() < 0.5, late_commit=rng.random() < 0.4)
