"""Tenants on the legacy metered billing system: a price without a meter, and subscriptions to it that began in the past."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import stripe

from sandbox.stripe_simulator import LEGACY_API_VERSION

#: How long the first billing period lasts.
PERIOD = timedelta(days=300)


def legacy_price(client: stripe.StripeClient) -> str:
    """A metered price that no meter backs, with periods of a year, so that no test leaves one by accident."""
    price = client.raw_request(
        "post",
        "/v1/prices",
        currency="usd",
        product_data={"name": "Managed AI Tokens (legacy)"},
        recurring={"interval": "year", "usage_type": "metered"},
        unit_amount_decimal="0.002",
        stripe_version=LEGACY_API_VERSION,
    )
    return str(price.data["id"])


def subscribe(client: stripe.StripeClient, price: str, tenant: str, since: datetime) -> tuple[str, str, str]:
    """Customer, subscription and subscription item of a new subscription that began then; its first billing period is `PERIOD` long."""
    customer = client.v1.customers.create({"name": tenant})
    terms: Any = {
        "customer": customer.id,
        "items": [{"price": price}],
        "backdate_start_date": int(since.timestamp()),
        "billing_cycle_anchor": int((since + PERIOD).timestamp()),
    }
    subscription = client.v1.subscriptions.create(terms)
    return customer.id, subscription.id, subscription["items"]["data"][0]["id"]


def link_to_usage_records(db: Any, tenants: Iterable[str], stripe_base: str, secret_key: str, since: datetime) -> None:
    """Gives tenants a customer and a subscription to one legacy price."""
    client = stripe.StripeClient(secret_key, base_addresses={"api": stripe_base, "meter_events": stripe_base})
    price = legacy_price(client)
    for tenant in tenants:
        links = subscribe(client, price, tenant, since)
        db.execute(
            "INSERT INTO tenants (id, name, stripe_customer_id, stripe_subscription_id, stripe_usage_item_id) VALUES (%s, %s, %s, %s, %s)",
            (tenant, tenant, *links),
        )
