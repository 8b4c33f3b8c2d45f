"""Windows: half-open UTC hours, the sides inside them, and the minutes that reports may be dated with."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from token_billing.errors import BadWindow, WindowStillOpen

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)

#: An event is dated in the middle of its minute, so that it never lies on a boundary that somebody might read as closed.
EVENT_OFFSET = timedelta(seconds=30)


@dataclass(frozen=True, order=True)
class Window:
    """One UTC hour `[start, end)`; raises BadWindow for anything that is not a whole, timezone-aware hour."""

    start: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None:
            raise BadWindow(f"{self.start.isoformat()} has no time zone; windows are UTC hours")
        in_utc = self.start.astimezone(UTC)
        if (in_utc.minute, in_utc.second, in_utc.microsecond) != (0, 0, 0):
            raise BadWindow(f"{self.start.isoformat()} is not the start of a UTC hour")
        # A plain datetime, whatever came in: adding to a subclass of datetime may move it out of UTC (pendulum's does).
        object.__setattr__(self, "start", datetime(in_utc.year, in_utc.month, in_utc.day, in_utc.hour, tzinfo=UTC))

    @property
    def end(self) -> datetime:
        return self.start + HOUR

    @property
    def whole(self) -> "Side":
        """The window as its only side."""
        return Side(self.start, self.end)

    def divided(self, boundaries: Iterable[datetime]) -> list["Side"]:
        """The window's sides between the boundaries that lie inside it."""
        inside = sorted({boundary for boundary in boundaries if self.start < boundary < self.end})
        return [Side(start, end) for start, end in pairwise([self.start, *inside, self.end])]

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%dT%H:%MZ}"


@dataclass(frozen=True, order=True)
class Side:
    """The part `[start, end)` of a window on one side of a billing boundary; the whole window where there is none."""

    start: datetime
    end: datetime

    def event_time(self, used: Collection[datetime]) -> datetime:
        """The time to date a report of this side with: the first whole minute inside the side that no other report of the
        customer and hour uses (`used`: their event times). With every minute taken, the least used one is shared. A side
        too short to hold a whole minute dates its report with its own start, the one instant that is surely inside."""
        first = self.start if self.start.second == self.start.microsecond == 0 else _minute_of(self.start) + MINUTE
        minute_count = (self.end - first) // MINUTE
        if minute_count < 1:
            return self.start
        if not used:
            return first + EVENT_OFFSET
        taken = Counter((_minute_of(time) - first) // MINUTE for time in used)
        # safeguard: a minute of its own
        least_used = min(range(minute_count), key=lambda minute: (taken[minute], minute))
        return first + least_used * MINUTE + EVENT_OFFSET

    def second(self, used: Collection[datetime]) -> datetime | None:
        """The time to date a usage record of this side with: a whole second that no other of its item uses (`used`), since two at one
        time would be one. None where all are taken. The side's first seconds come last: they may lie on a period's boundary."""
        first = self.start.replace(microsecond=0) + (SECOND if self.start.microsecond else timedelta())
        second_count = -((first - self.end) // SECOND)
        # safeguard: a second of its own
        taken = {(time - first) // SECOND for time in used}
        wanted = (n % second_count for n in range(EVENT_OFFSET // SECOND, EVENT_OFFSET // SECOND + second_count))
        return next((first + n * SECOND for n in wanted if n not in taken), None)


def window_of(interval_start: datetime | None, interval_end: datetime | None) -> Window:
    """The window that a run's data interval covers; raises BadWindow where that is not exactly one UTC hour."""
    if interval_start is None or interval_end is None:
        raise BadWindow(
            "this run has no data interval, so it names no hour to bill; trigger it with a logical date, "
            "or use a backfill: airflow backfill create --dag-id report_usage --from-date … --to-date …"
        )
    window = Window(interval_start)
    # safeguard: a run covers one hour
    if interval_end - interval_start != HOUR:
        raise BadWindow(f"the data interval {interval_start.isoformat()} to {interval_end.isoformat()} is not one UTC hour")
    return window


def require_closed(window: Window, now: datetime) -> None:
    """Raises WindowStillOpen where the window has not ended by `now`."""
    # safeguard: a window is closed
    if now < window.end:
        why = "is still open" if now >= window.start else "has not begun"
        raise WindowStillOpen(
            f"window {window} {why} at {now:%Y-%m-%dT%H:%M:%SZ}: its usage is not complete. "
            f"Run it again after {window.end:%Y-%m-%dT%H:%MZ}."
        )


def last_closed_window(now: datetime) -> Window:
    """The latest window that has ended by `now`."""
    return Window(now.astimezone(UTC).replace(minute=0, second=0, microsecond=0) - HOUR)


def _minute_of(time: datetime) -> datetime:
    return time.replace(second=0, microsecond=0)
