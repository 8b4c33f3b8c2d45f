"""The whole tour, through HTTP webhooks and DAGs only: set up, buy, use, bill, change plans in mid-hour, leave."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import stripe

from plugins.webhook_server import WebhookServer, webhook_server
from sandbox.airflow_runs import AirflowRuns
from world import World, now

#: What the fixture `airflow` runs, beside the others.
DAG_ID = "report_usage"

TEN = datetime.fromisoformat("2026-03-10T10:00:00+00:00")
HOUR, MINUTES = timedelta(hours=1), timedelta(minutes=1)


class Tour:
    """One tenant's way, and what people see of it."""

    def __init__(self, world: World, runs_of: Callable[[str], AirflowRuns], webhooks: WebhookServer) -> None:
        self.world, self._runs_of = world, runs_of
        self.client = stripe.StripeClient(world.simulator.api_key, base_addresses={"api": world.simulator.base_url}).v1
        self.url = f"http://127.0.0.1:{webhooks.port}/webhook"

    def at(self, instant: datetime) -> None:
        self.world.simulator.set_clock(instant)
        assert self.world.simulator.flush_webhooks()["failed"] == 0

    def run(self, dag_id: str, **params: object) -> None:
        done = self._runs_of(dag_id).dag.test(logical_date=now(), run_conf=params)
        assert str(done.state) == "success", [(one.task_id, one.state) for one in done.get_task_instances()]

    def bill(self, hour: datetime) -> None:
        """The hourly run, two minutes after the hour."""
        self.at(hour + HOUR + 2 * MINUTES)
        done = self._runs_of("report_usage").run(hour + HOUR)
        assert str(done.state) == "success", [(one.task_id, one.state) for one in done.get_task_instances()]


@pytest.fixture
def tour(world: World, airflow: AirflowRuns, runs_of: Callable[[str], AirflowRuns], monkeypatch: pytest.MonkeyPatch) -> Tour:  # type: ignore[misc]
    monkeypatch.setenv("BILLING_CLOCK_URL", f"{world.simulator.base_url}/simulator/clock")
    world.simulator.reset(clock=TEN)
    with webhook_server() as webhooks:
        yield Tour(world, runs_of, webhooks)


def test_from_set_up_to_the_last_invoice(tour: Tour) -> None:
    world, client = tour.world, tour.client
    tour.run("set_up_stripe", apply=True, webhook_url=tour.url)
    prices = dict(world.sql("SELECT name, price_id FROM billing.catalogue_price WHERE is_newest"))

    # Acme buys the Bundled plan; the webhook keeps the news, and the DAG links the tenant.
    world.sql("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')")
    items = [{"price": prices["managed_ai_bundled_base"], "quantity": 1}, {"price": prices["managed_ai_bundled"]}]
    session = client.checkout.sessions.create(
        {"mode": "subscription", "line_items": items, "client_reference_id": "acme", "success_url": "https://example.com/"}  # type: ignore[typeddict-item]
    )
    subscription = world.simulator.complete_checkout(session.id)["subscription"]
    tour.at(TEN + 2 * MINUTES)
    assert ("checkout.session.completed", "webhook") in world.sql("SELECT event_type, came_by FROM billing.stripe_event")
    tour.run("sync_subscriptions")
    [(linked, first_item)] = world.sql("SELECT stripe_subscription_id, stripe_usage_item_id FROM tenants")
    assert linked == subscription

    # It uses six million tokens in the first hour, which is billed.
    world.use("acme", 6_000_000, at=TEN + 30 * MINUTES)
    tour.bill(TEN)

    # At twenty past eleven it changes to the Pure plan: the hour has two sides.
    tour.at(TEN + HOUR + 20 * MINUTES)
    old = client.subscriptions.retrieve(subscription)["items"]["data"]
    changes = [*({"id": one.id, "deleted": True} for one in old), {"price": prices["managed_ai_pure"]}]
    client.subscriptions.update(subscription, {"items": changes})  # type: ignore[typeddict-item]
    for minutes, tokens in ((10, 1_000_000), (40, 500_000)):
        world.use("acme", tokens, at=TEN + HOUR + minutes * MINUTES)
    tour.bill(TEN + HOUR)

    # At ten past twelve it leaves; what it used until then is on its last invoice.
    tour.at(TEN + 2 * HOUR + 10 * MINUTES)
    world.use("acme", 250_000, at=TEN + 2 * HOUR + 5 * MINUTES)
    world.use("acme", 99, at=TEN + 2 * HOUR + 30 * MINUTES)
    client.subscriptions.cancel(subscription, {"invoice_now": True})
    tour.at(TEN + 2 * HOUR + 15 * MINUTES)
    tour.run("sync_subscriptions")
    tour.bill(TEN + 2 * HOUR)

    reports = world.sql("SELECT token_count, coalesce(quarantine_reason, state), event_name FROM billing.usage_report ORDER BY side_start")
    assert reports == [
        (6_000_000, "billed", "managed_ai_tokens_bundled"),
        (1_000_000, "billed", "managed_ai_tokens_bundled"),
        (500_000, "billed", "managed_ai_tokens_pure"),
        (250_000, "billed", "managed_ai_tokens_pure"),
        (99, "after_subscription", None),
    ]
    assert world.sql("SELECT stripe_usage_item_id FROM tenants") != [(first_item,)]
    tour.at(TEN + timedelta(days=1))
    last = client.invoices.list({"subscription": subscription, "limit": 1}).data[0]
    billed = {line.pricing.price_details.price: 0 for line in last.lines.data}  # type: ignore[union-attr]
    for line in last.lines.data:
        billed[line.pricing.price_details.price] += line.quantity or 0  # type: ignore[union-attr]
    assert last.status == "paid"
    assert (billed[prices["managed_ai_bundled"]], billed[prices["managed_ai_pure"]]) == (7_000_000, 750_000)
    assert world.sql("SELECT cause FROM billing.discrepancy WHERE resolved_at IS NULL") == []
    assert {came_by for (came_by,) in world.sql("SELECT came_by FROM billing.stripe_event")} == {"webhook"}
