"""Where secret keys may go, and who may set the clock."""

import pytest

from sandbox.environment import without_stripe
from token_billing.adapters.clock import replayed_clock
from token_billing.errors import UnsafeStripeTarget
from token_billing.targets import STRIPE_BASE, check_target

LOOPBACK = "http://127.0.0.1:4242"


@pytest.mark.parametrize("live", ["sk_live_1", "rk_live_1", "sk_org_live_1"])
@pytest.mark.parametrize(
    "base", [LOOPBACK, "http://api.stripe.com", "https://stripe.com.example.org", "https://notstripe.com", "https://[::1]"]
)
def test_a_live_key_goes_to_stripes_own_hosts_only(live: str, base: str) -> None:
    """And there never in clear text."""
    check_target(live, STRIPE_BASE, sandbox=False)
    check_target(live, "https://files.stripe.com", sandbox=False)
    with pytest.raises(UnsafeStripeTarget, match="live Stripe key goes to Stripe's own hosts only"):
        check_target(live, base, sandbox=False)


def test_the_sandbox_takes_no_live_key() -> None:
    """Wherever it would go."""
    for base in (LOOPBACK, STRIPE_BASE):
        with pytest.raises(UnsafeStripeTarget, match="sandbox refuses a live"):
            check_target("sk_live_1", base, sandbox=True)


@pytest.mark.parametrize("base", [STRIPE_BASE, "https://127.0.0.1.example.org", "http://10.0.0.1", "https://localhost.example.org"])
def test_the_sandbox_talks_to_this_machine_only(base: str) -> None:
    """Also with a test key."""
    for loopback in (LOOPBACK, "http://localhost:1", "http://[::1]:1"):
        check_target("sk_test_1", loopback, sandbox=True)
    with pytest.raises(UnsafeStripeTarget, match="its own simulator only"):
        check_target("sk_test_1", base, sandbox=True)


def test_no_key_leaves_this_machine_in_clear_text() -> None:
    """A test key is a secret, too."""
    check_target("sk_test_1", "https://stripe.example.org", sandbox=False)
    check_target("sk_test_1", LOOPBACK, sandbox=False)
    with pytest.raises(UnsafeStripeTarget, match="clear text"):
        check_target("sk_test_1", "http://stripe.example.org", sandbox=False)


@pytest.mark.parametrize("base", ["", "api.stripe.com", "ftp://api.stripe.com", "https://"])
def test_what_is_no_address_is_refused(base: str) -> None:
    with pytest.raises(UnsafeStripeTarget, match="write a URL"):
        check_target("sk_test_1", base, sandbox=False)


def test_only_this_machine_sets_the_clock() -> None:
    """A clock decides what may be billed."""
    with pytest.raises(UnsafeStripeTarget, match="BILLING_CLOCK_URL"):
        replayed_clock("http://clock.invalid/now")


def test_nothing_of_the_callers_stripe_reaches_the_sandbox() -> None:
    """Nor any connection or setting of its Airflow and its billing; what is nobody's secret stays."""
    foreign = {"STRIPE_SECRET_KEY": "sk_live_1", "STRIPE_PRICE_ID_SOLO": "p", "AIRFLOW_CONN_STRIPE_DEFAULT": "{}", "BILLING_CLOCK_URL": "u"}
    assert without_stripe({**foreign, "PGHOST": "production", "PATH": "/bin"}) == {"PATH": "/bin"}
