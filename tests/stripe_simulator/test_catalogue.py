"""Customers, products, prices and meters behave as Stripe's do."""

from __future__ import annotations

import pytest

TIERED = {
    "currency": "usd",
    "product_data[name]": "Bundled",
    "recurring[interval]": "month",
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "tiers[0][up_to]": 5_000_000,
    "tiers[0][unit_amount]": 0,
    "tiers[1][up_to]": "inf",
    "tiers[1][unit_amount_decimal]": "0.0005",
}


def test_a_customer_keeps_what_it_was_given(client):
    """Created, changed, unset and read back through the SDK."""
    customer = client.v1.customers.create(
        {
            "name": "Ada",
            "email": "ada@example.com",
            "address": {"city": "London", "country": "GB"},
            "metadata": {"tenant": "t1", "plan": "solo"},
            "shipping": {"name": "Ada", "address": {"line1": "1"}},
            "tax_exempt": "exempt",
        }
    )
    changed = client.v1.customers.update(
        customer.id, {"name": "", "metadata": {"plan": "", "seats": "3"}, "address": "", "tax_exempt": "", "description": "first"}
    )
    assert (changed.name, changed.address, changed.tax_exempt) == (None, None, "none")
    read = client.v1.customers.retrieve(customer.id)
    assert (read.email, read.description, read.shipping.address.line1) == ("ada@example.com", "first", "1")
    assert read.metadata.to_dict() == {"tenant": "t1", "seats": "3"}


def test_metadata_can_be_unset_altogether(raw, billing):
    """`metadata=` removes every key."""
    customer = billing.customer(**{"metadata[a]": "1"})
    assert raw.post(f"/v1/customers/{customer}", {"metadata": ""}).body["metadata"] == {}


def test_a_deleted_customer_is_still_answered_for(raw, billing):
    """As deleted; it is in no list, cannot be changed, and its subscriptions are canceled."""
    customer = billing.customer()
    subscription = billing.subscription(customer, billing.price())["id"]
    gone = {"id": customer, "object": "customer", "deleted": True}
    assert raw.delete(f"/v1/customers/{customer}").body == gone
    assert raw.get(f"/v1/customers/{customer}").body == gone
    assert raw.post(f"/v1/customers/{customer}", {"name": "x"}).status == 404
    assert raw.delete(f"/v1/customers/{customer}").status == 404
    assert raw.get("/v1/customers").body["data"] == []
    assert raw.get(f"/v1/subscriptions/{subscription}").body["status"] == "canceled"


def test_a_product_can_bring_its_default_price(client):
    """default_price_data makes both at once."""
    product = client.v1.products.create(
        {
            "name": "Solo",
            "default_price_data": {"currency": "usd", "unit_amount": 1900, "recurring": {"interval": "month"}},
            "expand": ["default_price"],
        }
    )
    assert (product.default_price.unit_amount, product.default_price.product) == (1900, product.id)
    assert client.v1.products.update(product.id, {"active": False, "name": "Old"}).active is False
    assert client.v1.products.list({"active": True}).data == []
    assert [one.name for one in client.v1.products.list({"ids": [product.id]}).data] == ["Old"]


def test_a_product_may_have_an_id_of_our_own(raw):
    """Which makes creation repeatable: the second one is refused."""
    assert raw.post("/v1/products", {"id": "atom-solo", "name": "Solo"}).body["id"] == "atom-solo"
    assert raw.post("/v1/products", {"id": "atom-solo", "name": "Solo"}).error["code"] == "resource_already_exists"


def test_a_product_with_prices_cannot_be_deleted(raw, billing):
    """One without can, and is gone."""
    with_price = raw.get(f"/v1/prices/{billing.price()}").body["product"]
    without = raw.post("/v1/products", {"name": "x"}).body["id"]
    assert raw.delete(f"/v1/products/{with_price}").status == 400
    assert raw.delete(f"/v1/products/{without}").body == {"id": without, "object": "product", "deleted": True}
    assert raw.get(f"/v1/products/{without}").status == 404


@pytest.mark.parametrize(
    "given, unit_amount, unit_amount_decimal",
    [
        ({"unit_amount": "1900"}, 1900, "1900"),
        ({"unit_amount_decimal": "0.0005"}, None, "0.0005"),
        ({"unit_amount_decimal": "0.002000"}, None, "0.002"),
        ({"unit_amount_decimal": "1900.00"}, 1900, "1900"),
        ({"unit_amount": "0"}, 0, "0"),
    ],
)
def test_an_amount_shows_as_whole_cents_and_as_decimal(raw, given, unit_amount, unit_amount_decimal):
    """unit_amount is null where there are no whole cents; the decimal is a plain string."""
    price = raw.post("/v1/prices", {"currency": "USD", "product_data[name]": "x", **given}).body
    assert (price["unit_amount"], price["unit_amount_decimal"]) == (unit_amount, unit_amount_decimal)
    assert (price["type"], price["currency"], price["recurring"]) == ("one_time", "usd", None)


