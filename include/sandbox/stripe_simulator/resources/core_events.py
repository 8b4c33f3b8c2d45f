"""Thin events: GET /v2/core/events and /v2/core/events/{id}. The only kind so far: a meter's report of events that do not count.

The payload follows Stripe's example (docs.stripe.com/api/v2/core/events/object) and the SDK's class for this type of event.
`context` and `reason`, which are null in that example, are left out: the API description knows them only as absent.
Unverified: the order of the list, its default and largest page, how many errors are sampled, and the sentences of all codes but one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from urllib.parse import urlencode

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.clock import SECONDS_A_DAY, milliseconds, rfc3339
from sandbox.stripe_simulator.endpoint import Endpoint
from sandbox.stripe_simulator.meter_event_log import MeterEvent
from sandbox.stripe_simulator.params import ArrayOf, HashOf, Integer, Params, Text
from sandbox.stripe_simulator.resources import meters, webhook_endpoints
from sandbox.stripe_simulator.state import JsonObject, State, derived_id

#: Stripe: "List events, going back up to 30 days."
RETENTION_MS = 30 * SECONDS_A_DAY * 1000
DEFAULT_LIMIT, LARGEST_LIMIT = 20, 100
#: Stripe lists "sample errors" only: more than this many of a kind are counted, not named.
SAMPLE_COUNT = 5
#: The windows that Stripe validates: the length of the one in its example.
VALIDATION_MS = 10_000

#: Stripe's code → a sentence about one event. Stripe's own wording is known for meter_event_no_customer_defined only.
_SENTENCES: Mapping[str, str] = {
    "archived_meter": "The meter is archived.",
    "meter_event_customer_not_found": "Customer not found.",
    "meter_event_dimension_count_too_high": "The payload has too many dimensions.",
    "meter_event_invalid_value": "The value in the payload is invalid.",
    "meter_event_no_customer_defined": "Customer mapping key {customer_key} not found in payload.",
    "meter_event_value_too_many_digits": "The value in the payload has too many digits.",
    "missing_dimension_payload_keys": "Dimension keys are missing in the payload.",
    "no_meter": "No meter found.",
    "timestamp_in_future": "The timestamp is too far in the future.",
    "timestamp_too_far_in_past": "The timestamp is too far in the past.",
}

ERROR_CODES = tuple(_SENTENCES)


def report_disowned(state: State, meter_id: str, error_code: str, events: Sequence[MeterEvent]) -> JsonObject:
    """Report now that a meter has found these events invalid, which it had counted so far.

    Samples name their requests' idempotency keys, as Stripe documents; an event sent without a key is named by its identifier.
    """
    keys = state.idempotency.keys_by_event_number()
    names = [keys.get(event.number, event.identifier) for event in events[:SAMPLE_COUNT]]
    now_ms = state.clock.now_ms()
    report_id = state.new_id("core_event")
    return _record(state, report_id, meter_id, now_ms, now_ms - now_ms % VALIDATION_MS, {error_code: (len(events), names)})


def report_rejected(state: State, event: MeterEvent, error_code: str) -> None:
    """Add an event that is invalid at receipt to its meter's report of these ten seconds, which is sent when they are over."""
    now_ms = state.clock.now_ms()
    validation_end_ms = now_ms - now_ms % VALIDATION_MS + VALIDATION_MS
    report_id = derived_id("core_event", f"{event.meter}:{validation_end_ms}")
    begun = state.core_events.get(report_id)
    found = {} if begun is None else _found(begun)
    count, names = found.get(error_code, (0, []))
    names = [*names, state.idempotency_key or event.identifier][:SAMPLE_COUNT]
    _record(state, report_id, event.meter, validation_end_ms, validation_end_ms, {**found, error_code: (count + 1, names)})


def _record(
    state: State, report_id: str, meter_id: str, created_ms: int, validation_end_ms: int, found: Mapping[str, tuple[int, Sequence[str]]]
) -> JsonObject:
    """`found`: by error code, how many events and the names of some of them."""
    meter = meters.existing(state, meter_id)
    customer_key = meter["customer_mapping"]["event_payload_key"]
    error_types = [
        {
            "code": code,
            "error_count": count,
            "sample_errors": [
                {"error_message": _SENTENCES[code].format(customer_key=customer_key), "request": {"identifier": name}} for name in names
            ],
        }
        for code, (count, names) in found.items()
    ]
    total = sum(count for count, _ in found.values())
    recorded = {
        "id": report_id,
        "object": "v2.core.event",
        "created": rfc3339(created_ms),
        "data": {
            "developer_message_summary": f"There {'is 1 invalid event' if total == 1 else f'are {total} invalid events'}",
            "reason": {"error_count": total, "error_types": error_types},
            "validation_end": rfc3339(validation_end_ms),
            "validation_start": rfc3339(validation_end_ms - VALIDATION_MS),
        },
        "livemode": False,
        "related_object": {"id": meter_id, "type": "billing.meter", "url": f"/v1/billing/meters/{meter_id}"},
        "type": "v1.billing.meter.error_report_triggered",
    }
    state.put("core_events", recorded)
    return recorded


