"""Checkout: a session, the customer who pays, and all that follows from it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandbox.stripe_simulator.process import SimulatorFailed

SESSIONS = "/v1/checkout/sessions"


@pytest.fixture
def open_session(raw, billing, meter):
    """Of a base price and a metered one."""
    base, metered = billing.price(), billing.metered_price(meter)

    def opened(**more):
        params = {
            "mode": "subscription",
            "success_url": "https://example.com/done?session_id={CHECKOUT_SESSION_ID}",
            "line_items[0][price]": base,
            "line_items[0][quantity]": 1,
            "line_items[1][price]": metered,
            **more,
        }
        reply = raw.post(SESSIONS, params)
        assert reply.status == 200, reply
        return reply.body

    return opened


def test_a_customer_who_pays_has_a_subscription(raw, simulator, open_session):
    """The session names customer, subscription and invoice, keeps the reference, and is told last of all."""
    session = open_session(
        client_reference_id="tenant-1",
        customer_email="ada@example.com",
        **{"metadata[a]": "b", "subscription_data[metadata][tenant]": "tenant-1"},
    )
    assert (session["status"], session["payment_status"], session["subscription"], session["amount_total"]) == (
        "open",
        "unpaid",
        None,
        1900,
    )
    done = simulator.complete_checkout(session["id"])
    assert done == raw.get(f"{SESSIONS}/{session['id']}").body
    assert (done["status"], done["payment_status"], done["client_reference_id"], done["url"]) == ("complete", "paid", "tenant-1", None)
    subscription = raw.get(f"/v1/subscriptions/{done['subscription']}").body
    assert (subscription["customer"], subscription["metadata"]) == (done["customer"], {"tenant": "tenant-1"})
    assert [item["price"]["recurring"]["usage_type"] for item in subscription["items"]["data"]] == ["licensed", "metered"]
    assert raw.get(f"/v1/customers/{done['customer']}").body["email"] == done["customer_details"]["email"] == "ada@example.com"
    assert raw.get(f"/v1/invoices/{done['invoice']}").body["total"] == 1900
    types = [event["type"] for event in raw.get("/v1/events", {"limit": 8}).body["data"]][::-1]
    assert types == [
        "customer.created",
        "customer.updated",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "checkout.session.completed",
    ]


def test_an_existing_customer_and_a_trial(raw, simulator, billing, open_session, now):
    """No other customer is made."""
    customer = billing.customer()
    session = open_session(customer=customer, **{"subscription_data[trial_period_days]": 14})
    done = simulator.complete_checkout(session["id"])
    assert done["customer"] == customer and done["amount_total"] == 0
    subscription = raw.get(f"/v1/subscriptions/{done['subscription']}").body
    assert (subscription["status"], subscription["trial_end"]) == ("trialing", int((now + timedelta(days=14)).timestamp()))
    assert len(raw.get("/v1/customers").body["data"]) == 1


def test_a_session_is_paid_once_and_expires(raw, simulator, open_session, pass_time):
    """By request or by itself after a day, which is told; then nobody can pay."""
    paid, expired, forgotten = (open_session()["id"] for _ in range(3))
    simulator.complete_checkout(paid)
    assert raw.post(f"{SESSIONS}/{expired}/expire").body["status"] == "expired"
    pass_time(days=1)
    for session in (paid, expired, forgotten, "cs_nobody"):
        with pytest.raises(SimulatorFailed):
            simulator.complete_checkout(session)
    told = raw.get("/v1/events", {"type": "checkout.session.expired"}).body["data"]
    assert [event["data"]["object"]["id"] for event in told] == [forgotten, expired]
    assert [one["id"] for one in raw.get(SESSIONS, {"status": "complete"}).body["data"]] == [paid]


@pytest.mark.parametrize(
    "changes",
    [
        {"line_items[1][quantity]": 1},
        {"line_items[0][quantity]": ""},
        {"line_items[0][price]": "price_x"},
        {"customer": "cus_x"},
        {"mode": "payment"},
        {"success_url": ""},
        {"expires_at": 1},
    ],
)
def test_a_session_that_cannot_be_is_refused(raw, open_session, changes):
    """Above all a metered price has no quantity."""
    with pytest.raises(AssertionError, match="status=400"):
        open_session(**changes)
    assert raw.get(SESSIONS).body["data"] == []


def test_the_sdk_opens_sessions(client, simulator, billing, meter):
    """And reads their line items."""
    session = client.v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "success_url": "https://example.com",
            "line_items": [{"price": billing.metered_price(meter)}, {"price": billing.price(), "quantity": 2}],
            "expand": ["line_items"],
        }
    )
    assert [(item.quantity, item.amount_total) for item in session.line_items.data] == [(None, 0), (2, 3800)]
    simulator.complete_checkout(session.id)
    assert client.v1.checkout.sessions.retrieve(session.id, {"expand": ["subscription"]}).subscription.status == "active"
