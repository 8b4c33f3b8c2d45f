"""News of Stripe's: lost, repeated, out of order, not to be understood; what follows from it is the same."""

import asyncio
import os
import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shop import Shop
from token_billing.adapters import discrepancies, inbox
from token_billing.adapters.database import session
from token_billing.adapters.stripe_gateway.connection import open_gateway
from token_billing.adapters.stripe_gateway.events import EventGateway
from token_billing.reconciliation import Cause
from token_billing.stages.release import release
from token_billing.stages.sweep import sweep
from token_billing.stripe_events import event_of
from token_billing.windows import HOUR, Window

MINUTES = timedelta(minutes=1)

#: Random orders to try; `make news` tries more.
ORDERS = int(os.environ.get("NEWS_ORDERS", "15"))


def news(shop: Shop) -> list[dict[str, Any]]:
    """All wanted events that Stripe lists, the oldest first."""
    wanted = {"checkout.session.completed", "customer.deleted"}
    listed = shop.raw_get("/v1/events", limit=100)["data"]
    return [one for one in reversed(listed) if one["type"] in wanted or one["type"].startswith("customer.subscription.")]


def come(shop: Shop, payloads: list[dict[str, Any]], *, by: str = "webhook") -> None:
    with session(shop.world.connect) as db:
        for payload in payloads:
            inbox.store_all(db, [event_of(payload)], by, shop.world.clock())  # type: ignore[arg-type]


def outcome(shop: Shop) -> tuple[Any, ...]:
    return (
        shop.columns(),
        [shop.timeline(tenant) for tenant in ("acme", "other")],
        shop.open_discrepancies(),
        shop.world.sql("SELECT subscription_id, tenant_id, ended_at, customer_deleted_at FROM billing.subscription_link ORDER BY 1"),
    )


def forget(shop: Shop) -> None:
    """Everything that follows from news."""
    shop.world.sql(
        "TRUNCATE billing.stripe_event, billing.event_cursor, billing.subscription, billing.checkout, billing.subscription_link, "
        "billing.subscription_period, billing.discrepancy CASCADE"
    )
    shop.world.sql("UPDATE tenants SET stripe_customer_id = NULL, stripe_subscription_id = NULL, stripe_usage_item_id = NULL")


@dataclass(frozen=True)
class Story:
    shop: Shop
    news: list[dict[str, Any]] = field(repr=False)
    outcome: tuple[Any, ...] = field(repr=False)


@pytest.fixture
def story(shop: Shop) -> Story:
    """Two tenants buy; one changes plans twice, buys a second time, leaves, and comes back."""
    shop.add_tenants("acme", "other")
    first = shop.buy("bundled", client_reference_id="acme")
    for minutes, plan in ((10, "pure"), (20, "bundled")):
        shop.at(shop.world.window.start + minutes * MINUTES)
        shop.change_plan(first.id, plan)
    shop.at(shop.world.window.start + 25 * MINUTES)
    shop.buy("pure", client_reference_id="acme")
    shop.at(shop.world.window.start + 40 * MINUTES)
    shop.client.subscriptions.cancel(first.id, {"invoice_now": True})
    shop.at(shop.world.window.start + 50 * MINUTES)
    shop.buy("pure", client_reference_id="acme")
    shop.buy("bundled", metadata={"tenant_id": "other"})
    shop.at(shop.world.window.start + HOUR)
    shop.sync()
    return Story(shop, news(shop), outcome(shop))


