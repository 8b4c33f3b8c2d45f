"""What a meter has counted for a customer: GET /v1/billing/meters/{id}/event_summaries.

Late, as at Stripe: see `Settings.summary_delay_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.clock import SECONDS_A_DAY
from sandbox.stripe_simulator.endpoint import get_list
from sandbox.stripe_simulator.meter_event_log import MeterEvent
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import Integer, OneOf, Params, Text
from sandbox.stripe_simulator.resources import meters
from sandbox.stripe_simulator.state import JsonObject, State, scrambled

_BY_TIME_THEN_RECEIPT = attrgetter("timestamp", "number")
_SECONDS_OF = {"minute": 60, "hour": 3600, "day": SECONDS_A_DAY}


def list_(state: State, params: Params, meter_id: str) -> JsonObject:
    """With a grouping window one summary for each window that holds an event, else one for the whole range (zero if it holds none)."""
    meter = meters.existing(state, meter_id)
    customer, start, end = params["customer"], params["start_time"], params["end_time"]
    window = params.get("value_grouping_window")
    for name in ("start_time", "end_time"):
        _check_aligned(params[name], name, window or "minute")
    if start >= end:
        raise errors.invalid_parameter("`start_time` must be before `end_time`.", "start_time")
    if state.customers.get(customer) is None:
        raise errors.no_such("customer", customer, param="customer")
    delay_ms = round(state.settings.summary_delay_seconds * 1000)
    events = visible_events(state, meter, customer, start, end, at_ms=state.clock.now_ms(), delay_ms=delay_ms)
    if window is None:
        summaries = [_summary(meter, customer, start, end, events)]
    else:
        seconds = _SECONDS_OF[window]
        summaries = [
            _summary(meter, customer, bucket * seconds, (bucket + 1) * seconds, list(inside))
            for bucket, inside in groupby(events, key=lambda event: event.timestamp // seconds)
        ]
    url = f"/v1/billing/meters/{meter_id}/event_summaries"
    return list_page(reversed(summaries), params, url=url, noun="meter event summary")


def visible_events(state: State, meter: JsonObject, customer: str, start: int, end: int, *, at_ms: int, delay_ms: int) -> list[MeterEvent]:
    """The counting events with event time in [start, end) that show at an instant, so long after receipt; by event time, then receipt.

    Where the meter has an `event_time_window`, only the last event received in each such window counts.
    """
    superseding_seconds = _SECONDS_OF.get(meter["event_time_window"] or "")
    if superseding_seconds is None:
        wide_start, wide_end = start, end
    else:  # an event outside the range may supersede one inside it
        wide_start, wide_end = start - start % superseding_seconds, end + -end % superseding_seconds
    events = [
        event for event in state.meter_events.counting(meter["id"], customer, wide_start, wide_end) if event.is_visible_at(at_ms, delay_ms)
    ]
    if superseding_seconds is not None:
        last_received: dict[int, MeterEvent] = {}
        for event in events:
            held = last_received.setdefault(event.timestamp // superseding_seconds, event)
            if event.number > held.number:
                last_received[event.timestamp // superseding_seconds] = event
        events = [event for event in last_received.values() if start <= event.timestamp < end]
    return sorted(events, key=_BY_TIME_THEN_RECEIPT)


def aggregated(formula: str, events: Iterable[MeterEvent]) -> int:
    """The meter's formula over events in order: their sum, their number, or the last one's value."""
    if formula == "count":
        return sum(1 for _ in events)
    values = [int(event.value or 0) for event in events]
    return sum(values) if formula == "sum" else values[-1] if values else 0


def _check_aligned(timestamp: int, name: str, window: str) -> None:
    """Raise unless the time is a whole minute, hour or UTC day (the wording is unverified, the rule documented)."""
    if timestamp % _SECONDS_OF[window]:
        boundaries = "UTC day" if window == "day" else window
        raise errors.invalid_parameter(f"`{name}` must be aligned with {boundaries} boundaries.", name)


def _summary(meter: JsonObject, customer: str, start: int, end: int, events: list[MeterEvent]) -> JsonObject:
    return {
        "id": "mtrusg_test_" + scrambled(f"{meter['id']}:{customer}:{start}:{end}", 28),
        "object": "billing.meter_event_summary",
        #: a float in Stripe's SDKs; exact up to 2**53
        "aggregated_value": float(aggregated(meter["default_aggregation"]["formula"], events)),
        "end_time": end,
        "livemode": False,
        "meter": meter["id"],
        "start_time": start,
    }


ENDPOINTS = [
    get_list(
        "/v1/billing/meters/{id}/event_summaries",
        list_,
        customer=Text(required=True),
        start_time=Integer(minimum=0, required=True),
        end_time=Integer(minimum=0, required=True),
        value_grouping_window=OneOf(words=("day", "hour")),
    )
]
