"""Requests that are still on their way: their senders have lost the connection, and they take effect later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

from sandbox.stripe_simulator.clock import ClockSetting, SimulatorClock
from sandbox.stripe_simulator.endpoint import Endpoint
from sandbox.stripe_simulator.state import State

#: Lets a request take effect; returns the status of the answer that nobody hears.
Deliver = Callable[[Request, Endpoint], Awaitable[int]]


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    request: Request
    endpoint: Endpoint
    #: by the simulator's clock; None waits for `release_all`
    due_ms: int | None


class DelayedDeliveries:
    """Holds requests until they are released or due. A killed simulator loses them, as a network would."""

    def __init__(self, state: State, deliver: Deliver) -> None:
        self._state = state
        self._deliver = deliver
        self._held: list[_Held] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._woken: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    async def hold(self, request: Request, endpoint: Endpoint, after_seconds: float | None) -> None:
        """Read the request to its end, which its connection will not survive, and keep it."""
        await request.body()
        due_ms = None if after_seconds is None else self._state.clock.now_ms() + round(after_seconds * 1000)
        self._held.append(_Held(request, endpoint, due_ms))
        self.set_alarm()

    async def release_all(self) -> list[int]:
        """Deliver everything now, in order of sending; returns the statuses."""
        held, self._held = self._held, []
        return [await self._deliver(one.request, one.endpoint) for one in held]

    async def pass_time(self, until: ClockSetting) -> None:
        """Deliver what is due up to then, each at its own instant; the clock is left at the last of these."""
        until_ms = SimulatorClock(until).now_ms()
        while (held := self._next_due(until_ms)) is not None and held.due_ms is not None:
            self._state.set_clock(ClockSetting(max(held.due_ms, self._state.clock.now_ms())))
            await self._deliver_one(held)

    def set_alarm(self) -> None:
        """Where the clock follows the system, wake up when the next request is due. To be called whenever the clock is set."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        due = [held.due_ms for held in self._held if held.due_ms is not None]
        if due and self._state.clock.setting.mode == "real":
            seconds = max(min(due) - self._state.clock.now_ms(), 0) / 1000
            self._alarm = asyncio.get_running_loop().call_later(seconds, self._wake)

    def forget(self) -> None:
        """What was on its way never arrives."""
        self._held = []
        self.set_alarm()

    def _wake(self) -> None:
        self._woken = asyncio.get_running_loop().create_task(self._deliver_due())

    async def _deliver_due(self) -> None:
        while (held := self._next_due(self._state.clock.now_ms())) is not None:
            await self._deliver_one(held)
        self.set_alarm()

    def _next_due(self, until_ms: int) -> _Held | None:
        """The earliest of those due by then, without removing it."""
        due = [(held.due_ms, index) for index, held in enumerate(self._held) if held.due_ms is not None and held.due_ms <= until_ms]
        return self._held[min(due)[1]] if due else None

    async def _deliver_one(self, held: _Held) -> None:
        self._held.remove(held)
        await self._deliver(held.request, held.endpoint)
