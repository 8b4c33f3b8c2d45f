"""Random histories: tenants use tokens, hours are billed, everything goes wrong on the way, and in the end every token is billed once.

`Histories` lives a plan and heals the world; the oracle then says what became of the tokens."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import psycopg
from benchmarks.seed_job import seed_job

from crash import oracle, subscription_oracle
from crash.backups import back_up, restore
from crash.faults import Kill
from crash.following import Sync
from crash.network import doors, synchronous_client
from crash.planner import make_plan
from crash.plans import (
    EPOCH,
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
    Run,
    Step,
)
from crash.result import Result
from crash.scene import Scene
from crash.stripe_account import StripeAccount
from crash.syncs import Syncs
from crash.workers import LATE_COMMIT_S, WORKER, Connection, Pool, Worker
from sandbox.kept_in_files import KeptInFiles
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.errors import (
    NothingToRecover,
    ReportsLeftOver,
    RestoredDatabase,
    SendingPaused,
    StripeUnavailable,
    WindowStillOpen,
)
from token_billing.model import Clock, Shard, Sink
from token_billing.settings import Gates, PushSettings
from token_billing.stages.check_conservation import check_conservation
from token_billing.stages.freeze import freeze
from token_billing.stages.kept_mark import require_newest
from token_billing.stages.late_usage import late_windows
from token_billing.stages.mark_billed import mark_billed
from token_billing.stages.push import push
from token_billing.stages.recover import recover
from token_billing.windows import Window

Subject = Literal["product", "replaced"]

#: After so many rounds, 25 h apart, nothing may be open any more: twice absent, a new generation, disowned again, and some to spare.
MOST_ROUNDS = 8


class Histories:
    """Lives histories one after the other, in one adopted database and one simulator; use it as a context manager."""

    def __init__(self, dsn: str, simulator: StripeSimulator, subject: Subject = "product") -> None:
        self._simulator, self._subject = simulator, subject
        self._account = StripeAccount(simulator)
        self._dsn, self._pool = dsn, Pool(dsn)
        self._resources = ExitStack()
        self._folder = Path(self._resources.enter_context(TemporaryDirectory(prefix="histories-")))

    def __enter__(self) -> "Histories":
        self._resources.callback(self._pool.close)
        self._resources.callback(self._account.close)
        self._resources.enter_context(doors(lambda: self._scene.network))
        if self._subject == "replaced":
            self._resources.enter_context(redirect_stdout(StringIO()))  # its failures are prints
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def live(self, plan: Plan) -> Result:
        """One history from an empty world to a healed one."""
        try:
            return self._live(plan)
        except BaseException as error:
            error.add_note(f"in history {plan.seed}")
            raise

    def _live(self, plan: Plan) -> Result:
        self._plan, self._result = plan, Result(plan.seed)
        self._figures = self._result.figures
        self._late_commits: list[threading.Timer] = []
        for kept in self._folder.iterdir():
            kept.unlink()
        usage_records = plan.usage_records and self._subject == "product"
        self._sink = Sink.USAGE_RECORDS if usage_records else Sink.BILLING_METERS
        self._figures["histories with usage records"] += usage_records
        following = plan.following if self._subject == "product" else None
        self._figures["histories with subscriptions"] += following is not None
        self._scene = Scene(self._pool, self._account, plan.unlinked_kind, self._figures, usage_records=usage_records, following=following)
        self._syncs = self._new_syncs()
        self._pass_time = (self._syncs or self._scene).pass_time
        try:
            if self._syncs:
                self._syncs.sync(Sync(0))  # from the start
            for step in plan.steps:
                self._do(step)
            self._heal()
        finally:
            self._wait_for_late_commits()
            self._scene.close()
        self._judge()
        self._figures["histories"] += 1
        return self._result

    def _do(self, step: Step) -> None:
        match step:
            case Pass(minutes):
                (self._syncs.pass_planned if self._syncs else self._scene.pass_time)(timedelta(minutes=minutes))
            case Record():
                self._scene.record(step)
            case EndWriter(writer, commit):
                self._scene.end_writer(writer, commit)
            case Outage(kind, minutes):
                self._figures["outages"] += 1
                self._scene.network.outage = (kind, self._scene.now + timedelta(minutes=minutes))
            case ClockJump(minutes):
                self._figures["clock jumps"] += 1
                self._scene.clock_off = timedelta(minutes=minutes)
            case Disown():
                self._scene.disown(step)
            case Foreign(events):
                self._scene.report_foreign(events)
            case Bill():
                self._bill(step)
            case BackUp():
                self._wait_for_late_commits()
                self._pool.close()
                back_up(self._dsn)
            case Restore():
                self._restore(step)
            case Pause() | Resume() | Decide() | Relink() | Revoke():
                self._act(step)

    # --- runs ---

    def _bill(self, step: Bill) -> None:
        if len(step.runs) == 1 and not step.acts and not (self._syncs and step.syncs):
            return self._run(step.runs[0])
        self._figures["runs beside another"] += len(step.runs) if len(step.runs) > 1 else 0
        # Time stands still while several are at work.
        threads = [threading.Thread(target=self._run, args=(replace(run, pauses=()),)) for run in step.runs]
        threads += [threading.Thread(target=self._act, args=(act,)) for act in step.acts]
        if self._syncs:
            threads += [threading.Thread(target=self._syncs.sync, args=(sync,)) for sync in step.syncs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _restore(self, step: Restore) -> None:
        """As the runbook says: whoever meets the copy is refused, then somebody recovers it."""
        self._figures["restores"] += 1
        self._wait_for_late_commits()
        self._scene.let_everything_arrive()
        self._pool.close()
        restore(self._dsn)
        self._scene.restored = True
        self._scene.people.hear_everything_again()
        if self._subject == "replaced":
            return
        self._run(replace(step.meeting_it, pauses=()))
        for kill in (step.kill, None) if step.kill else (None,):
            with self._working("a recovery", kill) as worker, suppress(NothingToRecover):
                recover(
                    lambda: self._pool.connect(worker),
                    KeptInFiles(self._folder),
                    lambda: self._scene.now + self._scene.clock_off,
                    recovered_by="a person",
                )
                self._figures["recoveries"] += 1
            self._wait_for_late_commits()

    def _wait_for_late_commits(self) -> None:
        for timer in self._late_commits:
            timer.join()

    def _act(self, act: Pause | Resume | Decide | Relink | Revoke) -> None:
        if isinstance(act, Relink) and self._scene.restored:
            return  # as the runbook says: the customer that the lost time sent to would not be looked at
        if self._subject == "product":
            with self._working(f"{act}", act.kill if isinstance(act, Revoke) else None) as worker:
                self._scene.people.do(act, lambda: self._pool.connect(worker), lambda: self._scene.now + self._scene.clock_off)

    def _run(self, run: Run) -> None:
        self._figures["runs"] += 1
        self._figures["runs cleared from a later stage"] += run.first_stage != "freeze"
        self._figures["runs with a wrong clock"] += bool(run.clock_off or self._scene.clock_off)
        until = self._scene.now + timedelta(minutes=sum(run.pauses))
        what = f"a run of {'late usage' if run.hour is None else self._window(run.hour)}"
        with self._working(what, run.kill, run) as worker:
            if self._subject == "replaced":
                self._replaced_job(worker)
            elif self._is_newest(worker):
                self._hours(worker, run)
        self._pass_time(max(timedelta(), until - self._scene.now))  # the plan goes on at the same time, wherever the run was killed

    @contextmanager
    def _working(self, what: str, kill: Kill | None, run: Run | None = None) -> Iterator[Worker]:
        """The block is a worker's: it may die, and what is left of it then is what a dead process leaves."""
        worker = Worker(self._figures, kill, run and run.troubles, run.looks if run else frozenset(), self._look)
        before = WORKER.set(worker)
        try:
            yield worker
        except BaseException as error:
            if not worker.dead:
                if not isinstance(error, Exception):
                    raise
                self._problem(f"{what} failed: {type(error).__name__}: {error}")
        finally:
            WORKER.reset(before)
            worker.bury()
            if worker.late_commit is not None:
                self._commit_later(worker, worker.late_commit)
            else:
                self._expire_leases(worker)

    def _is_newest(self, worker: Worker) -> bool:
        """What every task asks first."""
        try:
            require_newest(lambda: self._pool.connect(worker), KeptInFiles(self._folder))
        except RestoredDatabase:
            self._figures["runs refused on a restored database"] += 1
            if not self._scene.restored:
                raise
            return False
        return True

    def _hours(self, worker: Worker, run: Run) -> None:
        def clock() -> datetime:
            return self._scene.now + self._scene.clock_off + timedelta(minutes=run.clock_off)

        windows = late_windows(lambda: self._pool.connect(worker), clock) if run.hour is None else [self._window(run.hour)]
        pauses = iter(timedelta(minutes=minutes) for minutes in run.pauses)
        for window in windows:
            if clock() < window.end:
                self._figures["runs before their hour's end"] += 1
                with suppress(WindowStillOpen):
                    self._stages(worker, window, run, clock, pauses)
            else:
                self._stages(worker, window, run, clock, pauses)

    def _stages(self, worker: Worker, window: Window, run: Run, clock: Clock, pauses: Iterator[timedelta]) -> None:
        """As the DAG orders them: rows are marked whatever became of the push."""

        def connect() -> Connection:
            return self._pool.connect(worker)

        settings, target, keeper = self._settings(run.tries), self._target, KeptInFiles(self._folder)
        if run.first_stage == "freeze":
            if self._syncs and run.awaits_facts:
                self._syncs.await_facts(worker, window, clock)
            freeze(connect, window, clock)
            self._pass_time(next(pauses, timedelta()))
        for number in range(run.shard_count) if run.first_stage != "mark_billed" else ():
            try:
                push(connect, target, window, Shard(number, run.shard_count), clock, settings, keeper)
            except (ReportsLeftOver, StripeUnavailable):
                self._figures["pushes with something left over"] += 1
            except SendingPaused:
                self._figures["pushes while sending was paused"] += 1
            except psycopg.errors.CheckViolation as refusal:
                if "was disowned" not in str(refusal):
                    raise
                self._figures["answers about what was disowned meanwhile"] += 1
        self._pass_time(next(pauses, timedelta()))
        mark_billed(connect, window, clock)
        check_conservation(connect, window)

    @property
    def _target(self) -> StripeTarget:
        return StripeTarget(self._simulator.api_key, self._simulator.base_url, sandbox=True, timeout_s=5)

    def _new_syncs(self) -> Syncs | None:
        return self._scene.subscribers and Syncs(
            self._scene.subscribers,
            self._scene,
            self._pool,
            self._target,
            self._settings(),
            self._account.price_overrides,
            self._figures,
            lambda what, run: self._working(what, run.kill, run),
            self._wait_for_late_commits,
        )

    def _settings(self, tries: int = 1) -> PushSettings:
        return PushSettings(
            largest_chunk=3,
            calls_per_second=5000,
            reads_per_second=5000,
            concurrency=8,
            tries=tries,
            backoff_s=0.001,
            lease=timedelta(seconds=20),
            gates=Gates(self._plan.gate_tokens),
            sink=self._sink,
        )

    def _replaced_job(self, worker: Worker) -> None:
        client = synchronous_client(self._simulator.api_key, self._simulator.base_url, self._scene.network)
        seed_job(lambda: self._pool.connect(worker), client, "managed_ai_tokens_bundled")

    def _expire_leases(self, worker: Worker) -> None:
        """Time passes until nobody takes the dead for alive: what Postgres still did for it is done, its leases have run out."""
        if worker.dead and worker.holders:
            with self._pool.connect() as db:
                while db.execute("SELECT FROM pg_stat_activity WHERE pid = ANY(%s)", (worker.cut_pids,)).fetchone() is not None:
                    db.rollback()  # one instant's view of the activity holds for a transaction
                    time.sleep(0.001)
                db.execute(
                    "UPDATE billing.customer_lease SET expires_at = '-infinity' WHERE holder = ANY(%s::uuid[])", (list(worker.holders),)
                )

    def _commit_later(self, worker: Worker, connection: Connection) -> None:
        def commit() -> None:
            connection.pgconn.exec_(b"COMMIT")
            connection.pgconn.finish()
            self._expire_leases(worker)

        self._figures["commits after recovery began"] += 1
        self._late_commits.append(threading.Timer(LATE_COMMIT_S, commit))
        self._late_commits[-1].start()

    # --- healing and judging ---

    def _heal(self) -> None:
        """Outages end, clocks are right, leases have expired, what was under way arrives, open transactions commit, people decide what is
        theirs; then what late usage finds is run, as its DAG does, until nothing changes, for as many days as read-backs take."""
        self._wait_for_late_commits()
        self._scene.end_writers()
        self._scene.let_everything_arrive()
        self._scene.network.outage, self._scene.clock_off = None, timedelta()
        self._act(Resume())
        self._pass_time(timedelta(hours=2))  # what a clock ahead of its time froze is over, too
        if self._subject == "replaced":
            return self._run(Run(None))
        unchanged = 0
        for _ in range(MOST_ROUNDS):
            before = self._ledger()
            if self._syncs:
                self._syncs.sync(Sync(0))
            self._scene.people.notice_everything()
            self._act(Revoke())
            self._act(Decide(self._plan.last_decisions))
            if not (left := self._left()):
                break
            for window in left:
                self._run(Run(self._hour(window)))
            unchanged = unchanged + 1 if self._ledger() == before else 0
            if unchanged == 2:
                break  # what is left waits for a person
            if self._left():
                self._figures["days of read-backs"] += 1
                self._pass_time(timedelta(hours=25))
        settled, events = self._ledger(), self._account.meter_events()
        for window in sorted(self._scene.windows):
            self._run(Run(self._hour(window)))
        if (self._ledger(), self._account.meter_events()) != (settled, events):
            self._problem("another run of settled hours changed something")

    def _window(self, hour: int) -> Window:
        return Window(EPOCH + timedelta(hours=hour))

    def _hour(self, window: Window) -> int:
        return (window.start - EPOCH) // timedelta(hours=1)

    def _left(self) -> list[Window]:
        """What late usage finds, and what it would find an hour later."""
        with self._pool.connect() as db:
            starts = db.execute("SELECT DISTINCT window_start FROM billing.usage_report WHERE state NOT IN ('billed', 'quarantined')")
            unsettled = {Window(start) for (start,) in starts}
        return sorted(unsettled.union(late_windows(self._pool.connect, lambda: self._scene.now)))

    def _ledger(self) -> tuple[Any, ...]:
        with self._pool.connect() as db:
            reports = db.execute("SELECT identifier, state, token_count, attempt_count, absent_since FROM billing.usage_report ORDER BY id")
            fences = db.execute("SELECT window_start, revision FROM billing.fence ORDER BY 1, 2")
            return reports.fetchall(), fences.fetchall()

    def _look(self) -> None:
        if self._subject == "replaced":
            return
        self._figures["looks at an instant"] += 1
        events = self._account.meter_events()
        with self._pool.connect() as db:
            for problem in oracle.look(db, events, self._scene.group_of):
                self._problem(problem)

    def _judge(self) -> None:
        if self._scene.subscribers:
            with self._pool.connect() as db:
                record, final_at = self._scene.subscribers.record, self._scene.subscribers.final_invoices()
                judged = subscription_oracle.judge(db, self._account.meter_events(), record, final_at, self._scene.now)
            self._figures.update(judged.figures)
            self._scene.allowed.not_billed_ids |= judged.aside_ids
            for problem in judged.problems:
                self._problem(problem)
        with self._pool.connect() as db:
            verdict = oracle.Verdict(
                db, self._account.meter_events(), self._scene.group_of, self._scene.allowed, restored=self._scene.restored
            )
        found = verdict.of_tokens()
        if self._subject == "product":
            verdict.of_reports()
            self._look()
        self._figures.update(found.figures)
        self._result.lost_tokens, self._result.doubled_tokens = found.lost_tokens, found.doubled_tokens
        for problem in found.problems:
            self._problem(problem)

    def _problem(self, text: str) -> None:
        if text not in self._result.problems:
            self._result.problems.append(text)


def lived(dsn: str, simulator: StripeSimulator, seeds: Sequence[int], subject: Subject = "product") -> Iterator[Result]:
    """The histories of the seeds, one after the other."""
    with Histories(dsn, simulator, subject) as histories:
        for seed in seeds:
            yield histories.live(make_plan(seed))
