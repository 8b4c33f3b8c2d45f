"""The catalogue, and how Stripe is told of it."""

from decimal import Decimal

import pytest

from token_billing import catalog
from token_billing.catalog import BUNDLED, CATALOGUE, PRICES, PURE, creation_key, price_parameters
from token_billing.errors import OperatorNeeded
from token_billing.rating import Tier, amount_cents
from token_billing.settings import price_overrides


def test_the_catalogue_sells_what_was_agreed() -> None:
    """In cents: 19, 79 and 299 dollars, a base of 50, and tokens."""
    flat = {name: amount_cents(price.terms, 1) for name, price in PRICES.items() if not price.meter}
    assert flat == {"solo": 1900, "team": 7900, "enterprise": 29900, "managed_ai_bundled_base": 5000}
    assert [product.name for product in CATALOGUE] == ["Atom SaaS", "Managed AI Tokens (Bundled)", "Managed AI Tokens (Pure)"]


@pytest.mark.parametrize(("tokens", "bundled_cents", "pure_cents"), [(5_000_000, 0, 100_00), (6_000_000, 5_00, 120_00), (0, 0, 0)])
def test_tokens_cost_what_was_agreed(tokens: int, bundled_cents: int, pure_cents: int) -> None:
    assert (amount_cents(BUNDLED.terms, tokens), amount_cents(PURE.terms, tokens)) == (bundled_cents, pure_cents)


def test_each_metered_price_has_a_meter_of_its_own() -> None:
    """So that plans never read each other's tokens."""
    meters = [price.meter for price in PRICES.values() if price.meter]
    assert len({meter.event_name for meter in meters}) == len(meters) == 2


def test_amounts_go_out_in_cents_as_fixed_point_text() -> None:
    assert price_parameters(PURE, "prod", "mtr")["unit_amount_decimal"] == "0.002"
    assert price_parameters(BUNDLED, "prod", "mtr")["tiers"] == [
        {"up_to": 5_000_000, "unit_amount_decimal": "0"},
        {"up_to": "inf", "unit_amount_decimal": "0.0005"},
    ]
    assert price_parameters(PRICES["solo"], "prod", None)["unit_amount_decimal"] == "1900"


def test_the_smallest_amount_has_no_exponent_and_a_flat_fee_is_told() -> None:
    """Decimal("0.0000005") as text is 5E-7."""
    tiny = catalog.PriceDefinition("tiny", "Tiny", (Tier(10, Decimal("0.0000005"), Decimal(30)), Tier(None)))
    assert price_parameters(tiny, "prod", None)["tiers"][0] == {
        "up_to": 10,
        "unit_amount_decimal": "0.0000005",
        "flat_amount_decimal": "30",
    }


def test_the_same_definition_has_the_same_key_and_any_other_another() -> None:
    """What a price takes the place of counts: back at an earlier amount, it is still a new price."""
    parameters = price_parameters(PURE, "prod", "mtr")
    assert creation_key(parameters) == creation_key(dict(reversed(parameters.items())))
    keys = [creation_key(parameters), creation_key(parameters, "price_1"), creation_key({**parameters, "unit_amount_decimal": "0.003"})]
    assert len(set(keys)) == 3 and all(len(key) <= 255 for key in keys)


def test_settings_name_five_prices() -> None:
    """An empty one names none."""
    assert [price.setting for price in PRICES.values() if price.setting] == [
        "STRIPE_PRICE_ID_SOLO",
        "STRIPE_PRICE_ID_TEAM",
        "STRIPE_PRICE_ID_ENTERPRISE",
        "STRIPE_PRICE_ID_MANAGED_AI_BUNDLED",
        "STRIPE_PRICE_ID_MANAGED_AI_PURE",
    ]
    assert price_overrides({"STRIPE_PRICE_ID_TEAM": " price_1 ", "STRIPE_PRICE_ID_SOLO": "", "STRIPE_PRICE_ID_": "x"}) == {
        "team": "price_1"
    }


def test_an_operator_is_needed_for_what_time_cannot_heal() -> None:
    from token_billing.errors import CatalogueRefused, WebhookSecretUnknown

    assert issubclass(CatalogueRefused, OperatorNeeded) and issubclass(WebhookSecretUnknown, OperatorNeeded)
