"""Stripe, as this product uses it: the only package that imports the SDK. Every call returns our own types."""

from contextlib import AbstractAsyncContextManager

from token_billing.adapters.stripe_gateway.connection import StripeTarget, open_gateway
from token_billing.adapters.stripe_gateway.sinks import Counted
from token_billing.adapters.stripe_gateway.usage import StripeGateway

__all__ = ["Counted", "StripeGateway", "StripeTarget", "stripe_gateway"]


def stripe_gateway(target: StripeTarget) -> AbstractAsyncContextManager[StripeGateway]:
    """Opens what reports usage and reads it back."""
    return open_gateway(StripeGateway, target)