def _found(report: JsonObject) -> dict[str, tuple[int, list[str]]]:
    return {
        one["code"]: (one["error_count"], [sample["request"]["identifier"] for sample in one["sample_errors"]])
        for one in report["data"]["reason"]["error_types"]
    }


def list_(state: State, params: Params) -> JsonObject:
    """Newest first and thin: what happened is told by the event itself, on retrieval. Only forward pages have a URL."""
    limit = params.get("limit", DEFAULT_LIMIT)
    bounds = {name: _instant_ms(text, f"created[{name}]") for name, text in params.get("created", {}).items()}
    found: list[JsonObject] = []
    has_begun = "page" not in params
    for event in sorted(state.core_events.newest_first(), key=_created_ms, reverse=True):
        if has_begun and _is_wanted(event, params, bounds) and _is_shown(state, event):
            found.append(event)
        has_begun = has_begun or event["id"] == params["page"]
    if not has_begun:
        raise errors.invalid_parameter(f"Invalid page: {params['page']}", "page")
    page = [thin(event) for event in found[:limit]]
    return {"data": page, "next_page_url": _next_url(params, page[-1]["id"]) if len(found) > limit else None, "previous_page_url": None}


def retrieve(state: State, params: Params, event_id: str) -> JsonObject:
    """With its data. Raises 404 once it is 30 days old."""
    event = state.core_events.get(event_id)
    if event is None or not _is_shown(state, event):
        raise errors.core_event_not_found(event_id)
    return dict(event)


def thin(event: JsonObject) -> JsonObject:
    """As lists show it and webhooks carry it."""
    return {name: value for name, value in event.items() if name != "data"}


# --- What time does -----------------------------------------------------------------------------------------------------------------


def due(state: State, event_id: str) -> int | None:
    """When the event is sent (seconds since 1970), until it has been."""
    event = state.core_events.get(event_id)
    return None if event is None or state.announced.get(event_id) is not None else -(-_created_ms(event) // 1000)


def announce(state: State, event_id: str) -> None:
    event = state.core_events.get(event_id)
    assert event is not None, "it has just been due"
    state.put("announced", {"id": event_id})
    webhook_endpoints.enqueue(state, event_id, event["type"])


# --- Rules --------------------------------------------------------------------------------------------------------------------------


def _is_wanted(event: JsonObject, params: Params, bounds: Mapping[str, int]) -> bool:
    if "object_id" in params and event["related_object"]["id"] != params["object_id"]:
        return False
    if "types" in params and event["type"] not in params["types"]:
        return False
    created_ms = _created_ms(event)
    return (
        created_ms > bounds.get("gt", -1)
        and created_ms >= bounds.get("gte", 0)
        and created_ms < bounds.get("lt", created_ms + 1)
        and created_ms <= bounds.get("lte", created_ms)
    )


def _is_shown(state: State, event: JsonObject) -> bool:
    """Whether the event has been sent by now, and not yet been forgotten."""
    return 0 <= state.clock.now_ms() - _created_ms(event) < RETENTION_MS


def _created_ms(event: JsonObject) -> int:
    return _instant_ms(event["created"], "created")


def _instant_ms(text: str, name: str) -> int:
    try:
        return milliseconds(datetime.fromisoformat(text))
    except ValueError as error:
        raise errors.invalid_parameter(f"Invalid timestamp: {text}", name) from error


def _next_url(params: Params, last_id: str) -> str:
    query: dict[str, str] = {name: str(params[name]) for name in params if name in ("limit", "object_id")}
    query |= {f"created[{name}]": text for name, text in params.get("created", {}).items()}
    query |= {f"types[{index}]": text for index, text in enumerate(params.get("types", []))}
    return "/v2/core/events?" + urlencode({**query, "page": last_id})


ENDPOINTS = [
    Endpoint(
        "GET",
        "/v2/core/events",
        {
            "created": HashOf(fields={bound: Text() for bound in ("gt", "gte", "lt", "lte")}),
            "limit": Integer(minimum=1, maximum=LARGEST_LIMIT),
            "object_id": Text(),
            "page": Text(),
            "types": ArrayOf(element=Text(), max_count=20),
        },
        list_,
    ),
    Endpoint("GET", "/v2/core/events/{id}", {}, retrieve),
]
