"""The one clock: the system's, or the sandbox's where hours are replayed."""

import json
import time
from datetime import UTC, datetime, timedelta
from urllib.request import urlopen

from token_billing.errors import UnsafeStripeTarget
from token_billing.model import Clock
from token_billing.targets import is_loopback


def system_clock() -> datetime:
    """Now, timezone-aware, in UTC."""
    return datetime.now(UTC)


def replayed_clock(url: str) -> Clock:
    """A clock that goes on from what the sandbox's simulator says now (`{"now": "…Z"}`); loopback only, since a clock decides
    what may be billed."""
    # safeguard: only the sandbox sets the clock
    if not is_loopback(url):
        raise UnsafeStripeTarget(f"BILLING_CLOCK_URL is {url}; only the sandbox on this machine may set the clock, unset it")
    with urlopen(url, timeout=10) as answer:
        started_at = datetime.fromisoformat(json.load(answer)["now"])
    started = time.monotonic()
    return lambda: started_at + timedelta(seconds=time.monotonic() - started)
