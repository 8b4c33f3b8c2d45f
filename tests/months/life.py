"""Months are lived, hour by hour, but for the hours in which nothing is due."""

from collections import Counter
from collections.abc import Iterator, Set
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple

from crash.network import doors
from crash.stripe_account import StripeAccount
from crash.workers import Pool
from months.customers import Customers
from months.opening import add_tenants, open_shop
from months.oracle import Flagged, Truth
from months.people import People
from months.plans import Outage, Plan
from months.plantings import PRIVATE
from months.runs import Runs
from months.saboteur import Saboteur
from months.wire import Wire
from sandbox.kept_in_files import KeptInFiles
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.settings import ReconcileSettings
from token_billing.windows import Window

HOUR = timedelta(hours=1)

#: What runs once a day, runs then, as long as anything has happened in the last few days: nothing comes of it in others.
DAILY_AT, QUIET_AFTER = 5, timedelta(days=4)

#: After the last hour of usage every draft of an ended period becomes final, and everything settles.
SETTLES_WITHIN = timedelta(days=6)

#: How many reports are on their way, how many no summary was seen to hold for the time being, or differ from one, how many drafts are
#: held, and how many invoices became final and are not compared. What nobody comes back to within a day waits for the run of each day.
OPEN = """
SELECT (SELECT count(*) FROM billing.usage_report WHERE state IN ('frozen', 'sending', 'unresolved', 'accepted')),
       (SELECT count(*) FROM billing.usage_report WHERE state IN ('accepted', 'billed') AND confirmed_at IS NULL AND token_count > 0
          AND accepted_at > %(now)s - interval '26 hours')
       + (SELECT count(*) FROM billing.meter_difference WHERE first_seen_at > %(now)s - interval '26 hours'),
       (SELECT count(*) FROM billing.closing WHERE final_at IS NULL),
       (SELECT count(*) FROM billing.closing WHERE final_at > %(compared_at)s AND final_at <= %(now)s)
"""


#: The reports of a window that Stripe has accepted.
ACCEPTED = """
SELECT tenant_id, identifier, event_time FROM billing.usage_report
WHERE window_start = %s AND state IN ('accepted', 'billed') AND token_count > 0 ORDER BY id
"""


class Open(NamedTuple):
    """A row of OPEN."""

    reports: int
    unconfirmed: int
    drafts: int
    not_compared: int


