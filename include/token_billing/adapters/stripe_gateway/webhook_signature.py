"""Whether a webhook was signed by Stripe, just now. Facts: docs.stripe.com/webhooks#verify-manually."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import stripe

from token_billing.errors import BadSignature, NoWebhookSecret

#: How far Stripe's time of signing may lie from ours: what the SDK takes by default for the past, here for the future too.
TOLERANCE = timedelta(seconds=300)


def verify(body: bytes, header: str | None, secrets: Sequence[str], now: datetime) -> None:
    """Raises BadSignature unless one of the header's signatures (`v1`) is that of this very body under one of the secrets, of which
    there are two while one is rolled, and was made within five minutes of now; raises NoWebhookSecret where there is no secret."""
    # safeguard: without a secret nothing is believed
    if not secrets:
        raise NoWebhookSecret(
            "no webhook signing secret is configured, so every webhook is refused: put it into extra `webhook_secret` of connection "
            "`stripe_default` (or set STRIPE_WEBHOOK_SECRET, or have the DAG set_up_stripe make the endpoint)"
        )
    if not header:
        raise BadSignature("it carries no Stripe-Signature header")
    signed_at = _signed_at(header)
    # safeguard: signed just now
    if abs(now.timestamp() - signed_at) > TOLERANCE.total_seconds():
        raise BadSignature(f"it was signed at {signed_at}, more than {TOLERANCE.total_seconds():.0f} s from now; are the clocks right?")
    # safeguard: only what Stripe signed
    if not any(_is_signed(body, header, secret) for secret in secrets):
        raise BadSignature("none of its signatures is that of this body under a signing secret that is configured here")


def _signed_at(header: str) -> int:
    """The one time in the header, seconds since 1970; the SDK would take the first of several."""
    times = [value for name, _, value in (part.partition("=") for part in header.split(",")) if name == "t"]
    # Fifteen digits are more than any date needs, and few enough to be a float.
    if not header.isascii() or len(times) != 1 or not times[0].isdecimal() or len(times[0]) > 15:
        raise BadSignature("its Stripe-Signature header does not name the one time of signing")
    return int(times[0])


def _is_signed(body: bytes, header: str, secret: str) -> bool:
    try:
        return bool(stripe.WebhookSignature.verify_header(body, header, secret))
    except (stripe.SignatureVerificationError, UnicodeDecodeError):  # Stripe's own bodies are UTF-8
        return False
