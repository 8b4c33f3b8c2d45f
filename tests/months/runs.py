"""The runs of the DAGs in the months: each calls the product's stages in the DAG's order, over a network that fails now and then."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random

from crash.faults import READ_TROUBLES, TROUBLES, RunTroubles
from crash.workers import WORKER, Connection, Pool, Worker
from months.people import People
from months.settings import SETTINGS
from sandbox.kept_in_files import KeptInFiles
from token_billing.adapters.database import Connect
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.errors import (
    BillingError,
    ConservationBroken,
    FactsUnknown,
    MetersNotTold,
    PeriodsIncomplete,
    ReportsLeftOver,
    StripeUnavailable,
)
from token_billing.model import Clock, Shard
from token_billing.settings import ReconcileSettings
from token_billing.stages.cancel_surplus import cancel_surplus
from token_billing.stages.check_conservation import check_conservation
from token_billing.stages.close_billing_periods import check_closings, hold_and_release
from token_billing.stages.freeze import freeze
from token_billing.stages.late_usage import late_windows
from token_billing.stages.mark_billed import mark_billed
from token_billing.stages.push import push
from token_billing.stages.read_invoices import read_invoices
from token_billing.stages.reconcile_invoices import compare_invoices
from token_billing.stages.reconcile_meters import reconcile_meters
from token_billing.stages.sync_subscriptions import facts_are_known, sync_subscriptions
from token_billing.windows import Window

#: So many of the runs meet trouble on the network, and so many of a troubled run's requests.
TROUBLED_RUNS, TROUBLED_REQUESTS = 0.2, 0.3

#: What a run may fail with that the next one heals.
HEALED_BY_THE_NEXT = (StripeUnavailable, ReportsLeftOver, FactsUnknown)

#: What tells a person of what the oracle judges at the end.
TOLD = (PeriodsIncomplete, MetersNotTold)


@dataclass
class Runs:
    """`passes`: lets time pass while a run waits. `problems`: what no run may fail with."""

    pool: Pool
    target: StripeTarget
    keeper: KeptInFiles
    clock: Clock
    passes: Callable[[timedelta], None]
    rng: Random
    figures: Counter[str]
    reconcile: ReconcileSettings
    #: Called when a window's stages have run.
    after: Callable[[Window], None] = lambda _: None
    problems: list[str] = field(default_factory=list)
    #: Windows in which rows were tampered with on purpose, so that their tokens need not add up.
    tampered: set[datetime] = field(default_factory=set)

    def report_usage(self, window: Window) -> None:
        with self._run("report_usage", window) as connect:
            self._await_facts(connect, window)
            self._stages(connect, window)
            self.after(window)

    def report_late_usage(self) -> bool:
        """Whether it went through all windows."""
        done = False
        with self._run("report_late_usage") as connect:
            with self._task("cancel_surplus"):
                cancel_surplus(connect, self.target, self.clock, SETTINGS)
            windows = late_windows(connect, self.clock)
            if windows:
                self._await_facts(connect, max(windows))
            for window in windows:
                with self._task("report_late_usage", window):
                    self._stages(connect, window)
                    self.after(window)
            done = True
        return done

    def sync_subscriptions(self) -> bool:
        """Whether it went through."""
        done = False
        with self._run("sync_subscriptions") as connect:
            sync_subscriptions(connect, self.target, self.clock, SETTINGS, {})
            done = True
        return done

    def close_billing_periods(self) -> None:
        with self._run("close_billing_periods") as connect:
            try:
                hold_and_release(connect, self.target, self.clock, SETTINGS, self.reconcile)
            finally:
                with self._task("check_closings"):
                    check_closings(connect, self.clock)

    def reconcile_meters(self) -> None:
        with self._run("reconcile_meters") as connect:
            reconcile_meters(connect, self.target, self.clock, SETTINGS)

    def reconcile_invoices(self) -> bool:
        """Whether it went through."""
        done = False
        with self._run("reconcile_invoices") as connect:
            read_invoices(connect, self.target, self.clock)
            compare_invoices(connect, self.target, self.clock, {})
            done = True
        return done

    def approve_proposals(self, people: People) -> None:
        with self._run("approve_proposals") as connect:
            people.act(connect, self.target, self.clock)

    def _await_facts(self, connect: Connect, window: Window) -> None:
        with self._task("await_facts", window):
            while not facts_are_known(connect, self.target, window, self.clock, SETTINGS, {}):
                self.passes(timedelta(minutes=1))

    def _stages(self, connect: Connect, window: Window) -> None:
        """Rows are marked whatever became of the push."""
        freeze(connect, window, self.clock)
        with self._task("push", window):
            push(connect, self.target, window, Shard(0, 1), self.clock, SETTINGS, self.keeper)
        mark_billed(connect, window, self.clock)
        with self._task("check_conservation", window):
            check_conservation(connect, window)

    @contextmanager
    def _run(self, dag: str, window: Window | None = None) -> Iterator[Connect]:
        """One run, whose requests may meet trouble."""
        self.figures[f"runs: {dag}"] += 1
        worker = Worker(self.figures, troubles=self._troubles())
        before = WORKER.set(worker)

        def connect() -> Connection:
            return self.pool.connect(worker)

        try:
            with self._task(dag, window):
                yield connect
        finally:
            WORKER.reset(before)

    @contextmanager
    def _task(self, name: str, window: Window | None = None) -> Iterator[None]:
        """What one task may fail with is written down, and the others go on."""
        try:
            yield
        except (*HEALED_BY_THE_NEXT, *TOLD) as failure:
            self.figures[f"tasks failed: {type(failure).__name__}"] += 1
        except BillingError as failure:
            if isinstance(failure, ConservationBroken) and window is not None and window.start in self.tampered:
                self.figures["tasks failed: rows were tampered with"] += 1
            else:
                self.problems.append(f"{self.clock():%m-%d %H:%M} {name} {window or ''}: {type(failure).__name__}: {failure}")

    def _troubles(self) -> RunTroubles:
        if self.rng.random() >= TROUBLED_RUNS:
            return RunTroubles()

        def drawn(kinds: tuple[str, ...], count: int) -> tuple[str, ...]:
            return tuple(self.rng.choice(kinds) if self.rng.random() < TROUBLED_REQUESTS else "" for _ in range(count))

        return RunTroubles(drawn(TROUBLES, 12), drawn(READ_TROUBLES, 6))
