"""Meter events: POST /v1/billing/meter_events. Checked at once: name, time, identifier. Checked later: everything in the payload.

So an event may be answered 200 and never count. Which error Stripe reports for it later is decided at receipt and kept with the event.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.clock import SECONDS_A_DAY
from sandbox.stripe_simulator.endpoint import post
from sandbox.stripe_simulator.meter_event_log import MeterEvent
from sandbox.stripe_simulator.params import Integer, Kind, Params, Text, TextMap
from sandbox.stripe_simulator.resources import core_events, meters
from sandbox.stripe_simulator.state import JsonObject, State, scrambled

#: Stripe: "Must be within the past 35 calendar days or up to 5 minutes in the future."
OLDEST_SECONDS = 35 * SECONDS_A_DAY
NEWEST_SECONDS = 5 * 60
#: More digits than this are refused later (meter_event_value_too_many_digits).
VALUE_DIGITS = 15

#: Stripe: the value "only accepts whole number values", and negative quantities correct earlier ones.
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")

_CREATE: Mapping[str, Kind] = {
    "event_name": Text(max_length=100, required=True),
    "identifier": Text(max_length=100),
    "payload": TextMap(key_length=100, value_length=100, required=True),
    "timestamp": Integer(minimum=0),
}


def create(state: State, params: Params) -> MeterEvent:
    """The order of these checks is unverified; the time comes first, so that an old event is "too old" even when it was sent before."""
    event_name: str = params["event_name"]
    meter = meters.active_under(state, event_name)
    if meter is None:
        raise errors.no_active_meter(event_name)
    now_ms = state.clock.now_ms()
    now = now_ms // 1000
    timestamp: int = params.get("timestamp", now)
    if timestamp < now - OLDEST_SECONDS:
        raise errors.meter_event_too_old(now - OLDEST_SECONDS)
    if timestamp > now + NEWEST_SECONDS:
        raise errors.meter_event_in_future(now + NEWEST_SECONDS)
    identifier = params.get("identifier")
    if identifier is None:
        identifier = _generated_identifier(state)
    elif state.meter_events.remembered(identifier, now_ms) is not None:
        raise errors.duplicate_meter_event(identifier)
    payload: dict[str, str] = params["payload"]
    customer = payload.get(meter["customer_mapping"]["event_payload_key"])
    value = payload.get(meter["value_settings"]["event_payload_key"])
    event = MeterEvent(
        identifier,
        event_name,
        [text for pair in payload.items() for text in pair],
        timestamp,
        now_ms,
        meter["id"],
        customer,
        value,
        _later_error(state, meter, customer, value),
    )
    state.add_meter_event(event)
    if event.error_code is not None:
        core_events.report_rejected(state, event, event.error_code)
    return event


def _later_error(state: State, meter: JsonObject, customer: str | None, value: str | None) -> str | None:
    """Stripe's code for why this event will never count, or None. A counting meter does not look at the value."""
    if not customer:
        return "meter_event_no_customer_defined"
    found = state.customers.get(customer)
    if found is None or "deleted" in found:
        return "meter_event_customer_not_found"
    if meter["default_aggregation"]["formula"] == "count":
        return None
    if value is None or not _WHOLE_NUMBER.fullmatch(value):
        return "meter_event_invalid_value"
    if len(value.lstrip("-")) > VALUE_DIGITS:
        return "meter_event_value_too_many_digits"
    return None


def _generated_identifier(state: State) -> str:
    return scrambled(f"meter_event:{state.next_number('meter_event')}", 36)


ENDPOINTS = [post("/v1/billing/meter_events", create, _CREATE)]
