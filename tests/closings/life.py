"""A history around period ends is lived: the runs come at their times while the scheduler lives, but for those that have nothing new to
look at."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from closings.oracle import Look, Row, Truth, judge
from closings.plans import BEGIN, HOUR, MINUTE, Act, Outage, Plan
from crash.faults import Kill
from crash.network import Network
from crash.result import Result
from crash.scene import empty
from crash.stripe_account import StripeAccount
from crash.workers import WORKER, Connection, Pool, Worker
from sandbox.kept_in_files import KeptInFiles
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters.database import Connect
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.errors import BillingError, PeriodsIncomplete
from token_billing.model import Shard
from token_billing.settings import PushSettings, ReconcileSettings
from token_billing.stages.close_billing_periods import check_closings, hold_and_release
from token_billing.stages.exclude import exclude
from token_billing.stages.freeze import freeze
from token_billing.stages.late_usage import late_windows
from token_billing.stages.mark_billed import mark_billed
from token_billing.stages.push import push
from token_billing.stages.reconcile_meters import reconcile_meters
from token_billing.stages.sync_subscriptions import sync_subscriptions
from token_billing.windows import Window

SETTINGS = PushSettings(calls_per_second=5000, reads_per_second=5000, concurrency=8, tries=2, backoff_s=0.001)

#: After the last period's end everything is final, or will never be.
ENDS_AFTER = 80 * HOUR

#: While nothing happens a run finds what the one before found; so often one is made all the same.
QUIET = 4 * HOUR

#: Runs near a draft's finalisation are all made.
NEAR = 80 * MINUTE


#: A tenant's rows: when each was confirmed, or kept aside with somebody's knowledge.
SETTLED = """
SELECT usage.created_at, usage.input_tokens,
       CASE WHEN report.quarantine_reason = 'excluded_tenant' THEN report.quarantined_at
            WHEN report.state = 'quarantined' THEN acknowledged.acknowledged_at
            ELSE report.confirmed_at END,
       coalesce(report.state = 'quarantined', false)
FROM token_usage usage
LEFT JOIN LATERAL (
    SELECT fence.revision FROM billing.fence
    WHERE fence.window_start = date_trunc('hour', usage.created_at, 'UTC') AND pg_visible_in_snapshot(usage.recorded_xid, fence.snapshot)
    ORDER BY fence.revision LIMIT 1
) fence ON true
LEFT JOIN billing.usage_report report
  ON report.window_start = date_trunc('hour', usage.created_at, 'UTC') AND report.revision = fence.revision
 AND report.tenant_id = usage.tenant_id AND report.side_start <= usage.created_at AND usage.created_at < report.side_end
