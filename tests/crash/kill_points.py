"""Real kills: a forked process dies, by SIGKILL, at one of the places where something may have left it: before and after every SQL
statement, every end of a transaction and every request. The places are found by running once; none is listed by hand.

One deep, a run is killed at each of its places and another one heals. Two deep, the healing run is killed as well, at each of the
places that *it* passes, and a third one heals."""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Annotated, TypeVar

import typer

from crash.places import KeptConnections, places
from sandbox.environment import HOME, without_stripe
from sandbox.postgres import PostgresServer
from sandbox.services import prepare_billing_database
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters.database import Connection
from token_billing.errors import BillingError, ReportsLeftOver, StripeUnavailable
from token_billing.model import Sink
from token_billing.windows import HOUR, Window
from world import SETTINGS, World

What = TypeVar("What")


def different(passed: Sequence[str]) -> list[str]:
    """The places without those before a statement that directly follow another place: nothing has left the process in between, so
    a kill there leaves behind what a kill at the other does."""
    return [
        place
        for place, previous in zip(passed, ("", *passed), strict=False)
        if not (place.startswith("before ") and previous.startswith("after ") and "/v1/" not in place)
    ]


# --- kills --------------------------------------------------------------------------------------------------------------


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def killed_at(place: str | None, kill: Callable[[], None] = _kill_this_process) -> Iterator[list[str]]:
    """Hands out the places passed inside the block, each with how often it was passed until then, and kills at the given one."""
    passed: list[str] = []
    counts: Counter[str] = Counter()
    one_at_a_time = threading.Lock()

    def arrive(name: str, _: Connection | None = None) -> None:
        with one_at_a_time:
            counts[name] += 1
            here = f"{name} #{counts[name]}"
            passed.append(here)
            if here == place:
                kill()

    async def arrive_at_request(name: str) -> None:
        arrive(name)

    with places(arrive, arrive_at_request):
        yield passed


def run_in_child(work: Callable[[], object], place: str | None) -> list[str] | None:
    """Runs the work in a forked child that dies at the given place; returns the places it passed, None if it was killed."""
    reader, writer = os.pipe()
    gc.freeze()
    child = os.fork()
    if child == 0:
        try:
            gc.disable()  # it would copy every page that it shares with its parent
            with killed_at(place) as passed:
                work()
            os.write(writer, "\n".join(passed).encode())
            os._exit(0)
        except BaseException as error:  # the parent reports it; nothing of the parent's may run in the child
            os.write(writer, repr(error).encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as told:
        said = told.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"status {status}: {said}"
    return said.splitlines()


# --- hours to be killed in ----------------------------------------------------------------------------------------------

#: Two tenants on one customer, one alone, one with nothing to bill and one that cannot be billed.
TOKENS = {"a": 5, "shares a's customer": 7, "b": 11, "zero": 0, "unlinked": 13}
LATE_TOKENS = {"a": 3, "b": 1, "zero": 2, "unlinked": 4}
LINKED = ("a", "shares a's customer", "b", "zero")

#: Hours that are prepared together: Stripe takes nothing older than 35 days, and one scenario needs two of them before its kill.
MOST_HOURS = 400


def link_all(world: World) -> None:
    """Gives all tenants but one a customer; two have the same."""
    world.link(*LINKED)
    world.sql(
        "UPDATE tenants SET (stripe_customer_id, stripe_usage_item_id) = "
        "(SELECT stripe_customer_id, stripe_usage_item_id FROM tenants WHERE id = 'a') WHERE id LIKE 'shares%%'"
    )


class Scenario(StrEnum):
    """What the hour has been through when the run begins that is killed."""

    FIRST_RUN = "first run"
    LATE_USAGE = "late usage"
    NEW_GENERATION = "new generation"


@dataclass
class Figures:
    """What came of the kills; nothing lost and nothing doubled, or it has failed."""

    points: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    #: Chosen places that were not passed this time: with requests under way at once, what is left to do differs from time to time.
    outlived: int = 0
    lost_tokens: int = 0
    doubled_tokens: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Figures") -> None:
        for each in fields(self):
            mine = getattr(self, each.name)
            mine += getattr(other, each.name)
            setattr(self, each.name, mine)


@dataclass
class Hour(World):
    """One hour, in which one run after the other is killed."""

    connections: KeptConnections = field(kw_only=True)
    scenario: Scenario = field(kw_only=True)

    def connect(self) -> Connection:
        return self.connections.connect()

    @property
    def tokens(self) -> Counter[str]:
        return Counter(TOKENS) + Counter(LATE_TOKENS if self.scenario is Scenario.LATE_USAGE else {})

    def use_all(self, tokens: Mapping[str, int]) -> None:
        with self.connect() as db:
            for tenant, count in tokens.items():
                self.use(tenant, count, db=db)

    def run(self, place: str | None = None) -> list[str] | None:
        """A run in a process of its own, killed at the place; what it passed, None if it was killed."""
        passed = run_in_child(self.bill, place)
        with self.connect() as db:
            db.autocommit = True  # within a transaction the view would stay as it is
            while db.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'process %%' "
                "AND application_name <> %s",
                (f"process {os.getpid()}",),
            ).fetchone():
                time.sleep(0.0005)  # what the dead had begun to commit is committed, or never will be
            db.execute("UPDATE billing.customer_lease SET expires_at = '-infinity'")  # the dead run's leases run out
        return passed


