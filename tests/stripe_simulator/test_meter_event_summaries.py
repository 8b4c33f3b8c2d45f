"""Summaries show what counts, exactly, and late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.stripe_simulator.clock import ClockSetting
from sandbox.stripe_simulator.resources import customers, meter_event_adjustments, meter_event_summaries, meter_events, meters
from sandbox.stripe_simulator.state import State

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MIDNIGHT = datetime(2025, 10, 14, tzinfo=UTC)


def test_an_event_shows_only_after_the_delay(billing, now, pass_time, simulator):
    """By the simulator's clock since receipt: not before, and from then on for good."""
    simulator.settings(summary_delay_seconds=90)
    meter, customer = billing.meter(), billing.customer()
    billing.send(customer, 25, now)
    minute = (now, now + timedelta(minutes=1))
    pass_time(seconds=89)
    assert billing.total(meter, customer, *minute) == 0
    pass_time(seconds=1)
    assert billing.total(meter, customer, *minute) == 25


def test_the_delay_may_last_for_hours(billing, now, pass_time, simulator):
    """Longer than an hourly billing cycle, and past the next midnight; it holds for events already received, too."""
    meter, customer = billing.meter(), billing.customer()
    billing.send(customer, 25, now)
    simulator.settings(summary_delay_seconds=36 * 3600)
    pass_time(hours=35, minutes=59, seconds=59)
    assert billing.total(meter, customer, now, now + HOUR) == 0
    pass_time(seconds=1)
    assert billing.total(meter, customer, now, now + HOUR) == 25


def test_the_delay_can_be_switched_off(billing, now, simulator):
    """With a delay of 0 an event shows at once."""
    assert simulator.settings(summary_delay_seconds=0)["summary_delay_seconds"] == 0
    meter, customer = billing.meter(), billing.customer()
    billing.send(customer, 25, now)
    assert billing.total(meter, customer, now, now + HOUR) == 25


def test_a_range_is_half_open(billing, simulator):
    """An event at the end belongs to the next range."""
    simulator.settings(summary_delay_seconds=0)
    meter, customer = billing.meter(), billing.customer()
    for at in (MIDNIGHT, MIDNIGHT + HOUR - timedelta(seconds=1), MIDNIGHT + HOUR):
        billing.send(customer, 1, at)
    assert billing.total(meter, customer, MIDNIGHT, MIDNIGHT + HOUR) == 2
    assert billing.total(meter, customer, MIDNIGHT + HOUR, MIDNIGHT + 2 * HOUR) == 1


def test_without_grouping_there_is_one_summary(raw, billing, simulator):
    """Also where nothing was counted: then it is zero. The value is a JSON number with a point."""
    meter, customer = billing.meter(), billing.customer()
    reply = billing.summaries(meter, customer, MIDNIGHT, MIDNIGHT + DAY)
    [summary] = reply.body["data"]
    assert isinstance(summary["aggregated_value"], float)
    assert (summary["aggregated_value"], summary["meter"]) == (0.0, meter)
    assert (summary["start_time"], summary["end_time"]) == tuple(int(at.timestamp()) for at in (MIDNIGHT, MIDNIGHT + DAY))
    assert reply.body["url"] == f"/v1/billing/meters/{meter}/event_summaries"


def test_grouping_gives_one_summary_for_each_window_that_holds_something(billing, simulator):
    """Newest first, bounded by the window, empty ones left out."""
    simulator.settings(summary_delay_seconds=0)
    meter, customer = billing.meter(), billing.customer()
    for hours, value in ((0, 1), (0, 2), (3, 4)):
        billing.send(customer, value, MIDNIGHT + hours * HOUR)
    hourly = billing.summaries(meter, customer, MIDNIGHT, MIDNIGHT + DAY, value_grouping_window="hour").body["data"]
    daily = billing.summaries(meter, customer, MIDNIGHT, MIDNIGHT + DAY, value_grouping_window="day").body["data"]
    start = int(MIDNIGHT.timestamp())
    assert [(one["start_time"] - start, one["end_time"] - start, one["aggregated_value"]) for one in hourly] == [
        (3 * 3600, 4 * 3600, 4.0),
        (0, 3600, 3.0),
    ]
    assert [one["aggregated_value"] for one in daily] == [7.0]


def test_grouped_summaries_are_paged(client, billing, simulator):
    """The SDK's automatic paging reaches every hour once."""
    simulator.settings(summary_delay_seconds=0)
    meter, customer = billing.meter(), billing.customer()
    for hour in range(24):
        billing.send(customer, hour + 1, MIDNIGHT + hour * HOUR)
    params = {
        "customer": customer,
        "start_time": int(MIDNIGHT.timestamp()),
        "end_time": int((MIDNIGHT + DAY).timestamp()),
        "value_grouping_window": "hour",
        "limit": 7,
    }
    pages = client.v1.billing.meters.event_summaries.list(meter, params)
    assert [one.aggregated_value for one in pages.auto_paging_iter()] == [float(hour + 1) for hour in reversed(range(24))]


@pytest.mark.parametrize(
    "start, end, window, param",
    [
        (timedelta(seconds=1), DAY, None, "start_time"),
        (timedelta(0), timedelta(seconds=90), None, "end_time"),
        (timedelta(minutes=1), DAY, "hour", "start_time"),
        (timedelta(0), HOUR, "day", "end_time"),
        (HOUR, HOUR, None, "start_time"),
    ],
)
def test_misaligned_and_empty_ranges_are_refused(billing, start, end, window, param):
    """Minutes always, hours and UTC days when grouped."""
    more = {} if window is None else {"value_grouping_window": window}
    reply = billing.summaries(billing.meter(), billing.customer(), MIDNIGHT + start, MIDNIGHT + end, **more)
    assert (reply.status, reply.error["param"]) == (400, param)


