"""Snapshot events: /v1/events. What happened, with the object as it was shown at that instant, for ever.

Resources and the passing of time call `emit`; webhooks are told by it. Meter events make none, as at Stripe.
Unverified: that `previous_attributes` shows lists whole and other values where they differ only (so do recorded payloads), and that an
event of the API's own doing names no request.
"""

from __future__ import annotations

import json

from sandbox.stripe_simulator import API_VERSION, errors
from sandbox.stripe_simulator.clock import SECONDS_A_DAY
from sandbox.stripe_simulator.endpoint import get, get_list
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import BOUNDS, ArrayOf, Boolean, Params, Text, is_within
from sandbox.stripe_simulator.resources import webhook_endpoints
from sandbox.stripe_simulator.state import JsonObject, State

#: Stripe: "List events, going back up to 30 days."
RETENTION_SECONDS = 30 * SECONDS_A_DAY
#: Stripe: "An array of up to 20 strings containing specific event names."
_TYPE_COUNT = 20

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def emit(state: State, event_type: str, shown: JsonObject, previous: JsonObject | None = None) -> None:
    """Record that something happened now to an object, given as it is shown; `previous`: the attributes that an update changed."""
    data = {"object": shown} if previous is None else {"object": shown, "previous_attributes": previous}
    event: JsonObject = {
        "id": state.new_id("event"),
        "created": state.clock.now_seconds(),
        "type": event_type,
        "request": {"id": state.request_id, "idempotency_key": state.idempotency_key},
        "happened_at_ms": state.clock.now_ms(),
        #: as text: it never changes, and takes a third of the room
        "data": _encode(data),
    }
    state.put("events", event)
    webhook_endpoints.enqueue(state, event["id"], event_type)


def emit_update(state: State, event_type: str, before: JsonObject, after: JsonObject) -> None:
    """The same for an update; none where the object is shown as before."""
    previous = previous_attributes(before, after)
    if previous:
        emit(state, event_type, after, previous)


def previous_attributes(before: JsonObject, after: JsonObject) -> JsonObject:
    """The earlier values of what differs: within objects only that, of lists all, and null for what was not there."""
    changed: JsonObject = {}
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        changed[name] = previous_attributes(old, new) if isinstance(old, dict) and isinstance(new, dict) else old
    return changed


def rendered(state: State, event: JsonObject) -> JsonObject:
    return {
        "id": event["id"],
        "object": "event",
        "api_version": API_VERSION,
        "created": event["created"],
        "data": json.loads(event["data"]),
        "livemode": False,
        "pending_webhooks": webhook_endpoints.undelivered_count(state, event["id"]),
        "request": event["request"],
        "type": event["type"],
    }


def list_(state: State, params: Params) -> JsonObject:
    """Newest first, of the last 30 days, each so long after it happened as the settings say."""
    if "type" in params and "types" in params:
        raise errors.exclusive_parameters("type", "types")
    now_ms = state.clock.now_ms()
    newest_ms = now_ms - round(state.settings.events_delay_seconds * 1000)
    wanted = params.get("types", [params["type"]] if "type" in params else None)

    def matches(event: JsonObject) -> bool:
        return (
            event["happened_at_ms"] <= newest_ms
            and _is_remembered(state, event)
            and is_within(event["created"], params.get("created"))
            and (wanted is None or any(_is_of_type(event["type"], one) for one in wanted))
            and ("delivery_success" not in params or params["delivery_success"] == _is_delivered(state, event))
        )

    return list_page(
        state.events.newest_first(), params, url="/v1/events", noun="event", matches=matches, render=lambda event: rendered(state, event)
    )


def retrieve(state: State, params: Params, event_id: str) -> JsonObject:
    """Also before the list shows it."""
    event = state.events.get(event_id)
    if event is None or not _is_remembered(state, event):
        raise errors.no_such("event", event_id, in_path=True)
    return rendered(state, event)


def _is_remembered(state: State, event: JsonObject) -> bool:
    return bool(state.clock.now_seconds() - event["created"] < RETENTION_SECONDS)


def _is_of_type(event_type: str, wanted: str) -> bool:
    """Stripe: "a specific event name, or group of events using * as a wildcard"."""
    return event_type.startswith(wanted[:-1]) if wanted.endswith("*") else event_type == wanted


def _is_delivered(state: State, event: JsonObject) -> bool:
    """Also when it was for nobody."""
    return webhook_endpoints.undelivered_count(state, event["id"]) == 0


ENDPOINTS = [
    get_list(
        "/v1/events",
        list_,
        created=BOUNDS,
        delivery_success=Boolean(),
        type=Text(),
        types=ArrayOf(element=Text(), max_count=_TYPE_COUNT),
    ),
    get("/v1/events/{id}", retrieve),
]
