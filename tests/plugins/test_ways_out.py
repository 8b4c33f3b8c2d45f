"""Which Stripe, and whose clock, a task gets from its environment."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from billing_airflow.connections import billing_clock, stripe_target
from token_billing.errors import UnsafeStripeTarget


def test_a_task_in_the_sandbox_reaches_nothing_but_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the connection says."""
    monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", json.dumps({"conn_type": "generic", "password": "sk_test_1"}))
    monkeypatch.delenv("BILLING_SANDBOX")
    assert stripe_target().base == "https://api.stripe.com"
    monkeypatch.setenv("BILLING_SANDBOX", "1")
    with pytest.raises(UnsafeStripeTarget, match="sandbox"):
        stripe_target()


def test_outside_the_sandbox_the_clock_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten setting does not date real usage."""
    monkeypatch.setenv("BILLING_CLOCK_URL", "http://127.0.0.1:9/simulator/clock")
    monkeypatch.delenv("BILLING_SANDBOX")
    assert abs(billing_clock()() - datetime.now(UTC)) < timedelta(minutes=1)