def test_the_customer_and_the_meter_must_exist(billing):
    """400 for the parameter, 404 for the path."""
    meter = billing.meter()
    nobody = billing.summaries(meter, "cus_x", MIDNIGHT, MIDNIGHT + HOUR)
    assert (nobody.status, nobody.error["code"], nobody.error["param"]) == (400, "resource_missing", "customer")
    assert billing.summaries("mtr_x", billing.customer(), MIDNIGHT, MIDNIGHT + HOUR).status == 404


def test_rejected_events_and_other_customers_do_not_count(billing, simulator):
    """A summary speaks of one customer on one meter, and of what was valid."""
    simulator.settings(summary_delay_seconds=0)
    meter, customer = billing.meter(), billing.customer()
    billing.meter("others")
    for value in ("5", "five", "1.5"):
        billing.send(customer, value, MIDNIGHT)
    billing.send(billing.customer(), 7, MIDNIGHT)
    billing.send(customer, 9, MIDNIGHT, event_name="others")
    assert billing.total(meter, customer, MIDNIGHT, MIDNIGHT + HOUR) == 5


def test_large_values_are_exact(billing, simulator):
    """Fifteen digits fit a float."""
    simulator.settings(summary_delay_seconds=0)
    meter, customer = billing.meter(), billing.customer()
    billing.send(customer, 999_999_999_999_999, MIDNIGHT)
    assert billing.total(meter, customer, MIDNIGHT, MIDNIGHT + HOUR) == 999_999_999_999_999


# --- Against a naive reckoning ------------------------------------------------------------------------------------------------------

#: minutes since midnight, value, seconds after midnight of the next day at which it is received, cancelled or not
EVENTS = st.lists(st.tuples(st.integers(0, 2 * 24 * 60 - 1), st.integers(-100, 1000), st.integers(0, 600), st.booleans()), max_size=25)


@settings(max_examples=150, deadline=None)
@given(
    events=EVENTS,
    formula=st.sampled_from(["sum", "count", "last"]),
    superseding=st.sampled_from([None, "hour", "day"]),
    window=st.sampled_from([None, "hour", "day"]),
    delay=st.integers(0, 300),
    bounds=st.tuples(st.integers(0, 48), st.integers(0, 48)),
)
def test_summaries_agree_with_a_naive_reckoning(events, formula, superseding, window, delay, bounds):
    """Whatever is sent, cancelled and delayed: each summary is its formula over the events it should show, and no more."""
    midnight = int(MIDNIGHT.timestamp())
    received_from = midnight + 2 * 24 * 3600
    unit = {None: 3600, "hour": 3600, "day": 86_400}[window]
    start, end = sorted(midnight + hours * 3600 // unit * unit for hours in bounds)
    if start == end:
        end += unit
    state = State(ClockSetting(received_from * 1000))
    state.change_settings(summary_delay_seconds=delay)

    customer = customers.create(state, {})["id"]
    declared = {"display_name": "t", "event_name": "t", "default_aggregation": {"formula": formula}}
    meter = meters.create(state, declared if superseding is None else {**declared, "event_time_window": superseding})["id"]
    for number, (minute, value, received_after, _) in enumerate(sorted(events, key=lambda event: event[2])):
        state.clock.setting = ClockSetting((received_from + received_after) * 1000)
        payload = {"stripe_customer_id": customer, "value": str(value)}
        timestamp = midnight + minute * 60
        meter_events.create(state, {"event_name": "t", "identifier": str(number), "timestamp": timestamp, "payload": payload})
    ordered = sorted(events, key=lambda event: event[2])
    for number, event in enumerate(ordered):
        if event[3]:  # at the last receipt
            meter_event_adjustments.create(state, {"event_name": "t", "type": "cancel", "cancel": {"identifier": str(number)}})
    now = state.clock.now_seconds() + 120
    cancelled_at = state.clock.now_seconds()
    state.clock.setting = ClockSetting(now * 1000)

    shown = [
        (midnight + minute * 60, number, value)
        for number, (minute, value, received_after, is_cancelled) in enumerate(ordered)
        if received_from + received_after + delay <= now and not (is_cancelled and cancelled_at + delay <= now)
    ]
    if superseding is not None:
        seconds = {"hour": 3600, "day": 86_400}[superseding]
        shown = [one for one in shown if one[1] == max(other[1] for other in shown if other[0] // seconds == one[0] // seconds)]

    def reckoned(low, high):
        inside = sorted(one for one in shown if low <= one[0] < high)
        if formula == "count":
            return float(len(inside))
        values = [value for _, _, value in inside]
        return float(sum(values) if formula == "sum" else values[-1] if values else 0)

    params = {"customer": customer, "start_time": start, "end_time": end, "limit": 100}
    if window is not None:
        params["value_grouping_window"] = window
    answered = meter_event_summaries.list_(state, params, meter)["data"]
    if window is None:
        expected = [(start, end, reckoned(start, end))]
    else:
        buckets = [low for low in range(start, end, unit) if any(low <= at < low + unit for at, _, _ in shown)]
        expected = [(low, low + unit, reckoned(low, low + unit)) for low in reversed(buckets)]
    assert [(one["start_time"], one["end_time"], one["aggregated_value"]) for one in answered] == expected
