"""Webhooks: signed posts to this machine and no other, tried again, and troubled on demand."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest
import stripe

from sandbox.stripe_simulator.process import SimulatorFailed, StripeSimulator
from stripe_simulator.webhook_receiver import Receiver, receiving

ENDPOINTS = "/v1/webhook_endpoints"


@pytest.fixture
def receiver():
    with receiving() as receiver:
        yield receiver


def signed_with(receiver: Receiver, secret: str) -> list[str]:
    """The types of what was received, each verified by the real SDK."""
    return [stripe.Webhook.construct_event(body, signature, secret).type for body, signature in receiver.received]


def test_events_are_delivered_signed_and_in_order(raw, billing, simulator, receiver):
    """The SDK accepts the signature; the body is the event as the API shows it, but for what is still pending."""
    made = raw.post(ENDPOINTS, {"url": receiver.url, "enabled_events[0]": "customer.created", "enabled_events[1]": "customer.updated"}).body
    customer = billing.customer()
    billing.price()
    raw.post(f"/v1/customers/{customer}", {"name": "Ada"})
    assert simulator.flush_webhooks() == {"pending": 0, "delivered": 2, "failed": 0, "dropped": 0, "undeliverable": 0}
    assert signed_with(receiver, made["secret"]) == ["customer.created", "customer.updated"]
    event = receiver.events()[0]
    assert event["pending_webhooks"] == 1
    assert raw.get(f"/v1/events/{event['id']}").body == {**event, "pending_webhooks": 0}
    with pytest.raises(stripe.SignatureVerificationError):
        signed_with(receiver, "whsec_another")


def test_the_secret_is_told_once(client, raw):
    """By the answer that made the endpoint."""
    made = client.v1.webhook_endpoints.create({"url": "https://example.com/hook", "enabled_events": ["*"]})
    assert made.secret.startswith("whsec_")
    shown = raw.get(f"{ENDPOINTS}/{made.id}").body
    assert "secret" not in shown and shown == raw.get(ENDPOINTS).body["data"][0]
    assert (shown["status"], shown["enabled_events"], shown["url"]) == ("enabled", ["*"], "https://example.com/hook")
    changed = raw.post(f"{ENDPOINTS}/{made.id}", {"disabled": "true", "enabled_events[]": "invoice.paid"}).body
    assert (changed["status"], changed["enabled_events"]) == ("disabled", ["invoice.paid"])
    client.v1.webhook_endpoints.delete(made.id)
    assert raw.get(f"{ENDPOINTS}/{made.id}").status == 404
    assert raw.get(ENDPOINTS).body["data"] == []


@pytest.mark.parametrize(
    "params",
    [
        {"url": "example.com", "enabled_events[]": "*"},
        {"url": "https://example.com", "enabled_events[]": "customer.invented"},
        {"url": "https://example.com"},
        {"url": "https://example.com", "enabled_events[]": "*", "api_version": "2020-08-27"},
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(raw, params):
    """400."""
    assert raw.post(ENDPOINTS, params).status == 400


@pytest.mark.parametrize(
    "url", ["https://example.com/hook", "http://192.0.2.1/hook", "https://127.0.0.1/hook", "http://localhost.example.com/"]
)
def test_nobody_else_is_ever_posted_to(raw, billing, simulator, url):
    """Recorded as undeliverable at once, without a single attempt."""
    raw.post(ENDPOINTS, {"url": url, "enabled_events[]": "*"})
    billing.customer()
    assert simulator.flush_webhooks()["undeliverable"] == 1
    [delivery] = simulator.webhook_deliveries()
    assert (delivery["type"], delivery["status"], delivery["attempts"]) == ("customer.created", "undeliverable", [])


def test_an_endpoint_that_moves_away_is_not_followed(raw, billing, simulator, receiver):
    """Not even by what was pending."""
    simulator.webhook_settings(shuffle_seconds=60)
    endpoint, _ = simulator.add_webhook(receiver.url)
    billing.customer()
    raw.post(f"{ENDPOINTS}/{endpoint}", {"url": "http://192.0.2.1/hook"})
    assert simulator.flush_webhooks()["undeliverable"] == 1
    assert simulator.webhook_deliveries()[0]["attempts"] == receiver.received == []


def test_only_enabled_endpoints_get_only_what_they_want(raw, billing, simulator, receiver):
    """A disabled or deleted one gets nothing."""
    wanted = raw.post(ENDPOINTS, {"url": receiver.url, "enabled_events[]": "price.created"}).body["id"]
    billing.price()
    raw.post(f"{ENDPOINTS}/{wanted}", {"disabled": "true"})
    billing.price()
    raw.post(f"{ENDPOINTS}/{wanted}", {"disabled": "false"})
    billing.price()
    raw.delete(f"{ENDPOINTS}/{wanted}")
    billing.price()
    simulator.flush_webhooks()
    assert receiver.types() == ["price.created"] * 2


def test_what_is_not_taken_is_posted_again(raw, billing, simulator, receiver):
    """Until it is answered 2xx, or has been tried often enough; the list of events tells which were never taken."""
    simulator.webhook_settings(attempts=3, retry_seconds=0.01)
    receiver.answers = [500, 302, 200, 500, 500, 500]
    simulator.add_webhook(receiver.url)
    first, second = billing.customer(), None
    assert simulator.flush_webhooks()["delivered"] == 1
    second = billing.customer()
    assert simulator.flush_webhooks()["failed"] == 1
    assert [[one["status"] for one in delivery["attempts"]] for delivery in simulator.webhook_deliveries()] == [[500, 302, 200], [500] * 3]

    def subjects(success: str) -> list[str]:
        return [event["data"]["object"]["id"] for event in raw.get("/v1/events", {"delivery_success": success}).body["data"]]

    assert (subjects("true"), subjects("false")) == ([first], [second])


def test_an_endpoint_that_is_gone_does_not_hold_up_the_others(billing, simulator, receiver):
    """No answer is no success, and a matter between the two of them."""
    simulator.webhook_settings(attempts=2, retry_seconds=0.01, timeout_seconds=0.5)
    with receiving() as gone:
        pass
    simulator.add_webhook(gone.url)
    simulator.add_webhook(receiver.url)
    billing.customer()
    assert simulator.flush_webhooks() == {"pending": 0, "delivered": 1, "failed": 1, "dropped": 0, "undeliverable": 0}
    assert [one["status"] for one in simulator.webhook_deliveries()[0]["attempts"]] == [None, None]


def test_deliveries_can_be_doubled_dropped_and_shuffled(billing, simulator, receiver):
    """By a seed: the same for the same history."""

    def history(seed: int) -> tuple[list[str], dict[str, int]]:
        simulator.reset()
        receiver.received.clear()
        simulator.webhook_settings(copies=2, drop_share=0.3, shuffle_seconds=30, seed=seed)
        simulator.add_webhook(receiver.url)
        for _ in range(12):
            billing.customer()
        counts = simulator.flush_webhooks()
        return [event["id"] for event in receiver.events()], counts

    order, counts = history(1)
    delivered = set(order)
    assert counts["dropped"] == 12 - len(delivered) > 0
    assert len(order) == 2 * len(delivered)
    told_order = [delivery["event"] for delivery in simulator.webhook_deliveries() if delivery["event"] in delivered]
    assert list(dict.fromkeys(order)) != told_order
    assert history(1) == (order, counts)
    assert history(2) != (order, counts)


def test_a_held_delivery_goes_out_by_itself(billing, simulator, receiver):
    """When it has been held for so long."""
    simulator.webhook_settings(shuffle_seconds=0.05)
    simulator.add_webhook(receiver.url)
    billing.customer()
    until = time.monotonic() + 5
    while not receiver.received and time.monotonic() < until:
        time.sleep(0.02)
    assert receiver.types() == ["customer.created"]


def test_time_alone_is_told_too(billing, simulator, receiver, pass_time):
    """A renewal reaches the endpoint when the clock has passed it, and nobody has asked for anything."""
    billing.subscription(billing.customer(), billing.price())
    simulator.add_webhook(receiver.url, ["customer.subscription.updated", "invoice.paid"])
    pass_time(days=32)
    simulator.flush_webhooks()
    assert receiver.types() == ["customer.subscription.updated", "invoice.paid"]


def test_real_time_is_told_when_it_comes(raw, billing, simulator, receiver):
    """With the system's clock, an alarm rings at the instant itself."""
    simulator.reset(clock="real")
    simulator.add_webhook(receiver.url, ["customer.subscription.deleted"])
    billing.subscription(billing.customer(), billing.price(), cancel_at=int(time.time()) + 2)
    until = time.monotonic() + 10
    while not receiver.received and time.monotonic() < until:
        time.sleep(0.05)
    assert receiver.types() == ["customer.subscription.deleted"]


