"""The parameters that a subscription takes: made, changed and cancelled."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox.stripe_simulator.params import ArrayOf, Boolean, Currency, Either, HashOf, Integer, Kind, OneOf, Text, TextMap
from sandbox.stripe_simulator.resources import subscribed_items

#: Stripe allows 20 items on a subscription.
_ITEM_COUNT = 20

_CANCELLATION_DETAILS = HashOf(
    fields={
        "comment": Text(unsettable=True),
        "feedback": OneOf(
            words=(
                "customer_service",
                "low_quality",
                "missing_features",
                "other",
                "switched_service",
                "too_complex",
                "too_expensive",
                "unused",
            ),
            unsettable=True,
        ),
    }
)
_SHARED: Mapping[str, Kind] = {
    **{name: kind for name, kind in subscribed_items.PRORATION.items() if name != "proration_date"},
    "cancel_at_period_end": Boolean(),
    "collection_method": OneOf(words=("charge_automatically", "send_invoice")),
    "days_until_due": Integer(minimum=0),
    "metadata": TextMap(unsettable=True),
    "off_session": Boolean(),
    "trial_end": Either(kinds=(OneOf(words=("now",)), Integer(minimum=0))),
}
CREATE: Mapping[str, Kind] = {
    **_SHARED,
    "backdate_start_date": Integer(minimum=0),
    "billing_cycle_anchor": Integer(minimum=0),
    "billing_cycle_anchor_config": HashOf(
        fields={
            "day_of_month": Integer(minimum=1, maximum=31, required=True),
            "hour": Integer(minimum=0, maximum=23),
            "minute": Integer(minimum=0, maximum=59),
            "second": Integer(minimum=0, maximum=59),
        }
    ),
    "billing_mode": HashOf(fields={"type": OneOf(words=("classic", "flexible"), required=True)}),
    "cancel_at": Integer(minimum=0),
    "currency": Currency(),
    "customer": Text(required=True),
    "description": Text(max_length=500),
    "items": ArrayOf(element=HashOf(fields={**subscribed_items.WRITABLE, "metadata": TextMap()}), max_count=_ITEM_COUNT, required=True),
    "trial_period_days": Integer(minimum=0, maximum=730),
}
UPDATE: Mapping[str, Kind] = {
    **_SHARED,
    "billing_cycle_anchor": OneOf(words=("now", "unchanged")),
    "cancel_at": Integer(minimum=0, unsettable=True),
    "cancellation_details": _CANCELLATION_DETAILS,
    "description": Text(max_length=500, unsettable=True),
    "items": ArrayOf(
        element=HashOf(
            fields={
                **subscribed_items.WRITABLE,
                "clear_usage": Boolean(),
                "deleted": Boolean(),
                "id": Text(),
                "metadata": TextMap(unsettable=True),
            }
        ),
        max_count=2 * _ITEM_COUNT,
    ),
    "pause_collection": HashOf(
        fields={
            "behavior": OneOf(words=("keep_as_draft", "mark_uncollectible", "void"), required=True),
            "resumes_at": Integer(minimum=0),
        },
        unsettable=True,
    ),
    "proration_date": Integer(minimum=0),
}
CANCEL: Mapping[str, Kind] = {"cancellation_details": _CANCELLATION_DETAILS, "invoice_now": Boolean(), "prorate": Boolean()}
