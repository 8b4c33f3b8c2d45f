"""Where secret keys may go: live keys to Stripe's own hosts, the sandbox's to loopback, nothing else. Pure."""

import ipaddress
from urllib.parse import urlsplit

from token_billing.errors import UnsafeStripeTarget

STRIPE_HOST = "stripe.com"

#: Where the SDK sends to when the connection names no host.
STRIPE_BASE = "https://api.stripe.com"


def is_live(secret_key: str) -> bool:
    """Whether the key moves real money: sk_live_…, rk_live_… and organisation keys alike carry the word."""
    return "_live_" in secret_key


def is_loopback(base: str) -> bool:
    """Whether the URL's host is this machine itself."""
    host = urlsplit(base).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_target(secret_key: str, base: str, *, sandbox: bool) -> None:
    """Raises UnsafeStripeTarget for a live key that would leave for a host that is not Stripe's, for plain HTTP to anywhere but
    this machine, and, in the sandbox, for any live key and any base that is not loopback."""
    url = urlsplit(base)
    host = url.hostname or ""
    if url.scheme not in ("http", "https") or not host:
        raise UnsafeStripeTarget(f"the host of connection `stripe_default` is {base!r}; write a URL such as {STRIPE_BASE}, or nothing")
    # safeguard: no live key in the sandbox
    if sandbox and is_live(secret_key):
        raise UnsafeStripeTarget("the sandbox refuses a live Stripe key; take the live key out of connection `stripe_default`")
    # safeguard: the sandbox stays on this machine
    if sandbox and not is_loopback(base):
        raise UnsafeStripeTarget(f"the sandbox talks to its own simulator only, not to {base}; run the DAGs outside it to bill for real")
    at_stripe = url.scheme == "https" and (host == STRIPE_HOST or host.endswith("." + STRIPE_HOST))
    # safeguard: live keys go to Stripe only
    if is_live(secret_key) and not at_stripe:
        raise UnsafeStripeTarget(f"a live Stripe key goes to Stripe's own hosts only, not to {base}; clear the host of `stripe_default`")
    # safeguard: no key in clear text
    if url.scheme == "http" and not is_loopback(base):
        raise UnsafeStripeTarget(f"{base} would carry the secret key in clear text; use https in the host of `stripe_default`")
