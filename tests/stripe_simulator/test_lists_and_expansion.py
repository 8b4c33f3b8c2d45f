"""Lists are cut by limit and cursor, newest first; `expand` shows what is behind an id."""

from __future__ import annotations

import pytest


@pytest.fixture
def customers(billing) -> list[str]:
    """Twelve customers, the newest first."""
    return [billing.customer(name=str(number)) for number in range(12)][::-1]


def ids(reply) -> list[str]:
    return [one["id"] for one in reply.body["data"]]


def test_a_list_is_newest_first_and_ten_long(raw, customers):
    """The default limit is 10, and `has_more` says that there are others."""
    reply = raw.get("/v1/customers")
    assert ids(reply) == customers[:10]
    assert {name: reply.body[name] for name in ("object", "url", "has_more")} == {
        "object": "list",
        "url": "/v1/customers",
        "has_more": True,
    }


@pytest.mark.parametrize(
    "params, expected, has_more",
    [
        ({"limit": 12}, slice(0, 12), False),
        ({"limit": 5, "starting_after": 4}, slice(5, 10), True),
        ({"limit": 5, "starting_after": 9}, slice(10, 12), False),
        ({"limit": 5, "ending_before": 7}, slice(2, 7), True),
        ({"limit": 5, "ending_before": 3}, slice(0, 3), False),
        ({"starting_after": 11}, slice(12, 12), False),
        ({"ending_before": 0}, slice(0, 0), False),
    ],
)
def test_cursors_cut_where_they_say(raw, customers, params, expected, has_more):
    """starting_after continues behind an object, ending_before stops right before one."""
    cursors = {name: customers[value] if name != "limit" else value for name, value in params.items()}
    reply = raw.get("/v1/customers", cursors)
    assert (ids(reply), reply.body["has_more"]) == (customers[expected], has_more)


def test_the_sdk_pages_through_everything(client, customers):
    """Forwards and backwards, nothing twice."""
    forwards = [one.id for one in client.v1.customers.list({"limit": 5}).auto_paging_iter()]
    backwards = [one.id for one in client.v1.customers.list({"limit": 5, "ending_before": customers[-1]}).auto_paging_iter()]
    assert forwards == customers
    assert backwards == customers[-2::-1]


def test_a_cursor_may_have_been_deleted_since(raw, customers):
    """An object that no longer matches still marks the place."""
    raw.delete(f"/v1/customers/{customers[3]}")
    assert ids(raw.get("/v1/customers", {"limit": 2, "starting_after": customers[3]})) == customers[4:6]


@pytest.mark.parametrize(
    "params, param, code",
    [
        ({"limit": 0}, "limit", "parameter_invalid_integer"),
        ({"limit": 101}, "limit", "parameter_invalid_integer"),
        ({"starting_after": "cus_x"}, "starting_after", "resource_missing"),
        ({"ending_before": "cus_x"}, "ending_before", "resource_missing"),
        ({"starting_after": "a", "ending_before": "b"}, "starting_after", "parameters_exclusive"),
    ],
)
def test_a_bad_page_is_refused(raw, customers, params, param, code):
    """400: limits outside 1 to 100, cursors that name nothing, two cursors at once."""
    reply = raw.get("/v1/customers", params)
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, code)


def test_filters_apply_before_the_cut(raw, billing, customers):
    """`has_more` counts only what matches."""
    wanted = [billing.customer(email="a@example.com") for _ in range(3)][::-1]
    for _ in range(3):
        billing.customer(email="b@example.com")
    reply = raw.get("/v1/customers", {"email": "a@example.com", "limit": 2})
    assert (ids(reply), reply.body["has_more"]) == (wanted[:2], True)
    assert ids(raw.get("/v1/customers", {"email": "a@example.com", "starting_after": wanted[1]})) == wanted[2:]