class Life:
    """One world and its months; use it as a context manager."""

    def __init__(self, dsn: str, simulator: StripeSimulator, folder: Path, plan: Plan, longest_hold: timedelta) -> None:
        self.plan, self.dsn, self.simulator = plan, dsn, simulator
        self.figures: Counter[str] = Counter()
        self.now = self._hour_began = self._compared_at = self._quiet_from = plan.begin
        self.account = StripeAccount(simulator)
        self.network = Wire(lambda: self.now, self.figures)
        self.pool = Pool(dsn)
        self.target = StripeTarget(simulator.api_key, simulator.base_url, sandbox=True, timeout_s=20)
        #: When a row was recorded, by its tenant and time.
        self.recorded: dict[tuple[str, datetime], datetime] = {}
        self._acts, self._calls = list(reversed(plan.acts)), list(reversed(plan.calls))
        self._ends: dict[str, datetime | None] = {}
        #: Hours that hold usage and whose run is still to come; whether late usage, or news at Stripe, waits for a run.
        self._used: dict[datetime, bool] = {}
        self._left_over = self._news = self._drafts_appeared = False
        #: Whether people are asked about something.
        self._asked = False
        self._disownings, self._disowned = list(reversed(plan.disownings)), set[str]()
        self._disowned_of = set[tuple[str, datetime]]()
        self.people = People(Random(plan.seed), self.figures, decides=not plan.plantings)
        self.runs = Runs(
            self.pool,
            self.target,
            KeptInFiles(folder),
            lambda: self.now,
            lambda span: self.pass_to(self.now + span),
            Random(plan.seed),
            self.figures,
            ReconcileSettings(longest_hold=longest_hold),
        )

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()
        self.account.close()

    def live(self) -> None:
        """From the first day until all is settled."""
        with doors(lambda: self.network):
            sold, solo = open_shop(self.simulator, self.account, self.pool.connect, self.target, self.now, PRIVATE)
            self.customers = Customers(self.account, sold, solo, self.plan.customer_of, self.figures)
            self.saboteur = Saboteur(self.simulator, self.account, self.customers, self.network, self.pool, self.plan.plantings)
            self.runs.tampered = self.saboteur.tampered
            self.runs.after = self._after_run
            add_tenants(self.dsn, self.plan.tenants)
            hour = self.plan.begin
            while hour < self.plan.end + SETTLES_WITHIN:
                if self._is_due(hour, hour + HOUR):
                    self._hour(Window(hour))
                hour += HOUR
            self.pass_to(hour)

    def truth(self) -> Truth:
        """What was done, for the oracle."""
        sold = self.customers.sold.values()
        return Truth(
            self.customers.record,
            self.plan.tenants,
            self.customers.customers,
            {one.price_id: one.terms for one in sold},
            {one.event_name: one.price_id for one in sold},
            self.recorded,
            self.plan.outages,
            frozenset(self._disowned_of),
            self.now,
        )

    def is_called_for(self, flagged: Flagged, lacking: Set[str]) -> bool:
        """Whether what happened by itself calls for it: a plan without tokens is told as long as somebody has it, and what Stripe
        disowned; so is an invoice that is `lacking` usage because that came too late; the account's grace is not known before the first
        draft."""
        without_tokens = {act.tenant for act in self.plan.acts if act.kind == "no tokens"}
        told_for_them = flagged.cause == "no_metered_item" and flagged.tenant_id in without_tokens
        disowned = flagged.cause == "meter_error" and flagged.stripe_id in self._disowned
        incomplete = flagged.cause == "period_incomplete" and flagged.stripe_id in lacking
        return told_for_them or disowned or incomplete or (flagged.cause == "short_grace" and flagged.resolved_at is not None)

    # --- Time ---------------------------------------------------------------------------------------------------------------

    def pass_to(self, instant: datetime) -> None:
        """Customers act on the way, each thing at its second; what was recorded by then is there."""
        while self._acts and self._acts[-1].at <= instant:
            act = self._acts.pop()
            self._stand_at(max(act.at, self.now))
            self.customers.do(act)
            self._news = self._drafts_appeared = True  # a subscription that ends has a last one
            self._ends.pop(act.tenant, None)
        self._stand_at(instant)
        self._record()

    def _stand_at(self, instant: datetime) -> None:
        if instant <= self.now:
            return
        if instant - self.now > timedelta(minutes=30):
            self._let_everything_arrive()
        self.now = instant
        self.account.set_clock(instant)
        outage = self._outage("Stripe")
        self.network.outage = (outage.kind, outage.until) if outage else None

    def _let_everything_arrive(self) -> None:
        """No request is under way for so long."""
        for _, late in self.network.under_way:
            self.account.deliver(late.path, str(late.body), late.headers)
        self.network.under_way.clear()

    def _record(self) -> None:
        rows = []
        while self._calls and self._calls[-1].recorded_at <= self.now:
            call = self._calls.pop()
            rows.append(call)
            self.recorded[call.tenant, call.at] = self.now
            hour = call.at.replace(minute=0, second=0, microsecond=0)
            if hour + HOUR < self.now:
                self._left_over = True
            else:
                self._used[hour] = True
        if not rows:
            return
        self.figures["rows"] += len(rows)
        self.figures["late rows"] += sum(call.at < self.now - timedelta(hours=2) for call in rows)
        with self.pool.connect() as db:
            db.execute(
                "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) SELECT tenant, 'm', input, output, at "
                "FROM unnest(%s::text[], %s::integer[], %s::integer[], %s::timestamptz[]) AS new (tenant, input, output, at)",
                (
                    [call.tenant for call in rows],
                    [call.input_tokens for call in rows],
                    [call.output_tokens for call in rows],
                    [call.at for call in rows],
                ),
            )

    def _outage(self, of: str) -> Outage | None:
        return next((one for one in self.plan.outages if one.of == of and one.since <= self.now < one.until), None)

    # --- What is due --------------------------------------------------------------------------------------------------------

    def _is_due(self, start: datetime, end: datetime) -> bool:
        happens = (
            start in self._used
            or (self._acts and self._acts[-1].at < end)
            or (self._calls and self._calls[-1].recorded_at < end)
            or any(start <= one < end for one in self._period_ends(start))
            or any(start <= one.until < end for one in self.plan.outages)
            or any(start <= one.period_end < end for one in self.saboteur.waiting)
            or any(self._open())
            or self._news
            or self._asked
        )
        if happens:
            self._quiet_from = end + QUIET_AFTER
        return bool(happens) or self._is_daily(start)

    def _is_daily(self, start: datetime) -> bool:
        return start.hour == DAILY_AT and start < self._quiet_from

    def _period_ends(self, after: datetime) -> Iterator[datetime]:
        """The next one of each tenant."""
        for tenant in self.plan.tenants:
            known = self._ends.get(tenant)
            if tenant not in self._ends or (known is not None and known < after):
                known = self._ends[tenant] = self.customers.next_end(tenant, after - timedelta(seconds=1))
            if known is not None:
                yield known

    def _open(self) -> Open:
        with self.pool.connect() as db:
            return Open(*(db.execute(OPEN, {"now": self.now, "compared_at": self._compared_at}).fetchone() or ()))

    # --- An hour of the scheduler's -----------------------------------------------------------------------------------------

    def _hour(self, window: Window) -> None:
        """The runs that begin in the hour after a window."""
        self.figures["hours"] += 1
        self._hour_began = window.end
        ended = any(window.start <= one < window.end for one in self._period_ends(window.start))
        self._news, self._drafts_appeared = self._news or ended, self._drafts_appeared or ended
        self.pass_to(window.end)
        if self._used.pop(window.start, False):
            if self._is_up(1.5):
                self.saboteur.before_run(window, self.now)
                self.runs.report_usage(window)
            else:
                self._left_over = True
        self.saboteur.look_at_invoices(self.now)
        if self._news and self._is_up(5):
            self._news = not self.runs.sync_subscriptions()
        is_daily = self._is_daily(window.start)
        if (self._drafts_appeared or self._open().drafts or is_daily) and self._is_up(10):
            self._close()
        if (self._asked or is_daily) and self._is_up(20):
            self.runs.approve_proposals(self.people)
            self._asked = self._news  # what is not known yet nobody is asked about
        if (self._left_over or self._open().reports) and self._is_up(30):
            self._left_over = not self.runs.report_late_usage()
        if (self._open().unconfirmed or is_daily) and self._is_up(45):
            self.runs.reconcile_meters()
        if self._open().drafts and self._is_up(50):
            self._close()
        if (self._open().not_compared or is_daily) and self._is_up(55):
            self.saboteur.look_at_invoices(self.now)
            began = self.now
            if self.runs.reconcile_invoices():
                self._compared_at = began

    def _after_run(self, window: Window) -> None:
        self._news |= self.saboteur.after_run(window, self.now)
        if self._disownings and self._disownings[-1] <= self.now and (identifier := self._to_disown(window)):
            self._disownings.pop()
            self.simulator.disown([identifier])
            self._disowned.add(identifier)
            self.figures["events disowned"] += 1
            self._news = self._asked = True

    def _to_disown(self, window: Window) -> str | None:
        """An event of the window that may still be sent anew: its period goes on for days."""
        planted = {one.tenant for one in self.plan.plantings}
        with self.pool.connect() as db:
            accepted = db.execute(ACCEPTED, (window.start,)).fetchall()
        for tenant, identifier, at in accepted:
            cells = self.customers.record.cells(tenant, self.now + timedelta(days=62))
            closes_at = next((cell.closes_at for cell in cells if cell.since <= at < cell.until), self.now)
            if tenant not in planted and closes_at > self.now + timedelta(days=4):
                self._disowned_of.add((tenant, window.start))
                return str(identifier)
        return None

    def _close(self) -> None:
        self.runs.close_billing_periods()
        self._drafts_appeared = False

    def _is_up(self, minute: float) -> bool:
        """So long after the hour began; whether the scheduler runs then."""
        self.pass_to(self._hour_began + timedelta(minutes=minute))
        return self._outage("scheduler") is None
