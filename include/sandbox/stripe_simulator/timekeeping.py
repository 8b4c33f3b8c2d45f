"""Keeps the state up with its clock, and makes what happened last: around every request, and by an alarm where nobody asks."""

from __future__ import annotations

import asyncio
import os
import sys

from sandbox.stripe_simulator.resources import passing_time
from sandbox.stripe_simulator.state import State
from sandbox.stripe_simulator.webhook_courier import WebhookCourier

#: An alarm is set no further ahead than this, so that a system clock that is corrected is noticed.
_LONGEST_SLEEP_SECONDS = 3600.0


class Timekeeper:
    """Lets happen what is due, commits, and has the events of it delivered."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at: int | None = None
        self.courier = WebhookCourier(state, self.commit)

    def keep_up(self) -> None:
        """Bring the state up to its clock's present. Costs next to nothing where nothing is due and nothing has changed."""
        earliest = self._state.agenda.earliest()
        if self._state.has_noticed() or (earliest is not None and earliest <= self._state.clock.now_seconds()):
            self.catch_up()

    def catch_up(self) -> None:
        """The same, also after the clock was set to run in another way."""
        try:
            passing_time.catch_up(self._state)
        except Exception:
            self._state.rollback()
            raise
        self.commit()
        self.courier.collect()
        self._set_alarm()

    def commit(self) -> None:
        """What cannot be written down must not be answered, and what is in memory can no longer be trusted: end the process."""
        try:
            self._state.commit()
        except OSError as error:
            print(f"the journal cannot be written: {error}; ending", file=sys.stderr, flush=True)
            os._exit(os.EX_IOERR)

    def _set_alarm(self) -> None:
        """Where the clock follows the system, wake up when the next thing is due: webhooks tell of it then, not when somebody asks."""
        due = self._state.agenda.earliest() if self._state.clock.setting.mode == "real" else None
        if due == self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_at = due
        if due is not None:
            seconds = max(due - self._state.clock.now_ms() / 1000, 0.0)
            self._alarm = asyncio.get_running_loop().call_later(min(seconds, _LONGEST_SLEEP_SECONDS), self._wake)

    def _wake(self) -> None:
        self._alarm = self._alarm_at = None
        self.catch_up()
