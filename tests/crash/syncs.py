"""The part of a followed history that passes with time: customers do things at Stripe, subscriptions are synced, runs wait for facts."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

from crash.following import Sync
from crash.plans import Run
from crash.scene import Scene
from crash.subscribers import Subscribers
from crash.workers import Pool, Worker
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.errors import FactsUnknown, StripeUnavailable
from token_billing.model import Clock
from token_billing.settings import PushSettings
from token_billing.stages.sync_subscriptions import facts_are_known, sync_subscriptions
from token_billing.windows import Window


@dataclass
class Syncs:
    """Uses a history's own workers (`working`), and waits for what dead ones still do (`settle`)."""

    subscribers: Subscribers
    scene: Scene
    pool: Pool
    target: StripeTarget
    settings: PushSettings
    price_overrides: Mapping[str, str]
    figures: Counter[str]
    working: Callable[[str, Run], AbstractContextManager[Worker]]
    settle: Callable[[], None]
    #: For facts, of which the plan does not know.
    waited: timedelta = timedelta()

    def pass_time(self, span: timedelta) -> None:
        """Changes and syncs happen at their instants on the way."""
        if not span:
            return
        until = self.scene.now + span
        if span > timedelta(hours=1):
            self.scene.let_everything_arrive()  # no request is under way for longer
        for at, happening in self.subscribers.until(until):
            self.scene.pass_time(at - self.scene.now)
            if isinstance(happening, Sync):
                self.sync(happening)
            else:
                self.scene.change(happening)
        self.scene.pass_time(until - self.scene.now)

    def pass_planned(self, span: timedelta) -> None:
        """As much of the time as waiting for facts has not taken already."""
        waited, self.waited = self.waited, timedelta()
        self.pass_time(max(timedelta(), span - waited))

    def sync(self, sync: Sync) -> None:
        """So many at once as it says; one alone where nobody else is at work."""
        runs = [Run(None, sync.kill, sync.troubles), *[Run(None)] * (sync.at_once - 1)]
        if len(runs) == 1:
            return self._sync(runs[0])
        threads = [threading.Thread(target=self._sync, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def await_facts(self, worker: Worker, window: Window, clock: Clock) -> None:
        """As the DAGs do before they freeze: they wait, and go on without where waiting fails. Beside others time stands still."""
        began = self.scene.now
        try:
            while not facts_are_known(lambda: self.pool.connect(worker), self.target, window, clock, self.settings, self.price_overrides):
                if not _is_alone():
                    self.figures["runs that wait for facts no longer"] += 1
                    return
                self.pass_time(timedelta(minutes=1))
            if _is_alone():
                self.settle()
                with self.pool.connect() as db:
                    self.subscribers.told_that_facts_are_known(db, window.end)
        except FactsUnknown:
            self.figures["runs without the facts"] += 1
        if _is_alone():
            self.waited += self.scene.now - began

    def _sync(self, run: Run) -> None:
        self.figures["syncs"] += 1
        now = self.scene.now + self.scene.clock_off
        with self.working("a sync", run) as worker:
            try:
                sync_subscriptions(lambda: self.pool.connect(worker), self.target, lambda: now, self.settings, self.price_overrides)
            except StripeUnavailable:
                self.figures["syncs that failed"] += 1
                return
            if _is_alone():  # while others are at work, what they settle may be older
                self.settle()
                with self.pool.connect() as db:
                    self.subscribers.synced(db, now)


def _is_alone() -> bool:
    """Whoever lives beside others does so in a thread."""
    return threading.current_thread() is threading.main_thread()