def test_a_secret_can_be_rolled(billing, simulator, receiver):
    """For a while the header carries a signature by each of both secrets."""
    endpoint, old = simulator.add_webhook(receiver.url)
    new = simulator.roll_webhook_secret(endpoint)
    billing.customer()
    simulator.flush_webhooks()
    assert receiver.received[0][1].count("v1=") == 2
    assert signed_with(receiver, old) == signed_with(receiver, new) == ["customer.created"]
    newest = simulator.roll_webhook_secret(endpoint, keep_old=False)
    receiver.received.clear()
    billing.customer()
    simulator.flush_webhooks()
    assert signed_with(receiver, newest) == ["customer.created"]
    with pytest.raises(stripe.SignatureVerificationError):
        signed_with(receiver, new)


def test_signatures_carry_the_systems_time_or_the_simulators(billing, simulator, receiver, now):
    """The system's at first: the receiver's tolerance is about its own clock."""
    simulator.add_webhook(receiver.url)
    billing.customer()
    simulator.flush_webhooks()
    simulator.webhook_settings(signature_clock="simulator")
    billing.customer()
    simulator.flush_webhooks()
    of_system, of_simulator = (int(signature.partition(",")[0].removeprefix("t=")) for _, signature in receiver.received)
    assert abs(of_system - time.time()) < 60
    assert of_simulator == int(now.timestamp())


