"""The simulator's own time. Nothing else in the simulator may ask the machine what time it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

ClockMode = Literal["frozen", "real"]

SECONDS_A_DAY = 86_400


class ClockRefusal(ValueError):
    """The clock was asked for something it cannot do; the message says what to do instead."""


@dataclass(frozen=True, slots=True)
class ClockSetting:
    """How a clock is to run: frozen at an instant (milliseconds since 1970, UTC), or `None` for the system's time."""

    frozen_at_ms: int | None

    @property
    def mode(self) -> ClockMode:
        return "real" if self.frozen_at_ms is None else "frozen"


def parse_clock(text: str) -> ClockSetting:
    """Read `real` or an RFC 3339 UTC instant ending in Z. Raises ClockRefusal."""
    if text == "real":
        return ClockSetting(None)
    if not text.endswith("Z"):
        raise ClockRefusal(f"{text!r} is neither 'real' nor an RFC 3339 instant in UTC that ends in Z")
    try:
        return ClockSetting(milliseconds(datetime.fromisoformat(text)))
    except ValueError as error:
        raise ClockRefusal(f"{text!r} is not an RFC 3339 instant: {error}") from error


def milliseconds(instant: datetime) -> int:
    """Whole milliseconds since 1970 of an aware datetime."""
    if instant.tzinfo is None:
        raise ClockRefusal(f"{instant!r} has no time zone; the simulator's clock speaks UTC")
    return round(instant.timestamp() * 1000)


def rfc3339(instant_ms: int) -> str:
    """Write an instant as RFC 3339 UTC with Z, with milliseconds only where there are any."""
    text = datetime.fromtimestamp(instant_ms / 1000, UTC).isoformat(timespec="milliseconds" if instant_ms % 1000 else "seconds")
    return text.replace("+00:00", "Z")


class SimulatorClock:
    """Tells the time, frozen or real. Frozen time moves only when told, and never backwards."""

    def __init__(self, setting: ClockSetting) -> None:
        self.setting = setting
        self._standing_at_ms: int | None = None

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        if self._standing_at_ms is not None:
            return self._standing_at_ms
        frozen_at_ms = self.setting.frozen_at_ms
        return time.time_ns() // 1_000_000 if frozen_at_ms is None else frozen_at_ms

    def now_seconds(self) -> int:
        """Whole seconds since 1970, UTC: the unit of every timestamp in Stripe's v1 API."""
        return self.now_ms() // 1000

    @contextmanager
    def standing_at(self, instant_ms: int) -> Iterator[None]:
        """Within this block it is that instant: for what was due then and is worked out now."""
        before, self._standing_at_ms = self._standing_at_ms, instant_ms
        try:
            yield
        finally:
            self._standing_at_ms = before

    def check_forwards(self, setting: ClockSetting) -> None:
        """Raise ClockRefusal if the setting would turn time back."""
        now_ms = self.now_ms()
        proposed_ms = SimulatorClock(setting).now_ms()
        if proposed_ms < now_ms:
            raise ClockRefusal(
                f"the simulator's time is {rfc3339(now_ms)} and never moves backwards (asked for {rfc3339(proposed_ms)}); "
                "POST /simulator/reset with a clock to start over"
            )
