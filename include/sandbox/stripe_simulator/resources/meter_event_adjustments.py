"""Cancelling a meter event: POST /v1/billing/meter_event_adjustments, within 24 hours of its receipt.

Stripe's wording of the refusals is unverified, and so is whether it refuses an unknown identifier at once; a simulator that answered
"pending" for ever would hide the mistake. A cancelled event keeps holding its identifier.
"""

from __future__ import annotations

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.endpoint import post
from sandbox.stripe_simulator.params import HashOf, OneOf, Params, Text
from sandbox.stripe_simulator.state import JsonObject, State


def create(state: State, params: Params) -> JsonObject:
    """Takes effect in the summaries with the same delay as an event; hence "pending"."""
    identifier = params.get("cancel", {}).get("identifier")
    if identifier is None:
        raise errors.missing_parameter("cancel[identifier]")
    event = state.meter_events.remembered(identifier, state.clock.now_ms())
    if event is None or event.event_name != params["event_name"]:
        raise errors.refused(
            f"No meter event with identifier {identifier} and event name {params['event_name']} was received within the last 24 hours.",
            "cancel[identifier]",
        )
    if event.cancelled_at_ms is not None:
        raise errors.refused(f"The meter event with identifier {identifier} is already cancelled.", "cancel[identifier]")
    state.cancel_meter_event(identifier)
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": params["event_name"],
        "livemode": False,
        "status": "pending",
        "type": "cancel",
    }


ENDPOINTS = [
    post(
        "/v1/billing/meter_event_adjustments",
        create,
        {
            "cancel": HashOf(fields={"identifier": Text(max_length=100)}),
            "event_name": Text(max_length=100, required=True),
            "type": OneOf(words=("cancel",), required=True),
        },
    )
]
