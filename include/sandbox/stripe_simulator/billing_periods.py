"""When a subscription's billing periods begin and end: calendar arithmetic from its anchor, in UTC, without state."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from functools import lru_cache


def period_containing(moment: int, *, anchor: int, interval: str, interval_count: int) -> tuple[int, int]:
    """The half-open period [start, end) around a moment, all in seconds since 1970.

    Periods begin at the anchor plus whole intervals, before it as well as after. Months and years keep the anchor's day of the month
    and fall back to the month's last day where it has none: anchored on 31 January, periods begin on 28 February and 31 March.
    """
    # A first guess one interval too low, then forward: exact for days and weeks, at most a few steps for months of varying length.
    length_seconds = {"day": 1, "week": 7, "month": 31, "year": 366}[interval] * 86_400 * interval_count
    index = (moment - anchor) // length_seconds - 1
    while _boundary(anchor, interval, interval_count * (index + 1)) <= moment:
        index += 1
    while _boundary(anchor, interval, interval_count * index) > moment:
        index -= 1
    return _boundary(anchor, interval, interval_count * index), _boundary(anchor, interval, interval_count * (index + 1))


@lru_cache(maxsize=65_536)  # asked for again and again, by every subscription that is shown
def _boundary(anchor: int, interval: str, count: int) -> int:
    anchored = datetime.fromtimestamp(anchor, UTC)
    if interval in ("day", "week"):
        return int((anchored + timedelta(days=count * (7 if interval == "week" else 1))).timestamp())
    month_index = anchored.year * 12 + anchored.month - 1 + count * (12 if interval == "year" else 1)
    year, month = month_index // 12, month_index % 12 + 1
    day = min(anchored.day, calendar.monthrange(year, month)[1])
    return int(anchored.replace(year=year, month=month, day=day).timestamp())


def first_anchor(start: int, *, day_of_month: int, hour: int | None = None, minute: int | None = None, second: int | None = None) -> int:
    """The first instant at or after the start that has this day of the month and time of day (the start's own where not given).

    A month without that day uses its last one. This is how `billing_cycle_anchor_config` chooses an anchor.
    """
    begun = datetime.fromtimestamp(start, UTC)
    hour, minute, second = (
        own if given is None else given for own, given in ((begun.hour, hour), (begun.minute, minute), (begun.second, second))
    )
    month_index = begun.year * 12 + begun.month - 1
    while True:
        year, month = month_index // 12, month_index % 12 + 1
        day = min(day_of_month, calendar.monthrange(year, month)[1])
        candidate = int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
        if candidate >= start:
            return candidate
        month_index += 1