def test_the_products_own_tiers_are_understood(client, billing):
    """$50 base is a price of its own; the usage is free up to 5,000,000 tokens, then $0.000005 each."""
    meter = billing.meter()
    price = client.v1.prices.create(
        {
            "currency": "usd",
            "product_data": {"name": "Managed AI Tokens (Bundled)"},
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter},
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "tiers": [{"up_to": 5_000_000, "unit_amount": 0}, {"up_to": "inf", "unit_amount_decimal": "0.0005"}],
            "lookup_key": "bundled",
            "expand": ["tiers"],
        }
    )
    assert [(tier.up_to, str(tier.unit_amount_decimal)) for tier in price.tiers] == [(5_000_000, "0"), (None, "0.0005")]
    assert (price.unit_amount, price.billing_scheme, price.recurring.meter) == (None, "tiered", meter)
    assert [one.id for one in client.v1.prices.list({"lookup_keys": ["bundled", "other"]}).data] == [price.id]
    assert [one.id for one in client.v1.prices.list({"recurring": {"meter": meter}}).data] == [price.id]


def test_flat_and_volume_tiers_are_accepted(raw):
    """A tier may have a flat amount, alone or beside a unit amount."""
    volume = {"tiers_mode": "volume", "tiers[0][flat_amount]": "500", "tiers[1][flat_amount_decimal]": "10.5"}
    price = raw.post("/v1/prices", {**TIERED, **volume, "expand[]": "tiers"}).body
    assert price["tiers_mode"] == "volume"
    assert [(tier["flat_amount"], tier["flat_amount_decimal"]) for tier in price["tiers"]] == [(500, "500"), (None, "10.5")]


@pytest.mark.parametrize(
    "changes",
    [
        {"tiers[1][up_to]": "9000000"},
        {"tiers[0][up_to]": "inf"},
        {"tiers[1][up_to]": "5000000", "tiers[2][up_to]": "inf", "tiers[2][unit_amount]": "1"},
        {"tiers[0][unit_amount_decimal]": "1"},
        {"unit_amount": "1"},
        {"billing_scheme": "per_unit"},
        {"tiers_mode": None},
        {"tiers[0][unit_amount]": None},
        {"tiers[1][unit_amount_decimal]": "-1"},
        {"product": "prod_x"},
        {"product": "prod_x", "product_data[name]": None},
        {"recurring[usage_type]": "metered"},
        {"recurring[usage_type]": "metered", "recurring[meter]": "mtr_x"},
        {"recurring[meter]": "mtr_x"},
    ],
)
def test_a_contradictory_price_is_refused(raw, changes):
    """Tiers that do not ascend or end, two amounts for one thing, a metered price without a meter, and so on; nothing is left behind."""
    params = {name: value for name, value in {**TIERED, **changes}.items() if value is not None}
    assert raw.post("/v1/prices", params).status == 400
    assert raw.get("/v1/prices").body["data"] == []
    assert raw.get("/v1/products").body["data"] == []


def test_a_metered_price_without_a_meter_is_told_why(raw):
    """The refusal that ended legacy usage records."""
    reply = raw.post("/v1/prices", {**TIERED, "recurring[usage_type]": "metered"})
    assert "metered prices must be backed by meters" in reply.error["message"]


def test_a_lookup_key_belongs_to_one_price(raw, billing):
    """A second price may take it over only when told to."""
    first = billing.price(lookup_key="solo")
    body = {"currency": "usd", "product_data[name]": "x", "unit_amount": 1, "lookup_key": "solo"}
    assert raw.post("/v1/prices", body).status == 400
    second = raw.post("/v1/prices", {**body, "transfer_lookup_key": "true"}).body["id"]
    assert raw.get(f"/v1/prices/{first}").body["lookup_key"] is None
    assert [one["id"] for one in raw.get("/v1/prices", {"lookup_keys[]": "solo"}).body["data"]] == [second]


def test_a_price_can_be_renamed_and_retired(raw, billing):
    """Its amounts cannot be changed: the parameter is not known."""
    price = billing.price()
    changed = raw.post(f"/v1/prices/{price}", {"nickname": "old", "active": "false", "metadata[a]": "1"}).body
    assert (changed["nickname"], changed["active"], changed["metadata"]) == ("old", False, {"a": "1"})
    assert raw.post(f"/v1/prices/{price}", {"unit_amount": 1}).error["code"] == "parameter_unknown"
    assert raw.get("/v1/prices", {"active": "true"}).body["data"] == []


def test_a_meter_has_defaults_and_a_life(client):
    """Payload keys by default, renamed, deactivated and reactivated; listed by status."""
    meters = client.v1.billing.meters
    meter = meters.create({"display_name": "Tokens", "event_name": "tokens", "default_aggregation": {"formula": "sum"}})
    assert meter.customer_mapping.event_payload_key == "stripe_customer_id"
    assert meter.value_settings.event_payload_key == "value"
    assert meters.update(meter.id, {"display_name": "All tokens"}).display_name == "All tokens"
    stopped = meters.deactivate(meter.id)
    assert (stopped.status, stopped.status_transitions.deactivated_at) == ("inactive", stopped.updated)
    assert meters.list({"status": "active"}).data == []
    assert meters.reactivate(meter.id).status_transitions.deactivated_at is None
    assert [one.id for one in meters.list({"status": "active"}).data] == [meter.id]
    assert meters.retrieve(meter.id).status == "active"


def test_two_active_meters_cannot_share_an_event_name(raw, billing):
    """Else an event would be counted by either."""
    first = billing.meter()
    body = {"display_name": "x", "event_name": "tokens", "default_aggregation[formula]": "sum"}
    assert raw.post("/v1/billing/meters", body).status == 400
    raw.post(f"/v1/billing/meters/{first}/deactivate")
    assert raw.post("/v1/billing/meters", body).status == 200
    assert raw.post(f"/v1/billing/meters/{first}/reactivate").status == 400
