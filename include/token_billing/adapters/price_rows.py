"""A price as `billing.price` keeps it, and back."""

from decimal import Decimal
from typing import Any

from psycopg.types.json import Jsonb

from token_billing.rating import Package, Price, PricingMode, Tier


def price_row(price: Price) -> dict[str, Any]:
    """As the queries name it."""
    return {
        "id": price.id,
        "currency": price.currency,
        "mode": price.mode,
        "tiers": Jsonb([[tier.up_to, f"{tier.unit_cents:f}", f"{tier.flat_cents:f}"] for tier in price.tiers]),
        "package_size": price.package and price.package.size,
        "package_rounds_up": price.package and price.package.rounds_up,
    }


def price_of_row(
    price_id: str, currency: str, mode: str, tiers: list[list[Any]], package_size: int | None, package_rounds_up: bool | None
) -> Price:
    """The same price again."""
    package = None if package_size is None else Package(package_size, bool(package_rounds_up))
    tier_table = tuple(Tier(up_to, Decimal(unit), Decimal(flat)) for up_to, unit, flat in tiers)
    return Price(price_id, currency, PricingMode(mode), tier_table, package)