def test_thin_events_are_delivered_thin(billing, simulator, receiver, client, meter, customer, now, pass_time):
    """To endpoints that name them, each once, when it is sent; the SDK parses it, and its body has to be fetched."""
    _, secret = simulator.add_webhook(receiver.url, ["v1.billing.meter.error_report_triggered"])
    with receiving() as other:
        simulator.add_webhook(other.url, ["*"])
        billing.send(customer, "many", now, "i")
        pass_time(seconds=5)
        assert simulator.flush_webhooks()["delivered"] == 0
        pass_time(seconds=5)
        pass_time(days=1)
        assert simulator.flush_webhooks()["delivered"] == 1
        assert other.received == []
    [(body, signature)] = receiver.received
    notification = client.parse_event_notification(body, signature, secret)
    assert (notification.type, notification.related_object.id) == ("v1.billing.meter.error_report_triggered", meter)
    assert "data" not in json.loads(body)
    assert notification.fetch_event().data.reason.error_count == 1


def test_what_is_pending_survives_a_kill(tmp_path, now, raw, billing):
    """kill -9 between an event and its delivery: the next process delivers it, and what was delivered only once."""
    with receiving() as receiver:
        first = StripeSimulator.start(state_dir=tmp_path, clock=now)
        first.webhook_settings(shuffle_seconds=60)
        first.add_webhook(receiver.url)
        type(billing)(type(raw)(first.base_url, first.api_key)).customer()
        first.kill()
        assert receiver.received == []
        with StripeSimulator.start(state_dir=tmp_path, clock=now) as second:
            assert second.flush_webhooks()["delivered"] == 1
            second.kill()
        with StripeSimulator.start(state_dir=tmp_path, clock=now) as third:
            third.set_clock(now + timedelta(days=1))
            assert third.flush_webhooks()["delivered"] == 1
        assert receiver.types() == ["customer.created"]


@pytest.mark.parametrize(
    "change", [{"copies": 1.5}, {"copies": -1}, {"drop_share": "all"}, {"signature_clock": "mine"}, {"delay": 1}, {"seed": True}]
)
def test_settings_that_make_no_sense_are_refused(simulator, change):
    """With the list of those that do."""
    with pytest.raises(SimulatorFailed, match="settings are copies"):
        simulator.webhook_settings(**change)