class KillPoints:
    """Kills runs, and looks at what is left when others have healed what they left behind."""

    def __init__(self, dsn: str, simulator: StripeSimulator, sink: Sink = Sink.BILLING_METERS) -> None:
        self.figures, self._sink = Figures(), sink
        self._connections, self._simulator = KeptConnections(dsn), simulator
        self._time = simulator.now().replace(minute=5, second=0, microsecond=0) + HOUR
        self._hours: list[Hour] = []
        simulator.set_clock(self._time)
        # the hours go on for longer than billing periods do, and all of them are to be billed
        simulator.settings(invoice_grace_seconds=timedelta(days=3650).total_seconds())
        link_all(World(dsn, simulator, sink=sink))

    def places(self, scenario: Scenario) -> list[str]:
        """What the scenario's run passes when nobody kills it."""
        ((hour, _),) = self._each(scenario, ["nowhere"])
        return self._heal(hour, "nowhere")

    def one_deep(self, scenario: Scenario, places: Sequence[str]) -> dict[str, list[str]]:
        """Kills a run at each of the places; the next run heals. Returns what the healing passed."""
        healing = {}
        for hour, place in self._each(scenario, places):
            self.figures.points[scenario] += 1
            self._kill(hour, place)
            healing[place] = self._heal(hour, place)
        return healing

    def two_deep(self, scenario: Scenario, pairs: Sequence[tuple[str, str]]) -> None:
        """Kills a run at the first place, the one that heals at the second; a third one heals."""
        for hour, (first, second) in self._each(scenario, pairs):
            self.figures.pairs[scenario] += 1
            self._kill(hour, first)
            self._kill(hour, second)
            self._heal(hour, f"{first}, then {second}")

    def close(self) -> Figures:
        """The last look, at what Stripe has of all hours."""
        events: defaultdict[int, list[tuple[str, str, int]]] = defaultdict(list)
        for event in self._simulator.iterate_meter_events():
            events[event["timestamp"] // 3600].append((event["customer"], event["identifier"], int(event["value"])))
        for record in self._simulator.usage_records():
            events[record["timestamp"] // 3600].append((record["customer"], record["idempotency_key"], record["quantity"]))
        for hour in self._hours:
            self._compare(hour, events.pop(int(hour.window.start.timestamp()) // 3600, []))
        if events:
            self.figures.problems.append(f"Stripe has events of {len(events)} hours that hold no usage")
        self._connections.close()
        return self.figures

    def _each(self, scenario: Scenario, what: Sequence[What]) -> Iterator[tuple[Hour, What]]:
        for begin in range(0, len(what), MOST_HOURS):
            chunk = what[begin : begin + MOST_HOURS]
            for hour, one in zip(self._prepare(scenario, len(chunk)), chunk, strict=True):
                hour.sql("DELETE FROM billing.metered_item")  # so that every run asks Stripe for its items and prices again
                hour.sql("DELETE FROM billing.price")
                yield hour, one

    def _prepare(self, scenario: Scenario, count: int) -> list[Hour]:
        """The hours of a scenario, each up to where the run begins that is killed; later than all before them."""
        self._pass(timedelta(hours=count))
        starts = [self._time.replace(minute=0) - (n + 1) * HOUR for n in range(count)]
        hours = [
            Hour(
                self._connections.dsn,
                self._simulator,
                Window(start),
                lambda: self._time,
                sink=self._sink,
                connections=self._connections,
                scenario=scenario,
            )
            for start in starts
        ]
        for hour in hours:
            hour.use_all(TOKENS)
        if scenario is Scenario.LATE_USAGE:
            for hour in hours:
                hour.bill()
                hour.use_all(LATE_TOKENS)
        if scenario is Scenario.NEW_GENERATION:
            path = "/v1/billing/meter_events" if self._sink is Sink.BILLING_METERS else "/v1/subscription_items"
            self._simulator.seed_faults(1, {"reset_before_effect": 1.0}, path=path)
            for hour in hours:
                hour.freeze()
                with suppress(StripeUnavailable):
                    hour.push(replace(SETTINGS, tries=1))
            self._simulator.clear_faults()
            self._pass(timedelta(hours=21))  # too late for a blind resend: the first look at the summaries finds nothing
            for hour in hours if self._sink is Sink.BILLING_METERS else ():  # a usage record would simply be sent
                with suppress(ReportsLeftOver):
                    hour.push()
            self._pass(timedelta(hours=25))  # the second look, a day later, is what the killed run begins with
        self._hours += hours
        return hours

    def _pass(self, time: timedelta) -> None:
        self._time += time
        self._simulator.set_clock(self._time)

    def _kill(self, hour: Hour, place: str) -> None:
        if hour.run(place) is None:
            self.figures.kills += 1
        else:
            self.figures.outlived += 1
        if broken := [term for term in hour.conservation() if not term.holds]:
            self.figures.problems.append(f"{hour.scenario} killed {place}: the conservation law is broken: {broken}")

    def _heal(self, hour: Hour, killed: str) -> list[str]:
        """Bills what the killed left, here: the processes forked from this one have nothing left to import. Returns what was passed."""
        with killed_at(None) as passed, suppress(BillingError):  # what is left to do is seen below
            hour.bill()
        with self._connections.connect() as db:
            (found,) = (
                db.execute(
                    "SELECT array_agg(DISTINCT state) FROM billing.usage_report WHERE window_start = %s AND tenant_id <> 'unlinked'",
                    (hour.window.start,),
                ).fetchone()
                or ()
            )
        terms = hour.conservation()
        quarantined = hour.tokens["unlinked"]
        billed, aside = sum(term.billed_tokens for term in terms), sum(term.quarantined_tokens for term in terms)
        if found != ["billed"] or (billed, aside) != (hour.tokens.total() - quarantined, quarantined) or not all(t.holds for t in terms):
            self.figures.problems.append(f"{hour.scenario} killed {killed}: reports {found}, {terms}")
        return passed

    def _compare(self, hour: Hour, events: list[tuple[str, str, int]]) -> None:
        """Each customer's tokens are at Stripe once, each identifier came once, and exactly the rows of linked tenants are marked."""
        with self._connections.connect() as db:
            customers: dict[str, str] = dict(db.execute("SELECT id, stripe_customer_id FROM tenants").fetchall())
            marked: Counter[str] = Counter(
                dict(
                    db.execute(
                        "SELECT tenant_id, sum(input_tokens + output_tokens) FROM token_usage "
                        "WHERE billed AND created_at >= %s AND created_at < %s GROUP BY 1",
                        (hour.window.start, hour.window.end),
                    ).fetchall()
                )
            )
        used, at_stripe = Counter[str](), Counter[str]()
        for tenant, tokens in hour.tokens.items():
            if tenant in customers:
                used[customers[tenant]] += tokens
            if marked[tenant] != (tokens if tenant in customers else 0):
                self.figures.problems.append(f"{hour.scenario}, {hour.window}: {marked[tenant]} of {tenant}'s {tokens} tokens are marked")
        for customer, _, tokens in events:
            at_stripe[customer] += tokens
        for customer in used.keys() | at_stripe.keys():
            self.figures.lost_tokens += max(0, used[customer] - at_stripe[customer])
            self.figures.doubled_tokens += max(0, at_stripe[customer] - used[customer])
        if at_stripe != used or len({identifier for _, identifier, _ in events}) != len(events):
            self.figures.problems.append(f"{hour.scenario}, {hour.window}: used {dict(used)}, Stripe has {events}")


# --- make kill-points ---------------------------------------------------------------------------------------------------


def kill_everywhere(dsn: str, job: int, jobs: int, pairs: int | None, sink: Sink) -> Figures:
    """One of so many jobs that share all places and pairs, or so many pairs, of each scenario, with a simulator of its own."""
    logging.disable(logging.WARNING)
    with StripeSimulator.start() as simulator:
        proof = KillPoints(dsn, simulator, sink)
        for scenario in Scenario:
            places = proof.places(scenario)
            healing = proof.one_deep(scenario, places[job::jobs])
            found = [(first, second) for first in healing if first in different(places) for second in different(healing[first])]
            proof.two_deep(scenario, found if pairs is None else Random(job).sample(found, min(len(found), pairs // jobs)))
        return proof.close()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the work, each with a database of its own.")] = 2,
    pairs: Annotated[int | None, typer.Option(min=0, help="A sample of so many pairs of each scenario; without it, all.")] = None,
    sink: Annotated[Sink, typer.Option(help="Where usage is reported.")] = Sink.BILLING_METERS,
) -> None:
    """Kill a run at every place, and the run that heals it at every place of its own; exit 0 only if nothing is lost or doubled."""
    kept = {name: value for name, value in without_stripe(os.environ).items() if not name.lower().endswith("_proxy")}
    os.environ.clear()
    os.environ.update(kept)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with this process
    HOME.mkdir(parents=True, exist_ok=True)
    figures, started = Figures(), time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="kill-points-", dir=HOME) as folder,
        PostgresServer(Path(folder) / "postgres", durable=False) as postgres,
        ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as processes,
    ):
        os.environ["AIRFLOW_HOME"] = folder  # where worlds keep what is kept outside the database
        databases = [postgres.recreate_database(f"kill_points_{job}") for job in range(jobs)]
        for dsn in databases:
            prepare_billing_database(dsn)
        for result in [processes.submit(kill_everywhere, dsn, job, jobs, pairs, sink) for job, dsn in enumerate(databases)]:
            figures.add(result.result())
    for scenario in Scenario:
        print(f"{scenario}: killed at {figures.points[scenario]:,} places, and at {figures.pairs[scenario]:,} pairs of places")
    print(
        f"{figures.kills:,} kills in {time.monotonic() - started:.0f} s ({figures.outlived:,} places were not met again): "
        f"{figures.lost_tokens:,} tokens lost, {figures.doubled_tokens:,} doubled"
    )
    for problem in figures.problems[:20]:
        print(f"  {problem}")
    if figures.problems or figures.lost_tokens or figures.doubled_tokens:
        print(f"{len(figures.problems)} things went wrong")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
