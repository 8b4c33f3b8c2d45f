"""Random histories: tenants use tokens, hours are billed, everything goes wrong on the way, and in the end every token is billed once.

`Histories` lives a plan, heals the world and compares the three witnesses: the rows,
the ledger and Stripe. What goes wrong is in `faults`."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from datetime import datetime, timedelta
from io import StringIO
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener
from urllib.request import Request as HttpRequest

import stripe
from benchmarks.seed_job import seed_job

from crash.faults import (
    LATE_COMMIT_S,
    WORKER,
    Connection,
    Network,
    Pool,
    SyncTransport,
    Worker,
    doors,
)
from crash.plans import (
    EPOCH,
    LINKED,
    MOST_READ_BACKS,
    UNLINKED,
    UNTROUBLED,
    Attempt,
    Bill,
    EndWriter,
    Outage,
    Pass,
    Plan,
    Record,
    Step,
    make_plan,
)
from crash.result import Result
from sandbox.stripe_account import link_tenants
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters import ledger
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.errors import ReportsLeftOver, StripeUnavailable
from token_billing.model import Shard
from token_billing.settings import PushSettings
from token_billing.stages.check_conservation import check_conservation
from token_billing.stages.freeze import freeze
from token_billing.stages.late_usage import late_windows
from token_billing.stages.mark_billed import mark_billed
from token_billing.stages.push import push
from token_billing.windows import Window

Subject = Literal["product", "replaced"]


class Histories:
    """Lives histories one after the other, in one adopted database and one simulator; use it as a context manager."""

    def __init__(self, dsn: str, simulator: StripeSimulator, subject: Subject = "product") -> None:
        self._simulator, self._subject = simulator, subject
        self._pool = Pool(dsn)
        self._resources = ExitStack()

    def __enter__(self) -> "Histories":
        self._resources.callback(self._pool.close)
        self._resources.enter_context(doors(lambda: self._network))
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
        self._result = Result(plan.seed)
        self._figures = self._result.figures
        self._now = EPOCH
        self._network = Network(lambda: self._now, self._figures)
        self._writers: dict[int, Connection] = {}
        self._late_commits: list[threading.Timer] = []
        self._windows: set[Window] = set()
        self._empty()
        self._link(plan.unlinked_kind)
        try:
            for step in plan.steps:
                self._do(step)
            self._heal()
        finally:
            for timer in self._late_commits:
                timer.join()
            for writer in self._writers.values():
                writer.close()
        self._compare()
        self._figures["histories"] += 1
        return self._result

    # --- the world ---

    def _empty(self) -> None:
        with self._pool.connect() as db:
            tables = [
                table
                for (table,) in db.execute(
                    "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
                    "WHERE schemaname = 'billing' AND tablename NOT IN ('ledger', 'migration')"
                )
            ]
            db.execute("SET LOCAL session_replication_role = replica")  # rows may be deleted, only here
            db.execute("; ".join(f"DELETE FROM {table}" for table in [*tables, "token_usage", "tenants"]))
            db.execute("UPDATE billing.ledger SET stripe_account_id = NULL, stripe_livemode = NULL, pinned_at = NULL")
        self._simulator.reset(clock=EPOCH)

    def _link(self, unlinked_kind: str) -> None:
        alone = [tenant for tenant in LINKED if tenant != "b"]
        with self._pool.connect() as db:
            link_tenants(db, {tenant: tenant for tenant in alone}, self._simulator.base_url, self._simulator.api_key)
            db.execute(
                "INSERT INTO tenants SELECT 'b', 'b', stripe_customer_id, stripe_subscription_id, stripe_usage_item_id "
                "FROM tenants WHERE id = 'a'"
            )
            if unlinked_kind != "unknown tenant":
                customer = "cus_without_item" if unlinked_kind == "no subscription item" else None
                db.execute("INSERT INTO tenants (id, stripe_customer_id) VALUES (%s, %s)", (UNLINKED, customer))
            self._customers = dict(db.execute("SELECT id, stripe_customer_id FROM tenants WHERE id <> %s", (UNLINKED,)).fetchall())
        self._network.customer_numbers = {customer: ord(tenant) for tenant, customer in reversed(self._customers.items())}

    def _do(self, step: Step) -> None:
        match step:
            case Pass(minutes):
                self._pass(timedelta(minutes=minutes))
            case Record():
                self._record(step)
            case EndWriter(writer, commit):
                self._end_writer(writer, commit)
            case Outage(kind, minutes):
                self._figures["outages"] += 1
                self._network.outage = (kind, self._now + timedelta(minutes=minutes))
            case Bill():
                self._bill(step)

    def _pass(self, span: timedelta) -> None:
        if not span:
            return
        if span > timedelta(hours=1):
            self._let_everything_arrive()  # no request is under way for longer
        self._now += span
        self._simulator.set_clock(self._now)

    def _let_everything_arrive(self) -> None:
        opener = build_opener(ProxyHandler({}))
        for _, late in self._network.under_way:
            self._figures["effects after recovery began"] += 1
            with (
                suppress(HTTPError),
                opener.open(HttpRequest(late.url, str(late.body).encode(), dict(late.headers), method="POST"), timeout=20) as answer,
            ):
                answer.read()
        self._network.under_way.clear()

    def _record(self, step: Record) -> None:
        times = [EPOCH + timedelta(minutes=minute, seconds=7) for _, minute, _, _ in step.rows]
        self._windows |= {Window(at.replace(minute=0, second=0)) for at in times}
        late = sum(at < self._now.replace(minute=0, second=0) for at in times)
        db = self._pool.connect()
        db.execute(
            "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) "
            "SELECT tenant, 'm', input, output, at "
            "FROM unnest(%s::text[], %s::integer[], %s::integer[], %s::timestamptz[]) AS new (tenant, input, output, at)",
            ([row[0] for row in step.rows], [row[2] for row in step.rows], [row[3] for row in step.rows], times),
        )
        if step.writer is not None:
            self._writers[step.writer] = db
            return
        self._figures["late rows"] += 0 if step.rolled_back else late
        self._figures["writers rolled back"] += step.rolled_back
        if step.rolled_back:
            db.rollback()
        else:
            db.commit()
        self._pool.give_back(db)

    def _end_writer(self, number: int, commit: bool) -> None:
        writer = self._writers.pop(number)
        self._figures["long writers committed" if commit else "writers rolled back"] += 1
        if commit:
            writer.commit()
        else:
            writer.rollback()
        self._pool.give_back(writer)

    # --- runs ---

    def _bill(self, step: Bill) -> None:
        window = None if step.hour is None else Window(EPOCH + timedelta(hours=step.hour))
        if len(step.attempts) == 1:
            return self._run(window, step.attempts[0])
        self._figures["runs beside another"] += len(step.attempts)
        attempts = [
            threading.Thread(target=self._run, args=(window, Attempt(one.kill, one.troubles, one.looks, one.tries, one.shard_count)))
            for one in step.attempts
        ]
        for attempt in attempts:
            attempt.start()
        for attempt in attempts:
            attempt.join()

    def _run(self, window: Window | None, attempt: Attempt = UNTROUBLED) -> None:
        self._figures["runs"] += 1
        worker = Worker(self._figures, attempt.kill, attempt.troubles, attempt.looks, self._look)
        before, until = WORKER.set(worker), self._now + timedelta(minutes=sum(attempt.pauses))
        pauses = iter(timedelta(minutes=minutes) for minutes in attempt.pauses)
        try:
            if self._subject == "replaced":
                self._replaced_job(worker)
            else:
                windows = [window] if window else late_windows(lambda: self._pool.connect(worker), lambda: self._now)
                for one in windows:
                    self._stages(worker, one, attempt, pauses)
        except BaseException as error:
            if not worker.dead:
                if not isinstance(error, Exception):
                    raise
                self._problem(f"a run of {window or 'late usage'} failed: {type(error).__name__}: {error}")
        finally:
            WORKER.reset(before)
            worker.bury()
            if worker.late_commit is not None:
                self._commit_later(worker, worker.late_commit)
            else:
                self._expire_leases(worker)
            self._pass(until - self._now)  # the plan goes on at the same time, wherever the run was killed

    def _stages(self, worker: Worker, window: Window, attempt: Attempt, pauses: Iterator[timedelta]) -> None:
        """As the DAG orders them: rows are marked whatever became of the push."""

        def connect() -> Connection:
            return self._pool.connect(worker)

        def clock() -> datetime:
            return self._now

        settings = PushSettings(
            largest_chunk=3,
            calls_per_second=5000,
            reads_per_second=5000,
            concurrency=8,
            tries=attempt.tries,
            backoff_s=0.001,
            lease=timedelta(seconds=20),
        )
        target = StripeTarget(self._simulator.api_key, self._simulator.base_url, sandbox=True, timeout_s=5)
        freeze(connect, window, clock)
        self._pass(next(pauses, timedelta()))
        for number in range(attempt.shard_count):
            try:
                push(connect, target, window, Shard(number, attempt.shard_count), clock, settings)
            except (ReportsLeftOver, StripeUnavailable):
                self._figures["pushes with something left over"] += 1
        self._pass(next(pauses, timedelta()))
        mark_billed(connect, window, clock)
        check_conservation(connect, window)

    def _replaced_job(self, worker: Worker) -> None:
        base = self._simulator.base_url
        client = stripe.StripeClient(
            self._simulator.api_key,
            base_addresses={"api": base, "meter_events": base},
            http_client=SyncTransport(self._network),
            max_network_retries=0,
        )
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

    # --- healing and comparing ---

    def _heal(self) -> None:
        """Outages end, leases have expired, what was under way arrives, open transactions commit; then every hour is run until
        nothing changes, for as many days as read-backs take."""
        for timer in self._late_commits:
            timer.join()
        for number in list(self._writers):
            self._end_writer(number, commit=True)
        self._let_everything_arrive()
        self._network.outage = None
        self._pass(timedelta(hours=1))
        for window in sorted(self._windows):
            self._run(window)
        if self._subject == "replaced":
            return
        for _ in range(MOST_READ_BACKS):
            if not (unsettled := self._unsettled()):
                break
            self._figures["days of read-backs"] += 1
            self._pass(timedelta(hours=25))
            for window in unsettled:
                self._run(window)
        settled = self._settled_world()
        for window in sorted(self._windows):
            self._run(window)
        if self._settled_world() != settled:
            self._problem("another run of settled hours changed something")
        if left := late_windows(self._pool.connect, lambda: self._now):
            self._problem(f"late usage still finds something in {', '.join(map(str, left))}")

    def _unsettled(self) -> list[Window]:
        with self._pool.connect() as db:
            starts = db.execute(
                "SELECT DISTINCT window_start FROM billing.usage_report WHERE state NOT IN ('billed', 'quarantined') ORDER BY window_start"
            )
            return [Window(start) for (start,) in starts]

    def _settled_world(self) -> tuple[Any, ...]:
        with self._pool.connect() as db:
            reports = db.execute("SELECT identifier, state, token_count, attempt_count FROM billing.usage_report ORDER BY id").fetchall()
            fences = db.execute("SELECT window_start, revision FROM billing.fence ORDER BY 1, 2").fetchall()
        return reports, fences, len(self._simulator.meter_events())

    def _look(self) -> None:
        """At this instant: Stripe counts no more than was used, and the conservation law holds for every tenant and hour."""
        if self._subject == "replaced":
            return
        self._figures["looks at the law"] += 1
        at_stripe = self._at_stripe()  # first: what it counts was frozen from rows that are still there afterwards
        with self._pool.connect() as db:
            terms = ledger.conservation(db, EPOCH - timedelta(days=1), EPOCH + timedelta(days=60))
        for broken in [term for term in terms if not term.holds]:
            self._problem(f"the conservation law is broken: {broken}")
        used: Counter[str] = Counter()
        for term in terms:
            if term.tenant_id in self._customers:
                used[self._customers[term.tenant_id]] += term.row_tokens
        for customer, tokens in at_stripe.items():
            if tokens > used[customer]:
                self._problem(f"at {self._now} Stripe counts {tokens} tokens of customer {customer}, who used {used[customer]}")

    def _at_stripe(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for event in self._simulator.meter_events():
            if event["status"] == "accepted":
                counted[event["customer"]] += int(event["value"])
        return counted

    def _compare(self) -> None:
        """The rows, the ledger and Stripe say the same of every tenant."""
        with self._pool.connect() as db:
            used, marked = Counter[str](), Counter[str]()
            for tenant, tokens, billed in db.execute(
                "SELECT tenant_id, sum(input_tokens::bigint + output_tokens)::bigint, "
                "coalesce(sum(input_tokens::bigint + output_tokens) FILTER (WHERE billed), 0)::bigint FROM token_usage GROUP BY tenant_id"
            ):
                used[tenant], marked[tenant] = tokens, billed
            reports = db.execute(
                "SELECT tenant_id, identifier, state, token_count, generation, revision, quarantine_reason FROM billing.usage_report"
            ).fetchall()
            self._figures["rows"] += db.execute("SELECT count(*) FROM token_usage").fetchall()[0][0]
        self._figures["tokens"] += sum(used.values())
        self._figures["reports"] += len(reports)
        self._figures["reports of late usage"] += sum(revision > 0 for *_, revision, _ in reports)
        self._figures["reports sent again after proven absence"] += sum(generation > 0 for *_, generation, _, _ in reports)
        self._compare_customers(used)
        for tenant in LINKED:
            if marked[tenant] != used[tenant]:
                self._problem(f"tenant {tenant}: {used[tenant]} tokens used, {marked[tenant]} marked billed")
        if marked[UNLINKED]:
            self._result.lost_tokens += marked[UNLINKED]
            self._problem(f"{marked[UNLINKED]} tokens of the unlinked tenant are marked billed, nobody pays them")
        if self._subject == "product":
            self._compare_reports(used, reports)
            self._look()

    def _compare_customers(self, used: Counter[str]) -> None:
        expected: Counter[str] = Counter()
        for tenant, customer in self._customers.items():
            expected[customer] += used[tenant]
        at_stripe = self._at_stripe()
        for customer in expected.keys() | at_stripe.keys():
            difference = at_stripe[customer] - expected[customer]
            self._result.lost_tokens += max(0, -difference)
            self._result.doubled_tokens += max(0, difference)
            if difference:
                tenants = " and ".join(tenant for tenant, of in self._customers.items() if of == customer)
                self._problem(f"{tenants}: {expected[customer]} tokens used, Stripe counts {at_stripe[customer]} ({difference:+})")

    def _compare_reports(self, used: Counter[str], reports: Sequence[tuple[Any, ...]]) -> None:
        """Each report is at Stripe once, under its own name, or quarantined because its tenant is not linked."""
        events: defaultdict[str, list[int]] = defaultdict(list)
        for event in self._simulator.meter_events():
            events[event["identifier"]].append(int(event["value"]))
        self._figures["meter events"] += sum(map(len, events.values()))
        quarantined: Counter[str] = Counter()
        for tenant, identifier, state, tokens, _, _, reason in reports:
            found = events.pop(identifier, [])
            if state == "quarantined" and tenant == UNLINKED:
                quarantined[tenant] += tokens
            elif state != "billed":
                self._problem(f"report {identifier} of tenant {tenant}, {tokens} tokens, is left {state} ({reason or 'for a person'})")
            if found != ([tokens] if state == "billed" and tokens else []):
                self._problem(f"report {identifier} of tenant {tenant}, {tokens} tokens, {state}: Stripe has {found}")
        for identifier, found in events.items():
            self._problem(f"Stripe has {found} under {identifier}, which no report is called")
        if quarantined[UNLINKED] != used[UNLINKED]:
            self._problem(f"the unlinked tenant used {used[UNLINKED]} tokens, {quarantined[UNLINKED]} are quarantined")

    def _problem(self, text: str) -> None:
        if text not in self._result.problems:
            self._result.problems.append(text)


def lived(dsn: str, simulator: StripeSimulator, seeds: Sequence[int], subject: Subject = "product") -> Iterator[Result]:
    """The histories of the seeds, one after the other."""
    with Histories(dsn, simulator, subject) as histories:
        for seed in seeds:
            yield histories.live(make_plan(seed))