def test_a_range_of_creation_times_filters(raw, billing, pass_time, simulator):
    """`created[gte]`, `created[lt]` and an exact `created`."""
    first = billing.customer()
    at_first = int(simulator.now().timestamp())
    pass_time(seconds=10)
    second = billing.customer()
    assert ids(raw.get("/v1/customers", {"created[gte]": at_first + 1})) == [second]
    assert ids(raw.get("/v1/customers", {"created[lt]": at_first + 1})) == [first]
    assert ids(raw.get("/v1/customers", {"created": at_first})) == [first]


def test_tiers_show_only_when_expanded(raw, billing):
    """`price.tiers` is left out unless asked for, wherever the price stands."""
    price = raw.post(
        "/v1/prices",
        {
            "currency": "usd",
            "product_data[name]": "Bundled",
            "recurring[interval]": "month",
            "recurring[usage_type]": "metered",
            "recurring[meter]": billing.meter(),
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "tiers[0][up_to]": 5_000_000,
            "tiers[0][unit_amount]": 0,
            "tiers[1][up_to]": "inf",
            "tiers[1][unit_amount_decimal]": "0.0005",
        },
    ).body["id"]
    tiers = [
        {"flat_amount": None, "flat_amount_decimal": None, "unit_amount": 0, "unit_amount_decimal": "0", "up_to": 5_000_000},
        {"flat_amount": None, "flat_amount_decimal": None, "unit_amount": None, "unit_amount_decimal": "0.0005", "up_to": None},
    ]
    assert "tiers" not in raw.get(f"/v1/prices/{price}").body
    assert raw.get(f"/v1/prices/{price}", {"expand[]": "tiers"}).body["tiers"] == tiers
    assert raw.get("/v1/prices", {"expand[]": "data.tiers"}).body["data"][0]["tiers"] == tiers
    assert "tiers" not in raw.get(f"/v1/prices/{billing.price()}", {"expand[]": "tiers"}).body
    subscription = billing.subscription(billing.customer(), price, **{"expand[]": "items.data.price.tiers"})
    assert subscription["items"]["data"][0]["price"]["tiers"] == tiers


def test_expansion_follows_several_paths(raw, billing):
    """An id becomes its object; two paths through the same object both hold."""
    customer = billing.customer(name="Ada")
    subscription = billing.subscription(customer, billing.price())["id"]
    paths = [("expand[]", "customer"), ("expand[]", "items.data.price.product"), ("expand[]", "customer.subscriptions")]
    shown = raw.get(f"/v1/subscriptions/{subscription}", paths).body
    assert shown["customer"]["name"] == "Ada"
    assert shown["customer"]["subscriptions"]["data"][0]["id"] == subscription
    assert shown["items"]["data"][0]["price"]["product"]["name"] == "Solo"
    assert raw.get(f"/v1/subscriptions/{subscription}").body["customer"] == customer


def test_expanding_nothing_gives_null(raw, billing):
    """What has nothing behind it stays null."""
    product = raw.post("/v1/products", {"name": "x"}).body["id"]
    assert raw.get(f"/v1/products/{product}", {"expand[]": "default_price"}).body["default_price"] is None


@pytest.mark.parametrize("path", ["name", "nothing", "metadata.tiers", "id.more"])
def test_what_cannot_be_expanded_is_refused(raw, billing, path):
    """400 with Stripe's wording; and nothing is changed by the refused call."""
    customer = billing.customer()
    reply = raw.post(f"/v1/customers/{customer}", {"name": "changed", "expand[]": path})
    assert reply.status == 400
    assert reply.error["message"] == f"This property cannot be expanded ({path})."
    assert raw.get(f"/v1/customers/{customer}").body["name"] is None


def test_an_expansion_is_at_most_four_levels_deep(raw, billing):
    """The `data` of a list counts as a level, as Stripe counts."""
    billing.subscription(billing.customer(), billing.price())
    reply = raw.get("/v1/subscriptions", {"expand[]": "data.items.data.price.product"})
    assert reply.status == 400
    assert "more than 4 levels" in reply.error["message"]
