"""Atom SaaS's customers at Stripe: they buy, change plans and leave, while usage goes on."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import stripe

from token_billing.adapters import catalogue, discrepancies
from token_billing.adapters.database import session
from token_billing.adapters.stripe_gateway.connection import open_gateway
from token_billing.adapters.stripe_gateway.events import EventGateway
from token_billing.catalog_plan import Wanted
from token_billing.stages.drain import Drained, Readers, drain
from token_billing.stages.set_up_stripe import apply_set_up
from token_billing.stages.sweep import sweep
from token_billing.stages.sync_subscriptions import facts_are_known, sync_subscriptions
from world import SETTINGS, World

#: Prices of a plan's items, by the catalogue's names.
PLANS = {"bundled": ("managed_ai_bundled_base", "managed_ai_bundled"), "pure": ("managed_ai_pure",), "solo": ("solo",)}
METERED = ("managed_ai_bundled", "managed_ai_pure")


@dataclass
class Shop:
    """What customers do at Stripe; set up with the product's own catalogue."""

    world: World
    prices: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.prices = apply_set_up(self.world.connect, self.world.target, Wanted({}), self.world.clock, str).price_ids

    @property
    def client(self) -> Any:
        return stripe.StripeClient(self.world.simulator.api_key, base_addresses={"api": self.world.simulator.base_url}).v1

    def raw_get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """Stripe's own JSON."""
        client = stripe.StripeClient(self.world.simulator.api_key, base_addresses={"api": self.world.simulator.base_url})
        found: dict[str, Any] = client.raw_request("get", path, **parameters).data
        return found

    def add_tenants(self, *tenants: str) -> None:
        for tenant in tenants:
            self.world.sql("INSERT INTO tenants (id, name) VALUES (%s, %s)", tenant, tenant)

    def buy(self, plan: str, **session: Any) -> Any:
        """A completed checkout; `session` says for whom."""
        items = [{"price": self.prices[name], **({} if name in METERED else {"quantity": 1})} for name in PLANS[plan]]
        opened = self.client.checkout.sessions.create(
            {"mode": "subscription", "line_items": items, "success_url": "https://example.com/done", **session}
        )
        return self.client.subscriptions.retrieve(self.world.simulator.complete_checkout(opened.id)["subscription"])

    def change_plan(self, subscription: str, plan: str) -> None:
        """The old items go, the new ones come."""
        old = self.client.subscriptions.retrieve(subscription)["items"]["data"]
        new = [{"price": self.prices[name]} for name in PLANS[plan]]
        self.client.subscriptions.update(subscription, {"items": [*({"id": one.id, "deleted": True} for one in old), *new]})

    def metered_item(self, subscription: str) -> str:
        items = self.client.subscriptions.retrieve(subscription)["items"]["data"]
        return str(next(one.id for one in items if one.price.recurring.usage_type == "metered"))

    def at(self, instant: datetime) -> None:
        self.world.set_time(instant)

    def sync(self) -> Drained:
        return sync_subscriptions(self.world.connect, self.world.target, self.world.clock, SETTINGS, {})

    def handle_listed(self) -> None:
        """What Stripe lists, but nothing that is done after its handling."""
        self.handle(listed=True)

    def handle(self, *, listed: bool = False) -> None:
        """What is in the inbox, without looking for more."""

        async def drained() -> None:
            async with open_gateway(EventGateway, self.world.target) as events:
                with session(self.world.connect) as db:
                    if listed:
                        await sweep(db, events, self.world.clock)
                    prices = catalogue.metered_price_ids(db, {})
                    await drain(db, Readers(events, SETTINGS), prices, self.world.clock, adopt=False)

        asyncio.run(drained())

    def facts_are_known(self) -> bool:
        return facts_are_known(self.world.connect, self.world.target, self.world.window, self.world.clock, SETTINGS, {})

    def columns(self) -> dict[str, tuple[str | None, str | None, str | None]]:
        rows = self.world.sql("SELECT id, stripe_customer_id, stripe_subscription_id, stripe_usage_item_id FROM tenants")
        return {tenant: tuple(rest) for tenant, *rest in rows}  # type: ignore[misc]

    def open_discrepancies(self) -> list[tuple[str, str | None]]:
        with self.world.connect() as db:
            return sorted((one.cause, one.tenant_id) for one in discrepancies.open_discrepancies(db))

    def timeline(self, tenant: str) -> list[tuple[str, datetime, datetime]]:
        """Item and bounds, in time order."""
        return self.world.sql(
            "SELECT usage_item_id, billed_from, billed_until FROM billing.subscription_period WHERE tenant_id = %s ORDER BY billed_from",
            tenant,
        )

    def reports(self) -> list[tuple[Any, ...]]:
        """Tenant, side, tokens, state or reason, and event name, in time order."""
        return self.world.sql(
            "SELECT tenant_id, side_start, side_end, token_count, coalesce(quarantine_reason, state), event_name "
            "FROM billing.usage_report ORDER BY tenant_id, side_start, revision"
        )