@settings(max_examples=ORDERS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_any_order_repetition_and_loss_end_in_the_same(story: Story, seed: int) -> None:
    """Up to ten times each, a tenth lost, handled after every few; the sweep finds what was lost."""
    shop, chance = story.shop, random.Random(seed)
    forget(shop)
    arriving = [one for one in story.news for _ in range(chance.randint(1, 10)) if chance.random() > 0.1]
    chance.shuffle(arriving)
    while arriving:
        some = [arriving.pop() for _ in range(min(len(arriving), chance.randint(1, 30)))]
        come(shop, some)
        shop.handle()
    shop.sync()
    assert outcome(shop) == story.outcome


def test_an_event_that_cannot_be_applied_holds_no_other_up(shop: Shop) -> None:
    shop.add_tenants("acme")
    bought = shop.buy("bundled", client_reference_id="acme")
    [updated] = [one for one in news(shop) if one["type"] == "customer.subscription.created"]
    come(shop, [{**updated, "id": "evt_broken", "data": {"object": {"object": "subscription", "id": bought.id, "customer": 5}}}])
    shop.sync()
    assert shop.columns()["acme"][1] == bought.id
    assert [cause for cause, _ in shop.open_discrepancies()] == ["event_not_applied"]


def test_what_a_webhook_missed_is_found_by_the_sweep(shop: Shop) -> None:
    """However late Stripe lists it."""
    shop.add_tenants("acme")
    shop.world.simulator.settings(events_delay_seconds=240)
    shop.buy("bundled", client_reference_id="acme")
    shop.at(shop.world.clock() + 2 * MINUTES)
    shop.sync()
    assert shop.columns()["acme"][1] is None
    shop.at(shop.world.clock() + 3 * MINUTES)
    shop.sync()
    assert shop.columns()["acme"][1] is not None


def test_what_a_killed_sweep_left_unhandled_is_no_known_fact(shop: Shop) -> None:
    """Everything is listed and in the inbox, but nothing has followed from it yet."""
    shop.add_tenants("acme")
    bought = shop.buy("bundled", client_reference_id="acme")
    shop.sync()
    shop.at(shop.world.window.start + 20 * MINUTES)
    shop.change_plan(bought.id, "pure")
    shop.at(shop.world.window.end + 2 * MINUTES)

    async def swept() -> None:
        async with open_gateway(EventGateway, shop.world.target) as events:
            with session(shop.world.connect) as db:
                await sweep(db, events, shop.world.clock)

    asyncio.run(swept())
    assert next(end for _, _, end in shop.timeline("acme")) != shop.world.window.start + 20 * MINUTES
    assert shop.facts_are_known()
    assert next(end for _, _, end in shop.timeline("acme")) == shop.world.window.start + 20 * MINUTES


def bill_an_hour(shop: Shop, tokens: int) -> None:
    """A new customer's first hour."""
    shop.add_tenants("acme")
    shop.buy("pure", client_reference_id="acme")
    shop.world.window = Window(shop.world.clock() + HOUR)
    shop.world.use("acme", tokens)
    shop.at(shop.world.window.end + 2 * MINUTES)
    shop.sync()
    shop.world.bill()


def test_meter_errors_find_their_reports(shop: Shop) -> None:
    """With Stripe's own code and message; what was not counted is not billed, and kept aside."""
    bill_an_hour(shop, 1_000_000)
    [(identifier,)] = shop.world.sql("SELECT identifier FROM billing.usage_report")
    shop.world.simulator.disown([identifier], "meter_event_customer_not_found")
    shop.at(shop.world.clock() + 10 * MINUTES)
    shop.sync()
    assert shop.open_discrepancies() == [("meter_error", "acme")]
    [(details,)] = shop.world.sql("SELECT details FROM billing.discrepancy")
    assert details.startswith("meter_event_customer_not_found: Customer not found")
    assert shop.world.states() == {"acme": "quarantined"} and shop.world.marked() == {}
    shop.sync()
    [(report_id,)] = shop.world.sql("SELECT report_id FROM billing.revocation")
    release(shop.world.connect, [report_id], by="ann", reason="the customer is back", clock=shop.world.clock)
    shop.world.bill()
    shop.sync()
    assert shop.open_discrepancies() == [] and shop.world.marked() == {"acme": 1_000_000}


def test_an_error_about_a_reports_next_identifier_is_news(shop: Shop) -> None:
    """Nobody has settled the one about the identifier before; the report is taken back again."""
    bill_an_hour(shop, 5)
    [(report_id, identifier)] = shop.world.sql("SELECT id, identifier FROM billing.usage_report")
    with shop.world.connect() as db:
        for name in ("usage-before", identifier):
            discrepancies.note_about_report(db, Cause.METER_ERROR, report_id, name, f"not counted as {name}", shop.world.clock())
    shop.sync()
    assert shop.world.states() == {"acme": "quarantined"}


def test_a_clock_that_is_ahead_of_stripes_misses_nothing(shop: Shop) -> None:
    """What happens there from now on lies before our own time."""
    shop.add_tenants("acme")
    begun = shop.world.clock()
    shop.world.clock = lambda: begun + 15 * MINUTES
    shop.sync()
    shop.world.simulator.set_clock(begun + MINUTES)
    shop.buy("pure", client_reference_id="acme")
    shop.world.simulator.set_clock(begun + 4 * MINUTES)
    shop.world.clock = lambda: begun + 19 * MINUTES
    shop.sync()
    assert shop.columns()["acme"][1] is not None


def test_what_could_not_be_worked_out_is_tried_again(shop: Shop) -> None:
    """Also without further news."""
    shop.add_tenants("acme")
    shop.buy("pure", client_reference_id="acme")
    shop.world.sql("ALTER TABLE tenants ADD CONSTRAINT nobody_is_linked CHECK (stripe_subscription_id IS NULL)")
    shop.sync()
    assert shop.open_discrepancies() == [("event_not_applied", "acme")]
    shop.world.sql("ALTER TABLE tenants DROP CONSTRAINT nobody_is_linked")
    shop.sync()
    assert shop.columns()["acme"][1] is not None
    assert shop.open_discrepancies() == []
