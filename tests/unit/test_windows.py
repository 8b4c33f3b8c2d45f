"""Windows, sides and the minutes that date reports."""

from datetime import UTC, datetime, timedelta, timezone

import pendulum
import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_billing.errors import BadWindow, WindowStillOpen
from token_billing.windows import Side, Window, last_closed_window, require_closed, window_of

TEN = datetime(2026, 3, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("start", [TEN.replace(tzinfo=None), TEN + timedelta(minutes=30), TEN + timedelta(microseconds=1)])
def test_only_whole_utc_hours_are_windows(start: datetime) -> None:
    """A time without a zone, or inside an hour, names no window."""
    with pytest.raises(BadWindow):
        Window(start)


def test_an_hour_in_another_zone_is_the_same_utc_hour() -> None:
    """12:00+02:00 is the window of 10:00 UTC; half past zones start inside a UTC hour and are refused."""
    assert Window(TEN.astimezone(timezone(timedelta(hours=2)))) == Window(TEN)
    with pytest.raises(BadWindow):
        Window(datetime(2026, 3, 1, 10, tzinfo=timezone(timedelta(hours=5, minutes=30))))


def test_airflows_own_datetimes_make_the_same_windows() -> None:
    """Airflow hands out pendulum's datetimes, which leave UTC when an hour is added to them in another UTC object."""
    window = window_of(pendulum.datetime(2026, 3, 1, 10), pendulum.datetime(2026, 3, 1, 11))
    assert (window, window.end) == (Window(TEN), TEN + timedelta(hours=1))


@pytest.mark.parametrize("end", [TEN, TEN + timedelta(hours=2), TEN + timedelta(minutes=59)])
def test_a_run_that_does_not_cover_one_hour_is_refused(end: datetime) -> None:
    """A zero-length, longer or shorter data interval bills nothing."""
    with pytest.raises(BadWindow, match="not one UTC hour"):
        window_of(TEN, end)


def test_a_run_without_a_data_interval_says_the_next_step() -> None:
    """A manual run without a logical date has none."""
    with pytest.raises(BadWindow, match="trigger it with a logical date"):
        window_of(None, None)


def test_a_window_is_closed_from_its_end_on() -> None:
    """Half-open: at 11:00:00 sharp the hour of ten has ended, a microsecond earlier it has not."""
    require_closed(Window(TEN), TEN + timedelta(hours=1))
    with pytest.raises(WindowStillOpen):
        require_closed(Window(TEN), TEN + timedelta(hours=1, microseconds=-1))
    with pytest.raises(WindowStillOpen, match="has not begun"):
        require_closed(Window(TEN), TEN - timedelta(microseconds=1))
    assert last_closed_window(TEN) == Window(TEN - timedelta(hours=1))


def test_the_reports_of_a_customer_and_hour_have_a_minute_each() -> None:
    """Sixty reports, sixty minutes, all inside the hour and none on a boundary; the sixty-first shares one."""
    side, used = Window(TEN).whole, []
    for _ in range(60):
        used.append(side.event_time(used))
    assert len({time.replace(second=0) for time in used}) == 60
    assert all(side.start < time < side.end for time in used)
    assert side.event_time(used) in used


@given(start=st.integers(0, 3_599_998), length=st.integers(1, 70_000))
def test_the_usage_records_of_an_item_and_hour_have_a_second_each(start: int, length: int) -> None:
    """As many as the side has whole seconds, all inside it; then none is left. A boundary's own second is taken late."""
    side = Side(TEN + timedelta(milliseconds=start), TEN + timedelta(milliseconds=min(3_600_000, start + length)))
    used: list[datetime] = []
    while (time := side.second(used)) is not None:
        used.append(time)
    first, last = -(-start // 1000), -(-min(3_600_000, start + length) // 1000) - 1
    assert sorted(used) == [TEN + timedelta(seconds=second) for second in range(first, last + 1)]


def test_a_usage_record_is_not_dated_on_a_boundary_while_there_is_room() -> None:
    assert Window(TEN).whole.second(()) == TEN + timedelta(seconds=30)


@given(start=st.integers(0, 3598), length=st.integers(1, 3600), used=st.integers(0, 5))
def test_an_event_time_lies_inside_its_side(start: int, length: int, used: int) -> None:
    """Whatever the side, down to a second between two boundaries."""
    side = Side(TEN + timedelta(seconds=start), TEN + timedelta(seconds=min(3600, start + length)))
    times: list[datetime] = []
    for _ in range(used + 1):
        times.append(side.event_time(times))
    assert all(side.start <= time < side.end for time in times)
