"""The sandbox's Stripe account: the product's catalogue, and a customer with a subscription per tenant."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import psycopg
import stripe
from aiolimiter import AsyncLimiter

from token_billing.adapters import catalogue, ledger
from token_billing.adapters.clock import system_clock
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.adapters.stripe_gateway.catalog import CatalogGateway
from token_billing.adapters.stripe_gateway.connection import open_gateway
from token_billing.catalog import BUNDLED, BUNDLED_BASE, PURE, WEBHOOK_EVENTS
from token_billing.catalog_plan import Wanted
from token_billing.stages.set_up_stripe import carry_out, look, price_ids

#: What a subscription consists of; the metered price comes last.
BUNDLED_PLAN = (BUNDLED_BASE, BUNDLED)
PURE_PLAN = (PURE,)

#: Every so-manieth tenant, by id, has the Pure plan; the others have Bundled.
PURE_EVERY = 4


def link_tenants(
    connection: psycopg.Connection,
    names: Mapping[str, str],
    stripe_base: str,
    secret_key: str,
    *,
    first_period_ends: datetime | None = None,
) -> int:
    """Gives each tenant (id → name) that is unknown, or has no customer yet, a Stripe customer and a subscription, and links them
    in `tenants`. `first_period_ends`: within a month from Stripe's present; without it, a month from there. Returns how many were
    linked. Doing it again links nobody twice."""
    with connection.transaction():
        connection.cursor().executemany("INSERT INTO tenants (id, name) VALUES (%s, %s) ON CONFLICT DO NOTHING", list(names.items()))
        rows = connection.execute("SELECT id, name FROM tenants WHERE stripe_customer_id IS NULL ORDER BY id").fetchall()
    unlinked = [(tenant, name) for tenant, name in rows if tenant in names]
    if not unlinked:
        return 0
    prices, links = asyncio.run(_subscribe(unlinked, stripe_base, secret_key, first_period_ends))
    with connection.transaction():
        if ledger.exists(connection):  # as set_up_stripe stores them
            catalogue.note_prices(connection, prices, {}, system_clock())
        connection.cursor().executemany(
            "UPDATE tenants SET stripe_customer_id = %s, stripe_subscription_id = %s, stripe_usage_item_id = %s WHERE id = %s", links
        )
    return len(links)


def renew_webhook(url: str, stripe_base: str, secret_key: str) -> str:
    """Has Stripe post its events to that address and to no other; returns the signing secret."""

    async def renewed() -> str:
        wanted: Any = {"url": url, "enabled_events": list(WEBHOOK_EVENTS)}
        async with _stripe(stripe_base, secret_key) as client:
            endpoints = client.v1.webhook_endpoints
            for endpoint in (await endpoints.list_async({"limit": 100})).data:
                await endpoints.delete_async(endpoint.id)
            return (await endpoints.create_async(wanted)).secret or ""

    return asyncio.run(renewed())


@asynccontextmanager
async def _stripe(stripe_base: str, secret_key: str) -> AsyncIterator[stripe.StripeClient]:
    """On aiohttp, which takes no proxy from the environment."""
    transport = stripe.AIOHTTPClient()
    try:
        bases: Any = {"api": stripe_base, "meter_events": stripe_base}
        yield stripe.StripeClient(secret_key, base_addresses=bases, http_client=transport, max_network_retries=2)
    finally:
        await transport.close_async()  # type: ignore[no-untyped-call]


async def _subscribe(
    tenants: list[tuple[str, str]], stripe_base: str, secret_key: str, first_period_ends: datetime | None
) -> tuple[dict[str, str], list[tuple[str, str, str, str]]]:
    """The catalogue's prices, and for each tenant customer, subscription, metered item and tenant."""
    async with open_gateway(CatalogGateway, StripeTarget(secret_key, stripe_base, sandbox=True)) as gateway:
        prices = price_ids(await carry_out(gateway, await look(gateway, Wanted())))
    anchor: Any = {} if first_period_ends is None else {"billing_cycle_anchor": int(first_period_ends.timestamp())}
    async with _stripe(stripe_base, secret_key) as client:
        turns = AsyncLimiter(64, 0.05)

        async def subscribe(number: int, tenant_id: str, name: str) -> tuple[str, str, str, str]:
            plan = PURE_PLAN if number % PURE_EVERY == PURE_EVERY - 1 else BUNDLED_PLAN
            async with turns:
                customer = await client.v1.customers.create_async({"name": name[:256], "metadata": {"tenant_id": tenant_id}})
                wanted: Any = {
                    "customer": customer.id,
                    "items": [{"price": prices[price.name]} for price in plan],
                    "metadata": {"tenant_id": tenant_id},
                    **anchor,
                }
                subscription = await client.v1.subscriptions.create_async(wanted)
            item = next(item for item in subscription["items"]["data"] if item["price"]["id"] == prices[plan[-1].name])
            return customer.id, subscription.id, item["id"], tenant_id

        return prices, await asyncio.gather(*(subscribe(number, *tenant) for number, tenant in enumerate(tenants)))
