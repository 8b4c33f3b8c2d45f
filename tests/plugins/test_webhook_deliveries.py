"""The simulator's own deliveries, signed and sent as Stripe would, reach the inbox, whatever becomes of them on the way."""

import json

import pytest
from tests.plugins.webhook_server import WebhookServer, kept_events, webhook_server

from token_billing.stripe_events import METER_ERROR_EVENTS, SNAPSHOT_EVENTS
from world import World


def configure(monkeypatch: pytest.MonkeyPatch, world: World, *secrets: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", world.dsn.replace("postgresql://", "postgres://"))
    stripe = {"conn_type": "stripe", "password": world.simulator.api_key, "extra": {"webhook_secret": list(secrets)}}
    monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", json.dumps(stripe))
    monkeypatch.setattr("billing_airflow.webhook_secrets.AGAIN_SECONDS", 0.0)


def listen(world: World, server: WebhookServer) -> tuple[str, str]:
    """Makes Stripe's endpoint; its id and its signing secret."""
    return world.simulator.add_webhook(f"http://127.0.0.1:{server.port}/webhook", [*SNAPSHOT_EVENTS, *METER_ERROR_EVENTS])


def kept_types(world: World) -> list[str]:
    return sorted(event_type for _, event_type, _ in kept_events(world.dsn))


def test_a_tenants_subscription_is_told_once_however_often_it_is_delivered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every delivery is answered with 200."""
    with webhook_server() as server:
        _, secret = listen(world, server)
        configure(monkeypatch, world, secret)
        world.simulator.webhook_settings(copies=3)
        world.link("acme", "bolt")
        world.simulator.flush_webhooks()
        deliveries = world.simulator.webhook_deliveries()
    assert kept_types(world).count("customer.subscription.created") == 2
    assert deliveries and {attempt["status"] for one in deliveries for attempt in one["attempts"]} == {200}


def test_while_the_secret_is_rolled_no_event_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe signs with both, and either is known here; then only the new one is."""
    with webhook_server() as server:
        endpoint, old = listen(world, server)
        configure(monkeypatch, world, old)
        world.link("acme")
        new = world.simulator.roll_webhook_secret(endpoint)
        world.link("bolt")
        world.simulator.flush_webhooks()
        configure(monkeypatch, world, new)
        world.link("corp")
        world.simulator.flush_webhooks()
        deliveries = world.simulator.webhook_deliveries()
    assert kept_types(world).count("customer.subscription.created") == 3
    assert {attempt["status"] for one in deliveries for attempt in one["attempts"]} == {200}


def test_what_the_endpoint_could_not_keep_is_delivered_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as no secret is known nothing is lost: Stripe goes on trying."""
    with webhook_server() as server:
        _, secret = listen(world, server)
        configure(monkeypatch, world)
        world.simulator.webhook_settings(retry_seconds=0.5, attempts=6)
        world.link("acme")
        assert kept_types(world) == []
        configure(monkeypatch, world, secret)
        world.simulator.flush_webhooks()
    assert kept_types(world).count("customer.subscription.created") == 1
