"""The product's catalogue: what is sold, at which prices, and how Stripe is told. Pure.

A price at Stripe never changes its amount. So a price that is changed here becomes a new one, and the one before goes on for the
subscriptions that have it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from token_billing.rating import Price, PricingMode, Tier, decimals
from token_billing.stripe_events import SNAPSHOT_EVENTS

CURRENCY = "usd"

#: All prices are billed by the month.
INTERVAL = "month"

#: What the webhook endpoint is sent. Thin events (METER_ERROR_EVENTS) are not among the types that Stripe's API description has for
#: `enabled_events`: they come by an event destination, or are read from Stripe's list.
WEBHOOK_EVENTS = SNAPSHOT_EVENTS

#: Lookup keys belong to the whole account, so they say whose they are.
LOOKUP_KEY_PREFIX = "atom_saas_"


@dataclass(frozen=True)
class MeterDefinition:
    """What adds up the tokens that a metered price bills; its payload keys are Stripe's own defaults."""

    event_name: str
    label: str


@dataclass(frozen=True)
class PriceDefinition:
    """A monthly price: a flat one, or, with a meter, one for each token."""

    #: What the table of known prices and the lookup key call it.
    name: str
    label: str
    tiers: tuple[Tier, ...]
    meter: MeterDefinition | None = None
    #: Whether a setting may name another price in its place.
    has_setting: bool = True

    @property
    def lookup_key(self) -> str:
        """Under which the newest price of this name is found at Stripe."""
        return LOOKUP_KEY_PREFIX + self.name

    @property
    def setting(self) -> str | None:
        """The setting that may name another price."""
        return f"STRIPE_PRICE_ID_{self.name.upper()}" if self.has_setting else None

    @property
    def terms(self) -> Price:
        """What a unit costs."""
        mode = PricingMode.PER_UNIT if len(self.tiers) == 1 else PricingMode.GRADUATED
        return Price(self.name, CURRENCY, mode, self.tiers)


@dataclass(frozen=True)
class ProductDefinition:
    """What is sold. `id` names it at Stripe, where it is made by this product; one that was made by hand may have any."""

    id: str
    name: str
    prices: tuple[PriceDefinition, ...]

    @property
    def meter(self) -> MeterDefinition | None:
        """The meter of its usage, where it has any."""
        return next((price.meter for price in self.prices if price.meter), None)


Definition = ProductDefinition | MeterDefinition | PriceDefinition


def _dollars(amount: str) -> Decimal:
    """In cents, which may be fractions."""
    return Decimal(amount).scaleb(decimals(CURRENCY))


def _flat(amount: str) -> tuple[Tier, ...]:
    return (Tier(None, _dollars(amount)),)


# One meter for each metered price, so that plans never read each other's tokens.
_BUNDLED_METER = MeterDefinition("managed_ai_tokens_bundled", "Managed AI Tokens (Bundled)")
_PURE_METER = MeterDefinition("managed_ai_tokens_pure", "Managed AI Tokens (Pure)")

BUNDLED_BASE = PriceDefinition("managed_ai_bundled_base", "Managed AI Tokens (Bundled), base", _flat("50.00"), has_setting=False)
BUNDLED = PriceDefinition(
    "managed_ai_bundled",
    "Managed AI Tokens (Bundled), usage",
    (Tier(5_000_000), Tier(None, _dollars("0.000005"))),
    _BUNDLED_METER,
)
PURE = PriceDefinition("managed_ai_pure", "Managed AI Tokens (Pure), usage", _flat("0.00002"), _PURE_METER)

CATALOGUE = (
    ProductDefinition(
        "atom_saas",
        "Atom SaaS",
        (
            PriceDefinition("solo", "Solo", _flat("19.00")),
            PriceDefinition("team", "Team", _flat("79.00")),
            PriceDefinition("enterprise", "Enterprise", _flat("299.00")),
        ),
    ),
    # For Solo and Team.
    ProductDefinition("managed_ai_tokens_bundled", "Managed AI Tokens (Bundled)", (BUNDLED_BASE, BUNDLED)),
    # For Enterprise and custom subscriptions.
    ProductDefinition("managed_ai_tokens_pure", "Managed AI Tokens (Pure)", (PURE,)),
)

PRICES: Mapping[str, PriceDefinition] = {price.name: price for product in CATALOGUE for price in product.prices}

#: The prices that bill usage, by name.
METERED_NAMES = tuple(name for name, price in PRICES.items() if price.meter)


# --- As Stripe is told ------------------------------------------------------------------------------------------------


def product_parameters(product: ProductDefinition) -> dict[str, Any]:
    """What creates the product, under an id of our choice: there is never a second one."""
    return {"id": product.id, "name": product.name}


def meter_parameters(meter: MeterDefinition) -> dict[str, Any]:
    """What creates the meter; Stripe lets one active meter have its event name."""
    return {
        "display_name": meter.label,
        "event_name": meter.event_name,
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
        "value_settings": {"event_payload_key": "value"},
    }


def price_parameters(price: PriceDefinition, product_id: str, meter_id: str | None) -> dict[str, Any]:
    """What creates the price and lets it have its lookup key, whichever price had it before."""
    metering = {"usage_type": "metered", "meter": meter_id} if price.meter else {"usage_type": "licensed"}
    return {
        "product": product_id,
        "nickname": price.label,
        "currency": CURRENCY,
        "recurring": {"interval": INTERVAL, **metering},
        "lookup_key": price.lookup_key,
        "transfer_lookup_key": True,
        **_amounts(price),
    }


def endpoint_parameters(url: str, api_version: str) -> dict[str, Any]:
    """What creates the webhook endpoint."""
    return {"url": url, "enabled_events": list(WEBHOOK_EVENTS), "api_version": api_version}


def creation_key(parameters: Mapping[str, Any], replaces: str | None = None) -> str:
    """The idempotency key for making something: the same for the same definition, so that an answer that was lost is given again. What
    it takes the place of belongs to it, lest a price that returns to an earlier amount be answered with that earlier price."""
    # safeguard: nothing of the catalogue is made twice
    definition = json.dumps([parameters, replaces], sort_keys=True)
    return f"set-up-{hashlib.sha256(definition.encode()).hexdigest()[:40]}"


def _amounts(price: PriceDefinition) -> dict[str, Any]:
    """In cents, as fixed-point text: a Decimal of the SDK's might go out as 5E-7."""
    terms = price.terms
    if terms.mode == PricingMode.PER_UNIT:
        return {"unit_amount_decimal": _text(terms.tiers[0].unit_cents)}
    tiers = [
        {
            "up_to": "inf" if tier.up_to is None else tier.up_to,
            "unit_amount_decimal": _text(tier.unit_cents),
            **({"flat_amount_decimal": _text(tier.flat_cents)} if tier.flat_cents else {}),
        }
        for tier in terms.tiers
    ]
    return {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}


def _text(cents: Decimal) -> str:
    text = f"{cents:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
