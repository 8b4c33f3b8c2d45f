"""The webhook endpoint that set_up_stripe makes at Stripe, and its signing secret."""

import logging
from typing import Any

import pytest
import stripe

from token_billing.catalog import WEBHOOK_EVENTS
from token_billing.catalog_plan import Plan, Wanted
from token_billing.errors import CatalogueRefused, WebhookSecretUnknown
from token_billing.stages.set_up_stripe import apply_set_up, plan_set_up
from world import World

URL = "https://airflow.example.com/api/billing/webhook"


class Kept(list[str]):
    """The secrets that were kept."""

    def keep(self, secret: str) -> None:
        self.append(secret)


def wanted(*, secret_is_known: bool = False) -> Wanted:
    return Wanted(webhook_url=URL, secret_is_known=secret_is_known)


def apply(world: World, kept: Kept, *, secret_is_known: bool = False) -> Plan:
    return apply_set_up(world.connect, world.target, wanted(secret_is_known=secret_is_known), world.clock, kept.keep).plan


def webhook_endpoints(world: World) -> Any:
    client = stripe.StripeClient(world.simulator.api_key, base_addresses={"api": world.simulator.base_url})
    return client.v1.webhook_endpoints


def test_a_plan_makes_no_endpoint(world: World) -> None:
    made = plan_set_up(world.connect, world.target, wanted(), world.clock)
    assert f"+ webhook endpoint {URL}: {len(WEBHOOK_EVENTS)} types of events" in str(made)
    assert webhook_endpoints(world).list().data == []


def test_the_endpoint_is_made_once_with_its_events_and_its_secret_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Sent objects of the version that this code reads; the secret is told to nobody else."""
    kept = Kept()
    with caplog.at_level(logging.DEBUG):
        apply(world, kept)
    [endpoint] = webhook_endpoints(world).list().data
    assert (endpoint.url, endpoint.api_version, set(endpoint.enabled_events)) == (URL, stripe.api_version, set(WEBHOOK_EVENTS))
    [secret] = kept
    assert secret.startswith("whsec_") and not any(secret in record.getMessage() for record in caplog.records)
    assert apply(world, kept, secret_is_known=True).changes == []
    assert len(webhook_endpoints(world).list().data) == len(kept) == 1


def test_missing_events_are_added_and_the_others_stay(world: World) -> None:
    """To an endpoint made by hand; a disabled one is enabled."""
    made = webhook_endpoints(world).create({"url": URL, "enabled_events": ["invoice.created", "customer.updated"]})
    webhook_endpoints(world).update(made.id, {"disabled": True})
    told = str(apply(world, Kept(), secret_is_known=True))
    [endpoint] = webhook_endpoints(world).list().data
    assert set(endpoint.enabled_events) == {"customer.updated", *WEBHOOK_EVENTS} and endpoint.status == "enabled"
    assert f"* webhook endpoint {URL}, {made.id}: more events (checkout.session.completed, " in told and told.count("enabled again") == 1
    assert apply(world, Kept(), secret_is_known=True).changes == []


def test_an_endpoint_whose_secret_nobody_kept_is_for_a_person(world: World) -> None:
    """Stripe shows it once: of an apply that was killed right then, and of one made by hand, only Stripe knows it. All else is done."""
    made = webhook_endpoints(world).create({"url": URL, "enabled_events": ["*"]})
    with pytest.raises(WebhookSecretUnknown, match=rf"{made.id} exists, but its signing secret .* connection `stripe_default`"):
        apply(world, Kept())
    assert plan_set_up(world.connect, world.target, wanted(secret_is_known=True), world.clock).changes == []
    assert world.sql("SELECT count(*) FROM billing.catalogue_price WHERE is_newest") == [(6,)]


def test_an_endpoint_that_was_deleted_is_made_again(world: World) -> None:
    """Also within the day in which Stripe would repeat its first answer, and with it the secret of what is gone."""
    kept = Kept()
    apply(world, kept)
    [first] = webhook_endpoints(world).list().data
    webhook_endpoints(world).delete(first.id)
    apply(world, kept)
    [second] = webhook_endpoints(world).list().data
    assert second.id != first.id and len(set(kept)) == 2


def test_without_a_url_endpoints_are_left_alone(world: World) -> None:
    webhook_endpoints(world).create({"url": URL, "enabled_events": ["invoice.created"]})
    made = apply_set_up(world.connect, world.target, Wanted(), world.clock, Kept().keep).plan
    assert made.endpoint is None and "webhook endpoints are left alone" in str(made)
    assert webhook_endpoints(world).list().data[0].enabled_events == ["invoice.created"]


def test_a_url_that_is_none_is_refused_before_anything_is_made(world: World) -> None:
    with pytest.raises(CatalogueRefused, match="webhook_url is 'airflow'"):
        apply_set_up(world.connect, world.target, Wanted(webhook_url="airflow"), world.clock, Kept().keep)
