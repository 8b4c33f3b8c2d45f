"""Prices: /v1/prices — per unit or in tiers, once or recurring, licensed or metered.

Amounts are in the currency's minor unit (cents). `unit_amount` is whole cents, `unit_amount_decimal` a decimal of at most 12 places.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Any

from sandbox.stripe_simulator import LEGACY_API_VERSION, errors
from sandbox.stripe_simulator.endpoint import get, get_list, post
from sandbox.stripe_simulator.expansion import ABSENT, Expander
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import (
    BOUNDS,
    ArrayOf,
    Boolean,
    Currency,
    Either,
    FixedPoint,
    HashOf,
    Integer,
    Kind,
    OneOf,
    Params,
    Text,
    TextMap,
    is_within,
    merged_metadata,
)
from sandbox.stripe_simulator.resources import events
from sandbox.stripe_simulator.state import JsonObject, State

INTERVALS = ("day", "month", "week", "year")
TAX_BEHAVIORS = ("exclusive", "inclusive", "unspecified")

_TIER: Mapping[str, Kind] = {
    "flat_amount": Integer(minimum=0),
    "flat_amount_decimal": FixedPoint(),
    "unit_amount": Integer(minimum=0),
    "unit_amount_decimal": FixedPoint(),
    "up_to": Either(kinds=(OneOf(words=("inf",)), Integer(minimum=1)), required=True),
}
_CREATE: Mapping[str, Kind] = {
    "active": Boolean(),
    "billing_scheme": OneOf(words=("per_unit", "tiered")),
    "currency": Currency(required=True),
    "lookup_key": Text(max_length=200),
    "metadata": TextMap(),
    "nickname": Text(),
    "product": Text(),
    "product_data": HashOf(
        fields={
            "active": Boolean(),
            "id": Text(),
            "metadata": TextMap(),
            "name": Text(required=True),
            "statement_descriptor": Text(max_length=22),
            "unit_label": Text(max_length=12),
        }
    ),
    "recurring": HashOf(
        fields={
            "interval": OneOf(words=INTERVALS, required=True),
            "interval_count": Integer(minimum=1),
            "meter": Text(),
            "usage_type": OneOf(words=("licensed", "metered")),
        }
    ),
    "tax_behavior": OneOf(words=TAX_BEHAVIORS),
    "tiers": ArrayOf(element=HashOf(fields=_TIER)),
    "tiers_mode": OneOf(words=("graduated", "volume")),
    "transfer_lookup_key": Boolean(),
    "transform_quantity": HashOf(
        fields={"divide_by": Integer(minimum=1, required=True), "round": OneOf(words=("down", "up"), required=True)}
    ),
    "unit_amount": Integer(minimum=0),
    "unit_amount_decimal": FixedPoint(),
}
_UPDATE: Mapping[str, Kind] = {
    "active": Boolean(),
    "lookup_key": Text(max_length=200),
    "metadata": TextMap(unsettable=True),
    "nickname": Text(),
    "tax_behavior": OneOf(words=TAX_BEHAVIORS),
    "transfer_lookup_key": Boolean(),
}


def create(state: State, params: Params) -> JsonObject:
    recurring = _recurring(state, params.get("recurring"))
    amounts = _amounts(params)
    product_id = _product_id(state, params)
    price_id = state.new_id("price")
    _take_lookup_key(state, price_id, params)
    price = {
        "id": price_id,
        "object": "price",
        "active": params.get("active", True),
        "created": state.clock.now_seconds(),
        "currency": params["currency"],
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": params.get("lookup_key"),
        "metadata": merged_metadata({}, params.get("metadata", {})),
        "nickname": params.get("nickname"),
        "product": product_id,
        "recurring": recurring,
        "tax_behavior": params.get("tax_behavior", "unspecified"),
        "transform_quantity": params.get("transform_quantity"),
        "type": "one_time" if recurring is None else "recurring",
        **amounts,
    }
    state.put("prices", price)
    events.emit(state, "price.created", _render(price))
    return _render(price)


def update(state: State, params: Params, price_id: str) -> JsonObject:
    price = _existing(state, price_id)
    _take_lookup_key(state, price_id, params)
    changed = {name: value for name, value in params.items() if name not in ("expand", "metadata", "transfer_lookup_key")}
    if "metadata" in params:
        changed["metadata"] = merged_metadata(price["metadata"], params["metadata"])
    before, price = price, {**price, **changed}
    state.put("prices", price)
    events.emit_update(state, "price.updated", _render(before), _render(price))
    return _render(price)


def retrieve(state: State, params: Params, price_id: str) -> JsonObject:
    return _render(_existing(state, price_id))


def list_(state: State, params: Params) -> JsonObject:
    def matches(price: JsonObject) -> bool:
        recurring = price["recurring"] or {}
        return (
            all(price[name] == params[name] for name in ("active", "currency", "product", "type") if name in params)
            and all(recurring.get(name) == value for name, value in params.get("recurring", {}).items())
            and ("lookup_keys" not in params or price["lookup_key"] in params["lookup_keys"])
            and is_within(price["created"], params.get("created"))
        )

    return list_page(state.prices.newest_first(), params, url="/v1/prices", noun="price", matches=matches, render=_render)


def named(state: State, price_id: str, param: str) -> JsonObject:
    """The stored price that a parameter names. Raises 400 resource_missing."""
    price = state.prices.get(price_id)
    if price is None:
        raise errors.no_such("price", price_id, param=param)
    return price


def rendered(state: State, price_id: str) -> JsonObject:
    """A stored price as other objects show it."""
    price = state.prices.get(price_id)
    assert price is not None, f"{price_id} is referred to and prices are never deleted"
    return _render(price)


def is_metered(state: State, price_id: str) -> bool:
    """Whether a stored, recurring price bills usage."""
    price = state.prices.get(price_id)
    return price is not None and price["recurring"]["usage_type"] == "metered"


def one_off(state: State, currency: str, unit_amount: Decimal, name: str | None) -> JsonObject:
    """The `pricing` of an amount that was given by hand. Behind it stand a price and a product that nobody can use again, as Stripe makes
    them (shown by its recorded invoices; that they are inactive, and told of by no event, is unverified)."""
    from sandbox.stripe_simulator.resources import products  # a price may make its product, a product its price

    product = products.unlisted(state, name or "Invoice item")
    price: JsonObject = {
        "id": state.new_id("price"),
        "object": "price",
        "active": False,
        "created": state.clock.now_seconds(),
        "currency": currency,
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": None,
        "metadata": {},
        "nickname": None,
        "product": product["id"],
        "recurring": None,
        "tax_behavior": "unspecified",
        "transform_quantity": None,
        "type": "one_time",
        "billing_scheme": "per_unit",
        "tiers_mode": None,
        "unit_amount": int(unit_amount) if unit_amount == int(unit_amount) else None,
        "unit_amount_decimal": f"{unit_amount:f}",
    }
    state.put("prices", price)
    return pricing(price, f"{unit_amount:f}")


def edited(state: State, price_id: str, given: Mapping[str, Any]) -> JsonObject:
    """Other amounts under the same id, which Stripe never does: `unit_amount_decimal`, or `tiers` as for a new price."""
    price = _existing(state, price_id)
    given = {**given, "billing_scheme": price["billing_scheme"], "tiers_mode": price["tiers_mode"]}
    if "tiers" in given:
        given["tiers"] = [_with_decimals(tier) for tier in given["tiers"]]
    unset = [name for name, value in given.items() if value is None]
    price = {**price, **_amounts(_with_decimals({name: value for name, value in given.items() if name not in unset}))}
    state.put("prices", price)
    return dict(price)


def _with_decimals(given: Mapping[str, Any]) -> Params:
    return {name: Decimal(str(value)) if name.endswith("_decimal") else value for name, value in given.items()}


def pricing(price: JsonObject, unit_amount: str | None) -> JsonObject:
    """What a line or an item shows of its price."""
    return {
        "price_details": {"price": price["id"], "product": price["product"]},
        "type": "price_details",
        "unit_amount_decimal": unit_amount,
    }


def _render(price: JsonObject) -> JsonObject:
    """Without `tiers`, which Stripe shows only when they are asked for by `expand[]=tiers`."""
    return {name: value for name, value in price.items() if name != "tiers"}


def _existing(state: State, price_id: str) -> JsonObject:
    price = state.prices.get(price_id)
    if price is None:
        raise errors.no_such("price", price_id, in_path=True)
    return price


def _recurring(state: State, given: Mapping[str, Any] | None) -> JsonObject | None:
    if given is None:
        return None
    usage_type = given.get("usage_type", "licensed")
    meter_id = given.get("meter")
    if usage_type == "metered" and meter_id is None and state.api_version != LEGACY_API_VERSION:
        # Worded as production projects have quoted it; legacy metered prices ended with this API version.
        raise errors.refused(
            "Starting with Stripe version `2025-03-31.basil`, metered prices must be backed by meters.", "recurring[meter]"
        )
    if meter_id is not None:
        if usage_type != "metered":
            raise errors.refused("You may only specify `recurring[meter]` when `recurring[usage_type]=metered`.", "recurring[meter]")
        meter = state.meters.get(meter_id)
        if meter is None:
            raise errors.no_such("meter", meter_id, param="recurring[meter]")
        if meter["status"] != "active":
            raise errors.refused(f"The meter '{meter_id}' is inactive; a price needs an active one.", "recurring[meter]")
    return {
        "interval": given["interval"],
        "interval_count": given.get("interval_count", 1),
        "meter": meter_id,
        "usage_type": usage_type,
    }


def _amounts(params: Params) -> JsonObject:
    """The members that say how much: from `unit_amount(_decimal)`, or from `tiers`."""
    if params.get("billing_scheme", "per_unit") == "per_unit":
        for name in ("tiers", "tiers_mode"):
            if name in params:
                raise errors.invalid_parameter(f"You may only specify `{name}` when `billing_scheme=tiered`.", name)
        if "unit_amount" not in params and "unit_amount_decimal" not in params:
            raise errors.missing_parameter("unit_amount")
        unit = _both_forms(params, "unit_amount", "")
        return {"billing_scheme": "per_unit", "tiers_mode": None, **unit}
    for name in ("unit_amount", "unit_amount_decimal", "transform_quantity"):
        if name in params:
            raise errors.invalid_parameter(f"You may not specify `{name}` when `billing_scheme=tiered`.", name)
    for name in ("tiers", "tiers_mode"):
        if not params.get(name):
            raise errors.missing_parameter(name)
    return {
        "billing_scheme": "tiered",
        "tiers_mode": params["tiers_mode"],
        "tiers": [_tier(tier, f"tiers[{index}]") for index, tier in enumerate(_ascending(params["tiers"]))],
        "unit_amount": None,
        "unit_amount_decimal": None,
    }


def _ascending(tiers: list[Params]) -> list[Params]:
    """The tiers, if each ends above the one before and only the last has no end."""
    ends = [tier["up_to"] for tier in tiers]
    if ends[-1] != "inf" or "inf" in ends[:-1]:
        raise errors.invalid_parameter("The last tier must have `up_to` set to `inf`, and no other.", "tiers")
    if any(earlier >= later for earlier, later in pairwise(ends[:-1])):
        raise errors.invalid_parameter("The `up_to` of each tier must be greater than that of the tier before.", "tiers")
    return tiers


def _tier(given: Params, name: str) -> JsonObject:
    if given.keys() == {"up_to"}:
        raise errors.invalid_parameter("A tier must have at least one of `unit_amount` and `flat_amount`.", name)
    return {
        **_both_forms(given, "flat_amount", name),
        **_both_forms(given, "unit_amount", name),
        "up_to": None if given["up_to"] == "inf" else given["up_to"],
    }


def _both_forms(given: Params, name: str, outer: str) -> JsonObject:
    """An amount in cents as whole number and as decimal string, however it was given; the whole number is null where there is none."""
    decimal_name = f"{name}_decimal"
    if name in given and decimal_name in given:
        names = [f"{outer}[{one}]" if outer else one for one in (name, decimal_name)]
        raise errors.exclusive_parameters(*names)
    if name in given:
        return {name: given[name], decimal_name: str(given[name])}
    amount: Decimal | None = given.get(decimal_name)
    if amount is None:
        return {name: None, decimal_name: None}
    if amount < 0:
        raise errors.invalid_parameter("Amounts must not be negative.", f"{outer}[{decimal_name}]" if outer else decimal_name)
    plain = f"{amount:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return {name: int(amount) if amount == int(amount) else None, decimal_name: plain}


def _product_id(state: State, params: Params) -> str:
    from sandbox.stripe_simulator.resources import products  # a price may make its product, a product its price

    if "product" in params and "product_data" in params:
        raise errors.exclusive_parameters("product", "product_data")
    if "product_data" in params:
        return str(products.create(state, params["product_data"])["id"])
    if "product" not in params:
        raise errors.missing_parameter("product")
    product = state.products.get(params["product"])
    if product is None or "deleted" in product:
        raise errors.no_such("product", params["product"], param="product")
    return str(product["id"])


def _take_lookup_key(state: State, price_id: str, params: Params) -> None:
    """A lookup key belongs to one price; `transfer_lookup_key` takes it away from the other."""
    lookup_key = params.get("lookup_key")
    if lookup_key is None:
        return
    for holder in state.prices.newest_first():
        if holder["lookup_key"] == lookup_key and holder["id"] != price_id:
            if not params.get("transfer_lookup_key"):
                raise errors.refused(
                    f"A price (`{holder['id']}`) already uses that lookup key. Set `transfer_lookup_key` to take it over.", "lookup_key"
                )
            state.put("prices", {**holder, "lookup_key": None})
            return


def _product(state: State, price: JsonObject) -> JsonObject:
    product = state.products.get(price["product"])
    assert product is not None, f"{price['product']} has a price and is therefore never deleted"
    return dict(product)


def _tiers(state: State, price: JsonObject) -> Any:
    return named(state, price["id"], "id").get("tiers", ABSENT)


EXPANDERS: Mapping[str, Mapping[str, Expander]] = {"price": {"product": _product, "tiers": _tiers}}

ENDPOINTS = [
    post("/v1/prices", create, _CREATE),
    get_list(
        "/v1/prices",
        list_,
        active=Boolean(),
        created=BOUNDS,
        currency=Currency(),
        lookup_keys=ArrayOf(element=Text(), max_count=10),
        product=Text(),
        recurring=HashOf(fields={"interval": OneOf(words=INTERVALS), "meter": Text(), "usage_type": OneOf(words=("licensed", "metered"))}),
        type=OneOf(words=("one_time", "recurring")),
    ),
    get("/v1/prices/{price}", retrieve),
    post("/v1/prices/{price}", update, _UPDATE),
]
