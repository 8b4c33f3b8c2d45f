"""Stripe's events, as they come by webhook or from its list: what every one of them says. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from token_billing.errors import BadEvent

#: Events that tell of an invoice whose lines stay as they are. Paid is also what was paid another way, which no payment succeeded in.
FINAL_INVOICE_EVENTS = (
    "invoice.finalized",
    "invoice.paid",
    "invoice.payment_succeeded",
    "invoice.voided",
    "invoice.marked_uncollectible",
)

#: Events of these types are wanted, and nothing else is kept.
SNAPSHOT_EVENTS = (
    "checkout.session.completed",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.created",
    *FINAL_INVOICE_EVENTS,
)

#: Thin events about meter events that Stripe accepted and then did not count.
METER_ERROR_EVENTS = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")

#: The first API version (basil) whose objects this code reads: billing periods stand on items, an invoice's subscription on its parent.
OLDEST_API_VERSION = "2025-03-31"
_API_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class StripeEvent:
    """An event. `happened_at` is Stripe's own time of it, whole seconds for snapshot events; `payload` the whole event as it came."""

    id: str
    type: str
    happened_at: datetime
    livemode: bool
    api_version: str | None
    subscription_id: str | None
    customer_id: str | None
    payload: Mapping[str, Any] = field(repr=False)

    @property
    def object(self) -> Mapping[str, Any]:
        """What the event is about, as it was when it happened; empty in a thin event."""
        found: Mapping[str, Any] = self.payload.get("data", {}).get("object", {}) if not is_thin(self.payload) else {}
        return found

    @property
    def previous_attributes(self) -> Mapping[str, Any]:
        """What an update changed, as it was before."""
        return self.payload.get("data", {}).get("previous_attributes") or {}


def is_thin(payload: Mapping[str, Any]) -> bool:
    """Whether the event only names what it is about."""
    return payload.get("object") == "v2.core.event"


def is_readable(event: StripeEvent, newest_api_version: str) -> bool:
    """Whether the event's objects have a shape that this code knows: from basil to the version it was written for."""
    # Thin events show no objects.
    if event.api_version is None:
        return True
    dated = _API_VERSION.match(event.api_version)
    # safeguard: only shapes that this code knows
    return dated is not None and OLDEST_API_VERSION <= dated[0] <= newest_api_version[: len(OLDEST_API_VERSION)]


def event_of(payload: object) -> StripeEvent:
    """What came, as an event; raises BadEvent where it is none."""
    if not isinstance(payload, Mapping):
        raise BadEvent("an event of Stripe's is a JSON object")
    try:
        thin = is_thin(payload)
        if not thin and payload["object"] != "event":
            raise BadEvent(f"the object is a {payload['object']!r}, not an event")
        about: Mapping[str, Any] = {} if thin else payload["data"]["object"]
        created = payload["created"]
        happened_at = datetime.fromisoformat(created) if thin else datetime.fromtimestamp(int(created), UTC)
        event_id, event_type, livemode = payload["id"], payload["type"], payload["livemode"]
        if not isinstance(about, Mapping) or happened_at.tzinfo is None:
            raise BadEvent("the event does not hold what it is about, or its time has no zone")
        if not (isinstance(event_id, str) and event_id and isinstance(event_type, str) and event_type and isinstance(livemode, bool)):
            raise BadEvent("id, type and livemode of the event are not a name each and a truth value")
        return StripeEvent(
            event_id,
            event_type,
            happened_at.astimezone(UTC),
            livemode,
            _name(payload.get("api_version")),
            _subscription_of(about),
            _name(about.get("id")) if about.get("object") == "customer" else _id_of(about.get("customer")),
            payload,
        )
    except BadEvent:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, OSError, AttributeError) as missing:
        raise BadEvent(f"the event is not as Stripe describes it: {type(missing).__name__} {missing}") from missing


def _subscription_of(about: Mapping[str, Any]) -> str | None:
    match about.get("object"):
        case "subscription":
            return _name(about.get("id"))
        case "invoice":  # its parent, since API version basil
            parent = about.get("parent")
            details = parent.get("subscription_details") if isinstance(parent, Mapping) else None
            return _id_of(details.get("subscription")) if isinstance(details, Mapping) else _id_of(about.get("subscription"))
        case _:
            return _id_of(about.get("subscription"))


def _id_of(reference: object) -> str | None:
    """Stripe names another object by its id, or shows all of it."""
    return _name(reference.get("id")) if isinstance(reference, Mapping) else _name(reference)


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
