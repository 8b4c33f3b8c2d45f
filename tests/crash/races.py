"""Races on one hour: two live runs, a backfill, a run that is cleared and the late usage run bill it while usage is still being recorded.

A seed chooses the schedule: at each place where an actor meets the world outside (a statement, the end of a transaction, a request, a
wait) it stops, and one of those that stand there may go on to its next place. Whoever waits for a lock of Postgres' stands nowhere and is
not waited for. Whatever the schedule, the hour ends as if all had come one after the other."""

import asyncio
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Annotated, Any

import psycopg
import tenacity.nap
import typer

from crash.kill_points import LINKED, TOKENS, link_all
from crash.places import KeptConnections, places
from sandbox.environment import HOME, without_stripe
from sandbox.kept_in_files import KeptInFiles
from sandbox.postgres import PostgresServer
from sandbox.services import prepare_billing_database
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters import ledger
from token_billing.adapters.database import Connection
from token_billing.errors import BillingError, OperatorNeeded
from token_billing.stages.late_usage import late_windows
from token_billing.windows import HOUR, Window
from world import World

#: Of a task whose stage fails with an error that time can heal.
TRIES = 3
#: A schedule takes a second or two; this one does not end.
STUCK_AFTER_S = 60.0


@dataclass
class Turn:
    """An actor that stands at a place, and how to let it go on."""

    actor: "Actor"
    place: str
    go: Callable[[], object]


@dataclass(eq=False)
class Actor(World):
    """A process of its own, as far as the database and Stripe can tell."""

    name: str = field(kw_only=True)
    connections: KeptConnections = field(kw_only=True)
    #: Postgres' processes that serve it.
    pids: set[int] = field(default_factory=set)
    arrivals: int = 0
    done: bool = False
    error: BaseException | None = None

    def connect(self) -> Connection:
        connection = self.connections.connect()
        connection.user = self
        self.pids.add(connection.pgconn.backend_pid)
        return connection


#: Who sends a request or sleeps; tasks and threads of an actor inherit it.
ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)


