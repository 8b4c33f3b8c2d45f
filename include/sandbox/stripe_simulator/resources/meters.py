"""Billing meters: /v1/billing/meters. A meter says which events count, for whom, and how they add up."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.endpoint import get, get_list, post
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import HashOf, Kind, OneOf, Params, Text
from sandbox.stripe_simulator.state import JsonObject, State

_CREATE: Mapping[str, Kind] = {
    "customer_mapping": HashOf(
        fields={"event_payload_key": Text(max_length=100, required=True), "type": OneOf(words=("by_id",), required=True)}
    ),
    "default_aggregation": HashOf(fields={"formula": OneOf(words=("count", "last", "sum"), required=True)}, required=True),
    "display_name": Text(max_length=250, required=True),
    "event_name": Text(max_length=100, required=True),
    "event_time_window": OneOf(words=("day", "hour")),
    "value_settings": HashOf(fields={"event_payload_key": Text(max_length=100, required=True)}),
}


def create(state: State, params: Params) -> JsonObject:
    """At most one active meter holds an event name (the wording of that refusal is unverified)."""
    _check_free(state, params["event_name"])
    now = state.clock.now_seconds()
    meter = {
        "id": state.new_id("meter"),
        "object": "billing.meter",
        "created": now,
        "customer_mapping": params.get("customer_mapping", {"event_payload_key": "stripe_customer_id", "type": "by_id"}),
        "default_aggregation": params["default_aggregation"],
        "display_name": params["display_name"],
        "event_name": params["event_name"],
        "event_time_window": params.get("event_time_window"),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": now,
        "value_settings": params.get("value_settings", {"event_payload_key": "value"}),
    }
    state.put("meters", meter)
    return dict(meter)


def update(state: State, params: Params, meter_id: str) -> JsonObject:
    """Only the display name of a meter can change."""
    return _changed(state, existing(state, meter_id), {name: params[name] for name in ("display_name",) if name in params})


def retrieve(state: State, params: Params, meter_id: str) -> JsonObject:
    return dict(existing(state, meter_id))


def list_(state: State, params: Params) -> JsonObject:
    return list_page(
        state.meters.newest_first(),
        params,
        url="/v1/billing/meters",
        noun="meter",
        matches=lambda meter: "status" not in params or meter["status"] == params["status"],
    )


def deactivate(state: State, params: Params, meter_id: str) -> JsonObject:
    """From now on no event can be sent to the meter; what it has counted stays. Does nothing to an inactive meter."""
    meter = existing(state, meter_id)
    if meter["status"] == "inactive":
        return dict(meter)
    return _changed(state, meter, {"status": "inactive", "status_transitions": {"deactivated_at": state.clock.now_seconds()}})


def reactivate(state: State, params: Params, meter_id: str) -> JsonObject:
    """Does nothing to an active meter."""
    meter = existing(state, meter_id)
    if meter["status"] == "active":
        return dict(meter)
    _check_free(state, meter["event_name"])
    return _changed(state, meter, {"status": "active", "status_transitions": {"deactivated_at": None}})


def existing(state: State, meter_id: str) -> JsonObject:
    """The meter named in the path. Raises 404."""
    meter = state.meters.get(meter_id)
    if meter is None:
        raise errors.no_such("meter", meter_id, in_path=True)
    return meter


def active_under(state: State, event_name: str) -> JsonObject | None:
    """The active meter that takes events of this name."""
    for meter in state.meters.newest_first():
        if meter["event_name"] == event_name and meter["status"] == "active":
            return meter
    return None


def _check_free(state: State, event_name: str) -> None:
    if active_under(state, event_name) is not None:
        raise errors.refused(f"An active meter with event name '{event_name}' already exists.", "event_name")


def _changed(state: State, meter: JsonObject, changes: JsonObject) -> JsonObject:
    meter = {**meter, **changes, "updated": state.clock.now_seconds()}
    state.put("meters", meter)
    return dict(meter)


ENDPOINTS = [
    post("/v1/billing/meters", create, _CREATE),
    get_list("/v1/billing/meters", list_, status=OneOf(words=("active", "inactive"))),
    get("/v1/billing/meters/{id}", retrieve),
    post("/v1/billing/meters/{id}", update, {"display_name": Text(max_length=250)}),
    post("/v1/billing/meters/{id}/deactivate", deactivate, {}),
    post("/v1/billing/meters/{id}/reactivate", reactivate, {}),
]
