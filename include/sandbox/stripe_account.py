"""The sandbox's Stripe account: the two metered prices of the product's catalogue, and a customer with a subscription per tenant."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
import stripe
from aiolimiter import AsyncLimiter

#: The catalogue's prices; unit amounts in cents, as decimal strings where a cent is too coarse.
BUNDLED_BASE = {"unit_amount": 50_00}
BUNDLED_USAGE = {
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "tiers": [{"up_to": 5_000_000, "unit_amount": 0}, {"up_to": "inf", "unit_amount_decimal": "0.0005"}],
}
PURE_USAGE = {"unit_amount_decimal": "0.002"}

#: Every so-manieth tenant, by id, has the Pure plan; the others have Bundled.
PURE_EVERY = 4


@dataclass(frozen=True)
class Plan:
    """What a subscription to a plan consists of: a flat monthly price, where it has one, and the metered one."""

    metered_price: str
    base_price: str | None = None


def link_tenants(connection: psycopg.Connection, names: Mapping[str, str], stripe_base: str, secret_key: str) -> int:
    """Gives each tenant (id → name) that is unknown, or has no customer yet, a Stripe customer and a subscription, and links them
    in `tenants`. Returns how many were linked. Doing it again links nobody twice."""
    with connection.transaction():
        connection.cursor().executemany("INSERT INTO tenants (id, name) VALUES (%s, %s) ON CONFLICT DO NOTHING", list(names.items()))
        rows = connection.execute("SELECT id, name FROM tenants WHERE stripe_customer_id IS NULL ORDER BY id").fetchall()
    unlinked = [(tenant, name) for tenant, name in rows if tenant in names]
    links = asyncio.run(_subscribe(unlinked, stripe_base, secret_key)) if unlinked else []
    with connection.transaction():
        connection.cursor().executemany(
            "UPDATE tenants SET stripe_customer_id = %s, stripe_subscription_id = %s, stripe_usage_item_id = %s WHERE id = %s", links
        )
    return len(links)


async def _subscribe(tenants: list[tuple[str, str]], stripe_base: str, secret_key: str) -> list[tuple[str, str, str, str]]:
    transport = stripe.AIOHTTPClient()
    client = stripe.StripeClient(
        secret_key,
        base_addresses={"api": stripe_base, "meter_events": stripe_base},
        http_client=transport,
        max_network_retries=2,
    )
    try:
        bundled = await _plan(client, "bundled", BUNDLED_BASE, BUNDLED_USAGE)
        pure = await _plan(client, "pure", None, PURE_USAGE)
        turns = AsyncLimiter(64, 0.05)

        async def subscribe(number: int, tenant_id: str, name: str) -> tuple[str, str, str, str]:
            plan = pure if number % PURE_EVERY == PURE_EVERY - 1 else bundled
            async with turns:
                customer = await client.v1.customers.create_async({"name": name[:256], "metadata": {"tenant_id": tenant_id}})
                prices = [price for price in (plan.base_price, plan.metered_price) if price]
                subscription = await client.v1.subscriptions.create_async(
                    {"customer": customer.id, "items": [{"price": price} for price in prices], "metadata": {"tenant_id": tenant_id}}
                )
            item = next(item for item in subscription["items"]["data"] if item["price"]["id"] == plan.metered_price)
            return customer.id, subscription.id, item["id"], tenant_id

        return await asyncio.gather(*(subscribe(number, *tenant) for number, tenant in enumerate(tenants)))
    finally:
        await transport.close_async()  # type: ignore[no-untyped-call]


async def _plan(client: stripe.StripeClient, name: str, base: dict[str, Any] | None, metered: dict[str, Any]) -> Plan:
    """The plan's prices, found by their lookup keys, else created with a product and a meter of their own: with one meter per
    metered price the plans never read each other's tokens."""
    keys = {"base": f"sandbox_{name}_base", "metered": f"sandbox_{name}_metered"}
    found = {price.lookup_key: price.id for price in (await client.v1.prices.list_async({"lookup_keys": list(keys.values())})).data}
    if keys["metered"] in found:
        return Plan(found[keys["metered"]], found.get(keys["base"]))
    label = f"Managed AI Tokens ({name.capitalize()})"
    product = await client.v1.products.create_async({"name": label})
    meter = await client.v1.billing.meters.create_async(
        {
            "display_name": label,
            "event_name": f"managed_ai_tokens_{name}",
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
    )

    async def price(terms: dict[str, Any], lookup_key: str, **recurring: str) -> str:
        created = await client.v1.prices.create_async(
            {
                **terms,  # type: ignore[typeddict-item]
                "product": product.id,
                "currency": "usd",
                "recurring": {"interval": "month", **recurring},
                "lookup_key": lookup_key,
            }
        )
        return created.id

    base_price = await price(base, keys["base"]) if base else None
    return Plan(await price(metered, keys["metered"], usage_type="metered", meter=meter.id), base_price)