LEFT JOIN billing.acknowledgement acknowledged ON acknowledged.report_id = report.id
WHERE usage.tenant_id = %s
"""


class Life:
    """One history in an adopted database and a simulator that others have used before."""

    def __init__(self, pool: Pool, account: StripeAccount, simulator: StripeSimulator, folder: Path, plan: Plan) -> None:
        self.plan, self.pool, self.account = plan, pool, account
        self.figures: Counter[str] = Counter()
        self.now = BEGIN
        self.network = Network(lambda: self.now, self.figures)
        self.target = StripeTarget(simulator.api_key, simulator.base_url, sandbox=True, timeout_s=20)
        self.keeper = KeptInFiles(folder)
        self.looks: list[Look] = []
        self._recorded: dict[tuple[str, datetime], datetime] = {}
        self._calls, self._acts = list(reversed(plan.calls)), list(reversed(plan.acts))
        self._by_hand: set[str] = set()
        self._windows: set[datetime] = set()
        self._is_dirty, self._is_late, self._is_news = True, False, True
        self._finalises_at: dict[str, datetime] = {}
        self._closing_count, self._looked_at = 0, BEGIN
        #: When what needs Stripe was last tried, by what it is.
        self._tried_at: dict[str, datetime] = {}

    def live(self) -> Result:
        """From everybody's subscription until all is final and everybody had a last look."""
        self._begin()
        last = max(self.plan.ends.values()) + ENDS_AFTER
        last = max(last, *(one.until + 3 * HOUR for one in self.plan.outages), last)
        hour = BEGIN
        while hour < last:
            if self._is_due(hour):
                self._hour(hour)
            hour += HOUR
        self._stand_at(last)
        self.network.outage = None
        for _ in range(2):  # everybody is there again
            self._late_usage()
            self._confirm()
            self._close(may_die=False)
            self._stand_at(self.now + 10 * MINUTE)
        judgement = judge(self.account, [self._truth(tenant) for tenant in self.plan.ends], self.looks, self.now)
        return Result(self.plan.seed, self.figures + judgement.figures, judgement.problems)

    # --- Before ---------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        empty(self.pool)
        self.account.reset(BEGIN, [])
        self.account.change_settings(invoice_grace_seconds=self.plan.grace.total_seconds(), summary_delay_seconds=240)
        self.links = {tenant: self._subscribe(tenant, n) for n, tenant in enumerate(self.plan.ends)}
        for tenant in self.plan.excluded:
            exclude(self.pool.connect, tenant, "internal", BEGIN, "ann")
        self._sync()
        self._close(may_die=False)

    def _subscribe(self, tenant: str, number: int) -> tuple[str, str]:
        customer = self.account.post("customers", {"name": tenant})["id"]
        price, _ = self.account.plans[number % 2]
        anchor = int(self.plan.ends[tenant].timestamp())
        bought = self.account.post("subscriptions", {"customer": customer, "items[0][price]": price, "billing_cycle_anchor": anchor})
        with self.pool.connect() as db:
            db.execute(
                "INSERT INTO tenants (id, stripe_customer_id, stripe_subscription_id, stripe_usage_item_id) VALUES (%s, %s, %s, %s)",
                (tenant, customer, bought["id"], bought["items"]["data"][0]["id"]),
            )
        return customer, bought["id"]

    # --- Time -----------------------------------------------------------------------------------------------------------------

    def _stand_at(self, instant: datetime) -> None:
        """On the way, calls are recorded and people act, each at its instant."""
        while True:
            call = self._calls[-1].recorded_at if self._calls else instant
            act = self._acts[-1].at if self._acts else instant
            if min(call, act) >= instant:
                break
            if call <= act:
                self._record()
            else:
                self._act(self._acts.pop())
        self._set_clock(instant)

    def _set_clock(self, instant: datetime) -> None:
        if instant <= self.now:
            return
        for end in (*self.plan.ends.values(), *self._finalises_at.values(), *(one.until for one in self.plan.outages)):
            self._is_dirty |= self.now < end <= instant
        self._is_news |= any(self.now < end <= instant for end in self.plan.ends.values())
        if instant - self.now > 10 * MINUTE:
            for _, late in self.network.under_way:
                self.account.deliver(late.path, str(late.body), late.headers)
            self.network.under_way.clear()
        self.now = instant
        self.account.set_clock(instant)
        outage = self._outage("Stripe")
        self.network.outage = (outage.kind, outage.until) if outage else None

    def _outage(self, of: str) -> Outage | None:
        return next((one for one in self.plan.outages if one.of == of and one.since <= self.now < one.until), None)

    def _record(self) -> None:
        call = self._calls.pop()
        self._recorded[call.tenant, call.at] = call.recorded_at
        with self.pool.connect() as db:
            db.execute(
                "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) VALUES (%s, 'm', %s, 0, %s)",
                (call.tenant, call.tokens, call.at),
            )
        self.figures["rows"] += 1
        self.figures["late rows"] += call.recorded_at > self.plan.ends[call.tenant] + HOUR
        window = call.at.replace(minute=0, second=0, microsecond=0)
        if window + HOUR <= call.recorded_at:
            self._is_late = True
        else:
            self._windows.add(window)
        self._is_dirty = True

    def _act(self, act: Act) -> None:
        self._set_clock(max(self.now, act.at))
        self._is_dirty = True
        if act.kind == "acknowledges":
            with self.pool.connect() as db:
                done = db.execute(
                    "INSERT INTO billing.acknowledgement (report_id, acknowledged_by, acknowledged_at, reason) "
                    "SELECT id, 'ann', %s, 'seen' FROM billing.usage_report WHERE tenant_id = %s AND state = 'quarantined' "
                    "ON CONFLICT DO NOTHING",
                    (self.now, act.tenant),
                )
                self.figures["reports acknowledged"] += done.rowcount
            return
        drafts = self.account.get(f"invoices?subscription={self.links[act.tenant][1]}&status=draft")["data"]
        for draft in drafts:
            self._by_hand.add(act.tenant)
            self.figures[f"somebody {act.kind}"] += 1
            match act.kind:
                case "finalises":
                    self.account.post(f"invoices/{draft['id']}/finalize", {})
                case "moves":
                    at = int((act.to or self.now + HOUR).timestamp())
                    self.account.post(f"invoices/{draft['id']}", {"auto_advance": "true", "automatically_finalizes_at": at})
                case "switches off":
                    self.account.post(f"invoices/{draft['id']}", {"auto_advance": "false"})
        self._list_drafts()

    # --- An hour of the scheduler's -------------------------------------------------------------------------------------------

    def _is_due(self, hour: datetime) -> bool:
        end = hour + HOUR
        return bool(
            self._is_dirty
            or self._is_late
            or self._windows
            or (self._calls and self._calls[-1].recorded_at < end)
            or (self._acts and self._acts[-1].at < end)
            or any(hour - HOUR <= one < end for one in self.plan.ends.values())
            or any(hour <= one.until < end for one in self.plan.outages)
            or (self._finalises_at and min(self._finalises_at.values()) < end + NEAR)
            or (self._finalises_at and self._looked_at + QUIET < end)
            or self._open() != (0, 0)
        )

    def _open(self) -> tuple[int, int]:
        """Reports on their way, and those that no summary was seen to hold."""
        with self.pool.connect() as db:
            waiting, unconfirmed = db.execute(
                "SELECT count(*) FILTER (WHERE state IN ('frozen', 'sending', 'unresolved', 'accepted')), "
                "count(*) FILTER (WHERE state IN ('accepted', 'billed') AND confirmed_at IS NULL AND token_count > 0) "
                "FROM billing.usage_report"
            ).fetchone() or (0, 0)
        return waiting, unconfirmed

    def _hour(self, hour: datetime) -> None:
        """`hour`: when it begins; the closing runs come every ten minutes, a little late."""
        self.figures["hours"] += 1
        ended = {end.replace(minute=0, second=0, microsecond=0) for end in self.plan.ends.values()}
        if hour - HOUR in self._windows | ended and self._is_up(hour + 1.5 * MINUTE):
            self._sync()
            self._bill(Window(hour - HOUR))
            self._windows.discard(hour - HOUR)
        elif hour - HOUR in self._windows:
            self._windows.discard(hour - HOUR)
            self._is_late = True
        for minute in range(0, 60, 10):
            late = minute == 30 and (self._is_late or self._open()[0])
            if late and self._is_up(hour + 30 * MINUTE) and self._is_worth_trying("late usage"):
                self._late_usage()
            if minute == 50 and self._open()[1] and self._is_up(hour + 45 * MINUTE):
                self._confirm()
            if self._is_news and self._is_up(hour + (minute + 2.1) * MINUTE) and self._is_worth_trying("sync"):
                self._sync()
            is_up = self._is_up(hour + (minute + 2.5) * MINUTE)
            if is_up and self._has_something_to_look_at() and self._is_worth_trying("closing"):
                self._close()

    def _is_up(self, instant: datetime) -> bool:
        self._stand_at(instant)
        return self._outage("scheduler") is None

    def _is_worth_trying(self, what: str) -> bool:
        """While Stripe is out, what fails once fails again; now and then it is tried all the same."""
        outage = self._outage("Stripe")
        tried = self._tried_at.get(what, BEGIN)
        if outage and outage.since <= tried < self.now < tried + QUIET:
            return False
        self._tried_at[what] = self.now
        return True

    def _has_something_to_look_at(self) -> bool:
        near = any(at - NEAR < self.now for at in self._finalises_at.values())
        return self._is_dirty or near or bool(self._finalises_at and self.now >= self._looked_at + QUIET)

    # --- Runs -----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _run(self, kill: Kill | None = None) -> Iterator[Connect]:
        worker = Worker(self.figures, kill)
        before = WORKER.set(worker)

        def connect() -> Connection:
            return self.pool.connect(worker)

        try:
            yield connect
        except BaseException:
            if not worker.dead:  # whatever the dead stumble over nobody hears of
                raise
        finally:
            WORKER.reset(before)
            if worker.dead:
                self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        worker.bury()
        with self.pool.connect() as db:
            db.autocommit = True
            while db.execute("SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)", (worker.cut_pids,)).fetchone():
                pass  # what it had begun to commit is committed, or never will be

    def _sync(self) -> None:
        with self._run() as connect, suppress(BillingError):
            sync_subscriptions(connect, self.target, lambda: self.now, SETTINGS, self.account.price_overrides)
            self._is_news = False

    def _bill(self, window: Window) -> None:
        self._is_dirty = True
        with self._run() as connect:
            freeze(connect, window, lambda: self.now)
            self._set_aside(window)
            with suppress(BillingError):
                push(connect, self.target, window, Shard(0, 1), lambda: self.now, SETTINGS, self.keeper)
            with suppress(BillingError):
                mark_billed(connect, window, lambda: self.now)

    def _set_aside(self, window: Window) -> None:
        with self.pool.connect() as db:
            db.execute(
                "UPDATE billing.usage_report SET state = 'quarantined', quarantined_at = %s, quarantine_reason = 'too_many_digits' "
                "WHERE window_start = %s AND state = 'frozen' AND attempt_count = 0 AND tenant_id = ANY(%s)",
                (self.now, window.start, list(self.plan.set_aside)),
            )

    def _late_usage(self) -> None:
        self._is_late = False
        self._sync()
        with self._run() as connect:
            windows = late_windows(connect, lambda: self.now)
        for window in windows:
            self._bill(window)

    def _confirm(self) -> None:
        """What Stripe's meters show is confirmed."""
        if not self._is_worth_trying("meters"):
            return
        before = self._open()
        with self._run() as connect, suppress(BillingError):
            reconcile_meters(connect, self.target, lambda: self.now, SETTINGS)
        self._is_dirty |= self._open() != before

    def _close(self, *, may_die: bool = True) -> None:
        """Both tasks of the DAG: the second comes whatever became of the first."""
        kill = self.plan.kills.get(self._closing_count) if may_die else None
        self._closing_count += 1
        self.figures["closing runs"] += 1
        self._is_dirty, self._looked_at = False, self.now
        went_through, told = False, ""
        with self._run(kill) as connect:
            try:
                hold_and_release(connect, self.target, lambda: self.now, SETTINGS, ReconcileSettings())
                went_through = True
            except BillingError as failure:
                self.figures[f"closing runs failed: {type(failure).__name__}"] += 1
        with self._run() as connect:
            try:
                check_closings(connect, lambda: self.now)
            except PeriodsIncomplete as incomplete:
                told = str(incomplete)
        self._is_dirty |= not went_through or bool(told)
        self._list_drafts()
        names = frozenset(word for word in told.split() if word.startswith("in_"))
        if went_through or names:
            self.looks.append(Look(self.now, names, dict(self._finalises_at), went_through))

    def _list_drafts(self) -> None:
        drafts = self.account.get("invoices?status=draft&limit=100")["data"]
        times = {draft["id"]: draft["automatically_finalizes_at"] for draft in drafts}
        self._finalises_at = {name: datetime.fromtimestamp(at, UTC) for name, at in times.items() if at}

    # --- After ----------------------------------------------------------------------------------------------------------------

    def _truth(self, tenant: str) -> Truth:
        end, (customer, subscription) = self.plan.ends[tenant], self.links[tenant]
        last = (end - timedelta(microseconds=1)).replace(minute=0, second=0, microsecond=0)
        with self.pool.connect() as db:
            found = db.execute(SETTLED, (tenant,)).fetchall()
            (frozen_at,) = db.execute("SELECT min(frozen_at) FROM billing.fence WHERE window_start = %s", (last,)).fetchone() or (None,)
        rows = [Row(at, self._recorded[tenant, at], settled, tokens, aside) for at, tokens, settled, aside in found]
        return Truth(tenant, customer, subscription, BEGIN, end, rows, frozen_at or last + 3 * HOUR, tenant in self._by_hand)
