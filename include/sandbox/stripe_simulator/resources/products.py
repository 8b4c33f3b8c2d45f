"""Products: /v1/products."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.endpoint import delete, get, get_list, post
from sandbox.stripe_simulator.expansion import Expander
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import (
    BOUNDS,
    ArrayOf,
    Boolean,
    Currency,
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
from sandbox.stripe_simulator.resources import events, prices
from sandbox.stripe_simulator.state import JsonObject, State

_SHARED: Mapping[str, Kind] = {
    "active": Boolean(),
    "shippable": Boolean(),
    "statement_descriptor": Text(max_length=22),
}
_CREATE: Mapping[str, Kind] = {
    **_SHARED,
    "default_price_data": HashOf(
        fields={
            "currency": Currency(required=True),
            "metadata": TextMap(),
            "recurring": HashOf(fields={"interval": OneOf(words=prices.INTERVALS, required=True), "interval_count": Integer(minimum=1)}),
            "tax_behavior": OneOf(words=prices.TAX_BEHAVIORS),
            "unit_amount": Integer(minimum=0),
            "unit_amount_decimal": FixedPoint(),
        }
    ),
    "description": Text(max_length=40_000),
    "id": Text(),
    "images": ArrayOf(element=Text(), max_count=8),
    "marketing_features": ArrayOf(element=HashOf(fields={"name": Text(required=True)}), max_count=15),
    "metadata": TextMap(),
    "name": Text(required=True),
    "unit_label": Text(max_length=12),
    "url": Text(),
}
_UPDATE: Mapping[str, Kind] = {
    **_SHARED,
    "default_price": Text(),
    "description": Text(max_length=40_000, unsettable=True),
    "images": ArrayOf(element=Text(), max_count=8, unsettable=True),
    "marketing_features": ArrayOf(element=HashOf(fields={"name": Text(required=True)}), max_count=15, unsettable=True),
    "metadata": TextMap(unsettable=True),
    "name": Text(),
    "unit_label": Text(max_length=12, unsettable=True),
    "url": Text(unsettable=True),
}


def create(state: State, params: Params) -> JsonObject:
    given = {name: value for name, value in params.items() if name not in ("expand", "metadata", "default_price_data")}
    product_id = given.pop("id", None) or state.new_id("product")
    if (taken := state.products.get(product_id)) is not None and "deleted" not in taken:
        raise errors.refused("Product already exists.", "id", "resource_already_exists")
    product = {**_blank(state, product_id), "metadata": merged_metadata({}, params.get("metadata", {})), **given}
    state.put("products", product)
    if (price_data := params.get("default_price_data")) is not None:
        price = prices.create(state, {**price_data, "product": product_id})
        product = {**product, "default_price": price["id"]}
        state.put("products", product)
    events.emit(state, "product.created", product)
    return dict(product)


def unlisted(state: State, name: str) -> JsonObject:
    """A product for one use, which nobody is told of."""
    product = {**_blank(state, state.new_id("product")), "active": False, "name": name}
    state.put("products", product)
    return product


def _blank(state: State, product_id: str) -> JsonObject:
    now = state.clock.now_seconds()
    return {
        "id": product_id,
        "object": "product",
        "active": True,
        "created": now,
        "default_price": None,
        "description": None,
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": {},
        "name": None,
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "unit_label": None,
        "updated": now,
        "url": None,
    }


def update(state: State, params: Params, product_id: str) -> JsonObject:
    product = _existing(state, product_id)
    changed = {name: value for name, value in params.items() if name not in ("expand", "metadata")}
    for array in ("images", "marketing_features"):
        if array in changed and changed[array] is None:
            changed[array] = []
    if (price_id := changed.get("default_price")) is not None:
        prices.named(state, price_id, "default_price")
    if "metadata" in params:
        changed["metadata"] = merged_metadata(product["metadata"], params["metadata"])
    before, product = product, {**product, **changed, "updated": state.clock.now_seconds()}
    state.put("products", product)
    events.emit_update(state, "product.updated", before, product)
    return dict(product)


def retrieve(state: State, params: Params, product_id: str) -> JsonObject:
    return dict(_existing(state, product_id))


def list_(state: State, params: Params) -> JsonObject:
    return list_page(
        state.products.newest_first(),
        params,
        url="/v1/products",
        noun="product",
        matches=lambda product: (
            "deleted" not in product
            and all(product[name] == params[name] for name in ("active", "shippable", "url") if name in params)
            and ("ids" not in params or product["id"] in params["ids"])
            and is_within(product["created"], params.get("created"))
        ),
    )


def delete_(state: State, params: Params, product_id: str) -> JsonObject:
    product = _existing(state, product_id)
    if any(price["product"] == product_id for price in state.prices.newest_first()):
        raise errors.refused("This product cannot be deleted because it has one or more user-created prices.")
    deleted = {"id": product_id, "object": "product", "deleted": True}
    state.put("products", deleted)
    events.emit(state, "product.deleted", product)
    return dict(deleted)


def _existing(state: State, product_id: str) -> JsonObject:
    product = state.products.get(product_id)
    if product is None or "deleted" in product:
        raise errors.no_such("product", product_id, in_path=True)
    return product


def _default_price(state: State, product: JsonObject) -> JsonObject | None:
    return None if product["default_price"] is None else prices.rendered(state, product["default_price"])


EXPANDERS: Mapping[str, Mapping[str, Expander]] = {"product": {"default_price": _default_price, "tax_code": lambda state, product: None}}

ENDPOINTS = [
    post("/v1/products", create, _CREATE),
    get_list(
        "/v1/products",
        list_,
        active=Boolean(),
        created=BOUNDS,
        ids=ArrayOf(element=Text()),
        shippable=Boolean(),
        url=Text(),
    ),
    get("/v1/products/{id}", retrieve),
    post("/v1/products/{id}", update, _UPDATE),
    delete("/v1/products/{id}", delete_),
]