class Schedule:
    """Lets one actor go on at a time, to its next place, as the seed chooses."""

    def __init__(self, seed: int, observer: Connection) -> None:
        self.trace: list[str] = []
        self._seed, self._rng, self._observer = seed, Random(seed), observer
        #: In some schedules an actor tends to go on for long before another one does, and some actors are slower than others.
        self._staying = self._rng.choice((0.0, 0.5, 0.9))
        self._paces: dict[str, int] = {}
        self._standing: list[Turn] = []
        self._blocked = set[int]()  # Postgres' processes that wait for a lock
        self._changed = threading.Condition()

    def stand(self, actor: Actor, place: str, go: Callable[[], object]) -> None:
        with self._changed:
            actor.arrivals += 1
            self._standing.append(Turn(actor, place, go))
            self._changed.notify_all()

    def wait(self, actor: Actor, place: str) -> None:
        turn = threading.Event()
        self.stand(actor, place, turn.set)
        turn.wait()

    async def wait_async(self, actor: Actor, place: str) -> None:
        loop, turn = asyncio.get_running_loop(), asyncio.Event()
        self.stand(actor, place, lambda: loop.call_soon_threadsafe(turn.set))
        await turn.wait()

    def finish(self, actor: Actor) -> None:
        with self._changed:
            actor.done = True
            self._standing = [turn for turn in self._standing if turn.actor is not actor]
            self._changed.notify_all()

    def run(self, actors: list[Actor], look: Callable[[], None]) -> None:
        """Until all are done. Now and then somebody looks, between two steps."""
        deadline, last = time.monotonic() + STUCK_AFTER_S, actors[0]
        while any(not actor.done for actor in actors):
            if self._rng.random() < 0.02:
                look()
            with self._changed:
                self._settle(actors)
                if not self._standing:
                    self._changed.wait(0.01)
                else:
                    last = self._let_one_go(last)
            if time.monotonic() > deadline:
                left = [actor.name for actor in actors if not actor.done]
                raise AssertionError(f"the schedule of seed {self._seed} is stuck with {left} after {self.trace[-20:]}")

    def _let_one_go(self, last: Actor) -> Actor:
        standing = sorted({turn.actor.name for turn in self._standing})
        stay = last.name in standing and self._rng.random() < self._staying
        paces = [self._paces.setdefault(name, self._rng.choice((1, 5, 25))) for name in standing]
        name = last.name if stay else self._rng.choices(standing, paces)[0]
        turn = self._rng.choice([turn for turn in self._standing if turn.actor.name == name])
        self._standing.remove(turn)
        self.trace.append(f"{name}: {turn.place}")
        arrived = turn.actor.arrivals
        with suppress(RuntimeError):  # its event loop has ended: an error of the actor's, told when it is done
            turn.go()
        if any(other.actor is turn.actor for other in self._standing):  # it may have to wait for its own other tasks
            self._changed.wait_for(lambda: turn.actor.arrivals > arrived or turn.actor.done, 0.001)
        return turn.actor

    def _settle(self, actors: list[Actor]) -> None:
        """Waits until each actor stands at a place, is done, or waits for a lock of another's."""
        until = time.monotonic() + 5

        def on_its_way(actor: Actor) -> bool:
            return not (actor.done or actor.pids & self._blocked or any(turn.actor is actor for turn in self._standing))

        if self._blocked:  # what the last step released is on its way again
            self._see_who_is_blocked()
        while time.monotonic() < until and not self._changed.wait_for(lambda: not any(map(on_its_way, actors)), 0.003):
            self._see_who_is_blocked()

    def _see_who_is_blocked(self) -> None:
        waiting = self._observer.execute("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchall()
        self._blocked = {pid for (pid,) in waiting}


@contextmanager
def stopping_places(schedule: Callable[[], Schedule]) -> Iterator[None]:
    """Inside the block, actors stop at every place; what would sleep waits for its turn instead."""
    sleep, nap_clock = asyncio.sleep, tenacity.nap.time  # type: ignore[attr-defined]

    def arrive(place: str, connection: Connection | None) -> None:
        actor: Actor | None = getattr(connection, "user", None) or ACTOR.get()
        if actor is not None:
            schedule().wait(actor, place)

    async def arrive_at_request(place: str) -> None:
        if actor := ACTOR.get():
            await schedule().wait_async(actor, place)

    async def turn_sleep(delay: float, result: Any = None) -> Any:
        if delay > 0 and (actor := ACTOR.get()):
            await schedule().wait_async(actor, "waits a while")
            return result
        return await sleep(delay, result)

    def turn_nap(delay: float) -> None:
        if actor := ACTOR.get():
            schedule().wait(actor, "waits a while")
        else:
            time.sleep(delay)

    asyncio.sleep = turn_sleep
    tenacity.nap.time = SimpleNamespace(sleep=turn_nap)  # type: ignore[attr-defined, assignment]
    try:
        with places(arrive, arrive_at_request):
            yield
    finally:
        asyncio.sleep = sleep
        tenacity.nap.time = nap_clock  # type: ignore[attr-defined]


@dataclass
class Figures:
    """What the schedules came to."""

    schedules: int = 0
    steps: int = 0
    looks: int = 0
    tries_again: Counter[str] = field(default_factory=Counter)
    late_reports: int = 0
    meter_events: int = 0
    lost_tokens: int = 0
    doubled_tokens: int = 0
    #: By seed.
    problems: dict[int, list[str]] = field(default_factory=dict)


class Races:
    """Runs one schedule after the other, each on an hour of its own."""

    def __init__(self, dsn: str, simulator: StripeSimulator, folder: Path) -> None:
        self.figures = Figures()
        self.trace: list[str] = []
        self._dsn, self._simulator, self._folder = dsn, simulator, folder
        self._connections = KeptConnections(dsn)
        self._observer = psycopg.connect(dsn, autocommit=True)
        self._time = simulator.now().replace(minute=5, second=0, microsecond=0) + HOUR
        simulator.set_clock(self._time)
        link_all(World(dsn, simulator))
        self._customers: dict[str, str] = dict(self._observer.execute("SELECT id, stripe_customer_id FROM tenants").fetchall())

    def close(self) -> None:
        self._connections.close()
        self._observer.close()

    def race(self, seed: int) -> list[str]:
        """The schedule of a seed; what is wrong with its end, or was at some instant on the way."""
        rng = Random(seed)
        self._time += HOUR
        self._simulator.set_clock(self._time)
        window = Window(self._time.replace(minute=0) - HOUR)
        schedule, problems = Schedule(seed, self._observer), list[str]()
        self.used = Counter(TOKENS)
        serial = self._actor("the next late usage run", window)
        serial.clock = lambda: self._time + 2 * HOUR
        with serial.connect() as db:
            for tenant, tokens in TOKENS.items():
                serial.use(tenant, tokens, db=db)
        if rng.random() < 0.5:
            serial.sql("DELETE FROM billing.metered_item")  # so that all look up the items at once
        if rng.random() < 0.3:
            serial.bill()  # what races then is late usage

        def look() -> None:
            self.figures.looks += 1
            problems.extend(f"the law is broken: {term}" for term in self._conservation(window) if not term.holds)

        work = [
            *((self._actor(name, window), World.bill) for name in ("a live run", "another live run", "a backfill")),
            (self._actor("a run that is cleared", window), lambda actor: (actor.bill(), actor.bill())),
            (self._actor("the late usage run", window), self._bill_late_usage),
            *((self._actor(f"writer {n}", window), self._writer(Random(rng.random()))) for n in (1, 2)),
        ]
        with stopping_places(lambda: schedule):
            threads = [threading.Thread(target=self._act, args=(schedule, actor, act), daemon=True) for actor, act in work]
            for thread in threads:
                thread.start()
            schedule.run([actor for actor, _ in work], look)
            for thread in threads:
                thread.join()
        problems += [f"{actor.name}: {actor.error!r}" for actor, _ in work if actor.error]
        try:
            self._bill_late_usage(serial)
        except (BillingError, AssertionError) as error:
            problems.append(f"{serial.name}: {error!r}")
        problems += self._compare(window)
        self.trace = schedule.trace
        self.figures.schedules += 1
        self.figures.steps += len(schedule.trace)
        if problems:
            self.figures.problems[seed] = problems
        return problems

    def _actor(self, name: str, window: Window) -> Actor:
        world = Actor(self._dsn, self._simulator, window, lambda: self._time, name=name, connections=self._connections)
        world.keeper = KeptInFiles(self._folder)  # each process writes its own
        return world

    def _act(self, schedule: Schedule, actor: Actor, act: Callable[[Actor], object]) -> None:
        ACTOR.set(actor)
        try:
            schedule.wait(actor, "begins")
            for tries in range(1, TRIES + 1):
                try:
                    act(actor)
                    break
                except BillingError as error:
                    if tries == TRIES or isinstance(error, OperatorNeeded):
                        raise
                    self.figures.tries_again[type(error).__name__] += 1
        except BaseException as error:
            actor.error = error
        finally:
            schedule.finish(actor)

    def _bill_late_usage(self, actor: Actor) -> None:
        for window in late_windows(actor.connect, lambda: actor.clock() + HOUR):
            assert window == actor.window, f"{window} is left over"
            actor.bill()

    def _writer(self, rng: Random) -> Callable[[Actor], None]:
        def write(actor: Actor) -> None:
            for _ in range(rng.randint(1, 4)):
                rows = [(rng.choice((*LINKED, "unlinked")), rng.randint(0, 99)) for _ in range(rng.randint(1, 3))]
                roll_back = rng.random() < 0.25
                with actor.connect() as db:
                    db.autocommit = True
                    with db.transaction() as transaction:
                        for tenant, tokens in rows:
                            actor.use(tenant, tokens, at=actor.window.start + timedelta(minutes=rng.randint(0, 59)), db=db)
                            for _ in range(rng.choice((0, 0, 0, 10))):  # the application has other things to do meanwhile
                                db.execute("SELECT")
                        if roll_back:
                            raise psycopg.Rollback(transaction)
                if not roll_back:
                    for tenant, tokens in rows:
                        self.used[tenant] += tokens

        return write

    def _conservation(self, window: Window) -> list[Any]:
        return ledger.conservation(self._observer, window.start, window.end)

    def _compare(self, window: Window) -> list[str]:
        """Everything that was recorded is billed once: as the rows, the reports and Stripe tell."""
        hour, used = (window.start, window.end), self.used
        marked = Counter[str](
            dict(
                self._observer.execute(
                    "SELECT tenant_id, sum(input_tokens + output_tokens) FROM token_usage "
                    "WHERE billed AND created_at >= %s AND created_at < %s GROUP BY 1",
                    hour,
                ).fetchall()
            )
        )
        reports = self._observer.execute(
            "SELECT identifier, token_count, state, tenant_id, revision FROM billing.usage_report WHERE window_start = %s", hour[:1]
        ).fetchall()
        start, end = (time.timestamp() for time in hour)
        events = [event for event in self._simulator.iterate_meter_events() if start <= event["timestamp"] < end]
        self.figures.late_reports += sum(revision > 0 for *_, revision in reports)
        self.figures.meter_events += len(events)
        problems = [f"the law is broken: {term}" for term in self._conservation(window) if not term.holds]
        for tenant in used:
            wanted = used[tenant] if tenant in self._customers else 0
            if marked[tenant] != wanted:
                problems.append(f"tenant {tenant}: {used[tenant]} tokens used, {marked[tenant]} marked, should be {wanted}")
        at_stripe, owed = Counter[str](), Counter[str]()
        for event in events:
            at_stripe[event["customer"]] += int(event["value"])
        for tenant, customer in self._customers.items():
            owed[customer] += used[tenant]
        for customer in owed.keys() | at_stripe.keys():
            difference = at_stripe[customer] - owed[customer]
            self.figures.lost_tokens += max(0, -difference)
            self.figures.doubled_tokens += max(0, difference)
            if difference:
                problems.append(f"customer {customer}: {owed[customer]} tokens used, Stripe has {at_stripe[customer]}")
        sent = sorted((event["identifier"], int(event["value"])) for event in events)
        if sent != sorted((identifier, tokens) for identifier, tokens, state, *_ in reports if state == "billed" and tokens):
            problems.append(f"Stripe has {sent}, the ledger {reports}")
        minutes = Counter((event["customer"], event["timestamp"] // 60) for event in events)
        if minutes.total() > len(minutes):
            problems.append(f"reports of a customer share a minute, so Stripe's summaries cannot tell them apart: {minutes}")
        if wrong := [report for report in reports if report[2] != ("quarantined" if report[3] == "unlinked" and report[1] else "billed")]:
            problems.append(f"reports left over: {wrong}")
        return problems


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    schedules: Annotated[int, typer.Option(min=1, help="How many; the n-th has the seed SEED + n - 1.")] = 500,
    seed: Annotated[int, typer.Option(help="The first schedule's seed.")] = 1,
) -> None:
    """Race in so many schedules; exit 0 only if every one ends as if all had come one after the other."""
    kept = {name: value for name, value in without_stripe(os.environ).items() if not name.lower().endswith("_proxy")}
    os.environ.clear()
    os.environ.update(kept)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with this process
    logging.disable(logging.WARNING)
    HOME.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="races-", dir=HOME) as folder,
        PostgresServer(Path(folder) / "postgres", durable=False) as postgres,
        StripeSimulator.start() as simulator,
    ):
        os.environ["AIRFLOW_HOME"] = folder
        dsn = postgres.recreate_database("races")
        prepare_billing_database(dsn)
        races = Races(dsn, simulator, Path(folder) / "kept")
        for each in range(seed, seed + schedules):
            if problems := races.race(each):
                print(f"schedule {each} went wrong; again: make races SCHEDULES=1 SEED={each}", *problems, sep="\n  ")
                print("  its last steps:", *races.trace[-40:], sep="\n    ")
        races.close()
    figures = races.figures
    print(
        f"{figures.schedules} schedules of {figures.steps:,} steps in {time.monotonic() - started:.0f} s: {figures.meter_events:,} meter "
        f"events, {figures.late_reports:,} reports of late usage, {figures.looks:,} looks at the law, "
        f"{figures.tries_again.total():,} tasks tried again ({', '.join(figures.tries_again) or 'no error'})"
    )
    print(f"{figures.lost_tokens:,} tokens lost, {figures.doubled_tokens:,} doubled, {len(figures.problems)} schedules went wrong")
    if figures.problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
