"""Which webhooks are believed. What is signed here is signed as Stripe documents it, not with the SDK that verifies."""

import time
from datetime import UTC, datetime, timedelta

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from signed_events import SECRET, signature, signed
from token_billing.adapters.stripe_gateway.webhook_signature import verify
from token_billing.errors import BadSignature, NoWebhookSecret

NOW = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
BODY = b'{"id": "evt_1", "name": "Gr\xc3\xbc\xc3\x9fe"}'


def header(body: bytes = BODY, *secrets: str, ago: timedelta = timedelta(0)) -> str:
    return signed(body, *secrets, at=(NOW - ago).timestamp())["Stripe-Signature"]


def test_what_stripe_signed_is_believed() -> None:
    verify(BODY, header(), [SECRET], NOW)


def test_the_sdks_own_signature_is_believed() -> None:
    made = stripe.WebhookSignature.generate_signature_header(BODY.decode(), SECRET, timestamp=int(NOW.timestamp()))
    verify(BODY, made, [SECRET], NOW)


def test_while_a_secret_is_rolled_either_one_is_believed() -> None:
    """On both sides: Stripe signs with two, and two are configured."""
    verify(BODY, header(BODY, "whsec_old", "whsec_new"), ["whsec_new"], NOW)
    verify(BODY, header(BODY, "whsec_old", "whsec_new"), ["whsec_old"], NOW)
    verify(BODY, header(BODY, "whsec_old"), ["whsec_new", "whsec_old"], NOW)


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b" ", BODY.replace(b"evt_1", b"evt_2"), b"", b"\xff" + BODY])
def test_another_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadSignature):
        verify(body, header(), [SECRET], NOW)


def test_another_secret_is_refused() -> None:
    with pytest.raises(BadSignature):
        verify(BODY, header(BODY, "whsec_somebody_elses"), [SECRET], NOW)


def test_without_a_secret_nothing_is_believed() -> None:
    """Not even what is signed with an empty one; the message names the places for it."""
    with pytest.raises(NoWebhookSecret, match=r"webhook_secret.*STRIPE_WEBHOOK_SECRET.*set_up_stripe"):
        verify(BODY, header(BODY, ""), [], NOW)
    with pytest.raises(BadSignature):
        verify(BODY, header(BODY, ""), [""], NOW)


@pytest.mark.parametrize("seconds", [-300, -1, 0, 299, 300])
def test_five_minutes_either_way_are_believed(seconds: int) -> None:
    verify(BODY, header(ago=timedelta(seconds=seconds)), [SECRET], NOW)


@pytest.mark.parametrize("seconds", [-86400, -301, 301, 86400])
def test_what_was_signed_long_ago_or_in_the_future_is_refused(seconds: int) -> None:
    """The SDK itself lets the future pass."""
    with pytest.raises(BadSignature, match="clocks"):
        verify(BODY, header(ago=timedelta(seconds=seconds)), [SECRET], NOW)


def test_of_several_times_none_is_believed() -> None:
    """The SDK takes the first."""
    fresh, stale = int(NOW.timestamp()), int(NOW.timestamp()) - 3600
    for first, second in ((fresh, stale), (stale, fresh), (fresh, fresh)):
        with pytest.raises(BadSignature, match="one time"):
            verify(BODY, f"t={first},t={second},v1={signature(BODY, at=first)},v1={signature(BODY, at=second)}", [SECRET], NOW)


@pytest.mark.parametrize(
    "broken",
    [
        "", "t", "t=", "v1=", "v1=00", "t=1790000000", ",,,",
        "t=now,v1=00", "t=-1,v1=00", f"t={'9' * 5000},v1=00", "t=１７９００００００0,v1=00", "t=1790000000,v1=é",
    ],
)  # fmt: skip
def test_a_broken_header_is_refused(broken: str) -> None:
    with pytest.raises(BadSignature):
        verify(BODY, broken, [SECRET], NOW)
    with pytest.raises(BadSignature):
        verify(BODY, None, [SECRET], NOW)


def test_another_scheme_is_not_believed() -> None:
    """`v0` is what Stripe's test mode adds; anybody can make one."""
    at = int(NOW.timestamp())
    with pytest.raises(BadSignature):
        verify(BODY, f"t={at},v0={signature(BODY, at=at)}", [SECRET], NOW)


@given(st.binary(max_size=200), st.text(max_size=200))
def test_nothing_but_a_refusal_comes_of_anything_else(body: bytes, said: str) -> None:
    for made in (said, f"t={int(time.time())},v1={said}"):
        with pytest.raises(BadSignature):
            verify(body, made, [SECRET], datetime.now(UTC))
