"""Webhooks as Stripe sends them: an event, and the header that signs its body."""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

SECRET = "whsec_of_the_tests"

API_VERSION = "2026-05-27.dahlia"


def subscription_event(event_id: str = "evt_1", *, event_type: str = "customer.subscription.updated", **fields: Any) -> dict[str, Any]:
    """A snapshot event about subscription sub_1 of customer cus_1; `fields` replace the event's own."""
    return {
        "id": event_id,
        "object": "event",
        "api_version": API_VERSION,
        "created": 1_790_000_000,
        "data": {"object": {"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "active"}},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": event_type,
        **fields,
    }


def meter_error_event(event_id: str = "evt_thin_1") -> dict[str, Any]:
    """A thin event: it only names what it is about."""
    return {
        "id": event_id,
        "object": "v2.core.event",
        "created": "2026-09-21T14:13:20.123Z",
        "livemode": False,
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
        "type": "v1.billing.meter.error_report_triggered",
    }


def body_of(event: object) -> bytes:
    return json.dumps(event).encode()


def signature(body: bytes, secret: str = SECRET, *, at: float | None = None) -> str:
    """The `v1` signature of Stripe's scheme."""
    return hmac.new(secret.encode(), b"%d." % int(time.time() if at is None else at) + body, hashlib.sha256).hexdigest()


def signed(body: bytes, *secrets: str, at: float | None = None) -> Mapping[str, str]:
    """The header for the body, with a signature for each secret; as if it were sent now."""
    at = time.time() if at is None else at
    return {"Stripe-Signature": ",".join([f"t={int(at)}", *(f"v1={signature(body, secret, at=at)}" for secret in secrets or (SECRET,))])}
