"""The simulator is held to Stripe's own API description, and the yardstick itself measures."""

from __future__ import annotations

import copy
import json
from datetime import timedelta

import pytest

from sandbox.stripe_simulator import params
from sandbox.stripe_simulator.resources import ENDPOINTS
from stripe_description import (
    assert_exchanges_valid,
    assert_request_valid,
    assert_response_valid,
    described_parameters,
    is_described,
)


def every_route(billing, raw, simulator) -> list[tuple[str, str, dict]]:
    """A valid call of every endpoint, in an order that works."""
    meter, spare_meter = billing.meter(), billing.meter("spare")
    customer, spare = billing.customer(), billing.customer()
    price, metered = billing.price(), billing.metered_price(meter)
    draft, other, unpaid, uncollectible = drafts_of_a_past_period(billing, raw, simulator, metered)
    now = simulator.now()
    product = raw.post("/v1/products", {"name": "x"}).body["id"]
    subscription = billing.subscription(customer, price, **{"items[1][price]": metered})
    item = subscription["items"]["data"][0]["id"]
    billing.send(customer, 1, now, "i")
    start = int(now.timestamp())
    third = billing.price()
    billing.send(customer, 1, now, "disowned")
    [report] = simulator.disown(["disowned"])
    endpoint = raw.post("/v1/webhook_endpoints", {"url": "https://example.com/hook", "enabled_events[]": "*"}).body["id"]
    checkout = {"mode": "subscription", "success_url": "https://example.com", "line_items[0][price]": metered}
    bought, abandoned = (raw.post("/v1/checkout/sessions", checkout).body["id"] for _ in range(2))
    simulator.complete_checkout(bought)
    extra, spare_extra = (raw.post("/v1/invoiceitems", {"customer": customer, "amount": 5, "currency": "usd"}).body["id"] for _ in range(2))
    by_hand = raw.post("/v1/invoices", {"customer": customer, "currency": "usd"}).body["id"]
    credited = raw.get(f"/v1/invoices/{unpaid}").body
    note = raw.post("/v1/credit_notes", {"invoice": uncollectible, "amount": 3}).body["id"]
    event = raw.get("/v1/events").body["data"][0]["id"]
    return [
        (
            "POST",
            "/v1/invoiceitems",
            {
                "customer": customer,
                "subscription": subscription["id"],
                "currency": "usd",
                "unit_amount_decimal": "0.5",
                "quantity": 3,
                "period[start]": start,
                "period[end]": start + 60,
                "metadata[a]": "b",
                "expand[]": "customer",
            },
        ),
        ("GET", "/v1/invoiceitems", {"customer": customer, "pending": "true"}),
        ("GET", f"/v1/invoiceitems/{extra}", {}),
        ("POST", f"/v1/invoiceitems/{extra}", {"amount": 7, "description": "x", "discountable": "false"}),
        ("DELETE", f"/v1/invoiceitems/{spare_extra}", {}),
        (
            "POST",
            "/v1/invoices",
            {"customer": customer, "currency": "usd", "pending_invoice_items_behavior": "include", "auto_advance": "true"},
        ),
        ("DELETE", f"/v1/invoices/{by_hand}", {}),
        (
            "POST",
            "/v1/credit_notes",
            {
                "invoice": unpaid,
                "lines[0][type]": "invoice_line_item",
                "lines[0][invoice_line_item]": credited["lines"]["data"][0]["id"],
                "lines[0][amount]": 5,
                "lines[1][type]": "custom_line_item",
                "lines[1][unit_amount_decimal]": "1.5",
                "lines[1][quantity]": 2,
                "lines[1][description]": "x",
                "metadata[a]": "b",
                "memo": "x",
                "reason": "duplicate",
                "expand[]": "invoice",
            },
        ),
        ("GET", "/v1/credit_notes", {"invoice": uncollectible}),
        ("GET", f"/v1/credit_notes/{note}", {}),
        ("GET", f"/v1/credit_notes/{note}/lines", {"limit": 1}),
        ("POST", f"/v1/credit_notes/{note}/void", {}),
        ("GET", "/v1/invoices", {"status": "draft", "expand[]": "data.customer", "created[gte]": start}),
        ("GET", f"/v1/invoices/{draft}", {}),
        ("GET", f"/v1/invoices/{draft}/lines", {"limit": 1}),
        ("POST", f"/v1/invoices/{draft}", {"auto_advance": "true", "automatically_finalizes_at": start + 50 * 86_400}),
        ("POST", f"/v1/invoices/{draft}/finalize", {}),
        ("POST", f"/v1/invoices/{other}/pay", {}),
        ("POST", f"/v1/invoices/{unpaid}/void", {}),
        ("POST", f"/v1/invoices/{uncollectible}/mark_uncollectible", {}),
        ("GET", "/v1/events", {"types[]": "customer.created", "created[gte]": start, "delivery_success": "false"}),
        ("GET", f"/v1/events/{event}", {}),
        (
            "POST",
            "/v1/webhook_endpoints",
            {"url": "https://example.com/", "enabled_events[]": "invoice.paid", "description": "x", "metadata[a]": "b"},
        ),
        ("GET", "/v1/webhook_endpoints", {"limit": 3}),
        ("GET", f"/v1/webhook_endpoints/{endpoint}", {}),
        ("POST", f"/v1/webhook_endpoints/{endpoint}", {"disabled": "true", "enabled_events[]": "*", "url": "https://example.com/b"}),
        ("DELETE", f"/v1/webhook_endpoints/{endpoint}", {}),
        (
            "POST",
            "/v1/checkout/sessions",
            {
                **checkout,
                "line_items[1][price]": price,
                "line_items[1][quantity]": 2,
                "client_reference_id": "tenant",
                "customer_email": "a@example.com",
                "metadata[a]": "b",
                "subscription_data[metadata][c]": "d",
                "subscription_data[trial_period_days]": 3,
                "expand[]": "line_items",
            },
        ),
        ("GET", "/v1/checkout/sessions", {"status": "complete", "expand[]": "data.subscription"}),
        ("GET", f"/v1/checkout/sessions/{bought}", {"expand[]": "invoice"}),
        ("POST", f"/v1/checkout/sessions/{bought}", {"metadata[a]": "b"}),
        ("GET", f"/v1/checkout/sessions/{bought}/line_items", {"limit": 1}),
        ("POST", f"/v1/checkout/sessions/{abandoned}/expire", {}),
        ("GET", "/v1/account", {}),
        ("GET", "/v2/core/events", {"object_id": meter, "types[]": "v1.billing.meter.error_report_triggered", "limit": 5}),
        ("GET", f"/v2/core/events/{report}", {}),
        ("POST", "/v1/customers", {"name": "x", "metadata[a]": "b"}),
        ("GET", "/v1/customers", {"limit": 3}),
        ("GET", f"/v1/customers/{customer}", {"expand[]": "subscriptions"}),
        ("POST", f"/v1/customers/{customer}", {"name": "y"}),
        ("DELETE", f"/v1/customers/{spare}", {}),
        ("POST", "/v1/products", {"name": "x", "images[]": "https://example.com/x.png", "marketing_features[0][name]": "fast"}),
        ("GET", "/v1/products", {"active": "true"}),
        ("GET", f"/v1/products/{product}", {}),
        ("POST", f"/v1/products/{product}", {"name": "y", "unit_label": "token"}),
        ("DELETE", f"/v1/products/{product}", {}),
        ("POST", "/v1/prices", {"currency": "usd", "product_data[name]": "x", "unit_amount": 100}),
        ("GET", "/v1/prices", {"expand[]": "data.tiers", "type": "recurring"}),
        ("GET", f"/v1/prices/{price}", {"expand[]": "product"}),
        ("POST", f"/v1/prices/{price}", {"nickname": "y"}),
        ("POST", "/v1/billing/meters", {"display_name": "x", "event_name": "new", "default_aggregation[formula]": "last"}),
        ("GET", "/v1/billing/meters", {"status": "active"}),
        ("GET", f"/v1/billing/meters/{meter}", {}),
        ("POST", f"/v1/billing/meters/{meter}", {"display_name": "y"}),
        ("POST", f"/v1/billing/meters/{spare_meter}/deactivate", {}),
        ("POST", f"/v1/billing/meters/{spare_meter}/reactivate", {}),
        ("POST", "/v1/billing/meter_events", {"event_name": "tokens", "payload[stripe_customer_id]": customer, "payload[value]": 1}),
        ("POST", "/v1/billing/meter_event_adjustments", {"event_name": "tokens", "type": "cancel", "cancel[identifier]": "i"}),
        (
            "GET",
            f"/v1/billing/meters/{meter}/event_summaries",
            {"customer": customer, "start_time": start, "end_time": start + 3600, "value_grouping_window": "hour"},
        ),
        ("POST", "/v1/subscriptions", {"customer": customer, "items[0][price]": price, "expand[]": "customer"}),
        ("GET", "/v1/subscriptions", {"status": "all", "customer": customer}),
        ("GET", f"/v1/subscriptions/{subscription['id']}", {"expand[]": "items.data.price.product"}),
        ("POST", f"/v1/subscriptions/{subscription['id']}", {"description": "y", "proration_behavior": "none"}),
        ("POST", "/v1/subscription_items", {"subscription": subscription["id"], "price": third}),
        ("GET", "/v1/subscription_items", {"subscription": subscription["id"]}),
        ("GET", f"/v1/subscription_items/{item}", {}),
        ("POST", f"/v1/subscription_items/{item}", {"quantity": 2}),
        ("DELETE", f"/v1/subscription_items/{item}", {"proration_behavior": "none"}),
        ("DELETE", f"/v1/subscriptions/{subscription['id']}", {"invoice_now": "true"}),
    ]


def drafts_of_a_past_period(billing, raw, simulator, metered) -> tuple[str, str, str, str]:
    """Two drafts and two open invoices, of usage a month ago; the clock stands at that month's end."""
    ids = []
    begun = simulator.now()
    subscriptions = [
        billing.subscription(billing.customer(), metered, collection_method="send_invoice", days_until_due=3)["id"] for _ in range(4)
    ]
    for subscription in subscriptions:
        billing.send(raw.get(f"/v1/subscriptions/{subscription}").body["customer"], 10_000_000, begun)
    simulator.set_clock(begun + timedelta(days=31))
    for subscription in subscriptions:
        listed = raw.get("/v1/invoices", {"subscription": subscription, "status": "draft"})
        ids.append(listed.body["data"][0]["id"])
    for invoice in ids[2:]:
        assert raw.post(f"/v1/invoices/{invoice}/finalize").body["status"] == "open"
    return ids[0], ids[1], ids[2], ids[3]


def test_every_route_answers_as_stripe_describes(billing, raw, simulator, recording):
    """Each endpoint is called with good parameters; answers and parameters are validated here, not only by the fixture."""
    calls = every_route(billing, raw, simulator)
    assert len(calls) == len(ENDPOINTS)
    begun_at = recording.stat().st_size
    for method, path, given in calls:
        reply = raw.call(method, path, given)
        assert reply.status == 200, (method, path, reply)
        assert_response_valid(method, path, reply.status, reply.body)
    with recording.open(encoding="utf-8") as exchanges:
        exchanges.seek(begun_at)
        assert assert_exchanges_valid(exchanges) == len(calls)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
def test_no_parameter_is_accepted_that_stripe_does_not_know(endpoint):
    """Names, types, words and lengths, at every depth; and what Stripe requires is required."""
    assert is_described(endpoint.method, endpoint.path)
    described = described_parameters(endpoint.method, endpoint.path)
    hold(endpoint.fields, described, endpoint.path)


def alternatives(schema: dict) -> list[dict]:
    return [one for alternative in schema["anyOf"] for one in alternatives(alternative)] if "anyOf" in schema else [schema]


def hold(fields, described: dict, where: str) -> None:
    unknown = set(fields) - set(described["properties"])
    assert not unknown, f"{where} takes {unknown}"
    required = {name for name, kind in fields.items() if kind.required}
    assert set(described.get("required", [])) <= required, where
    for name, kind in fields.items():
        hold_kind(kind, described["properties"][name], f"{where} {name}")


def hold_kind(kind: params.Kind, described: dict, where: str) -> None:
    if isinstance(kind, params.Either):
        for one in kind.kinds:
            hold_kind(one, described, where)
        return
    shapes = alternatives(described)
    if kind.unsettable:
        assert any("" in shape.get("enum", []) for shape in shapes) or any(
            shape.get("type") == "string" and "enum" not in shape for shape in shapes
        ), f"{where} cannot be unset"
    types = {
        params.Text: "string",
        params.FixedPoint: "string",
        params.Currency: "string",
        params.OneOf: "string",
        params.Integer: "integer",
        params.Boolean: "boolean",
        params.ArrayOf: "array",
        params.HashOf: "object",
        params.TextMap: "object",
    }
    fitting = [shape for shape in shapes if shape.get("type") == types[type(kind)] and shape.get("enum") != [""]]
    assert fitting, f"{where} is no {types[type(kind)]} at Stripe"
    shape = fitting[0]
    if isinstance(kind, params.Text) and "maxLength" in shape:
        assert kind.max_length <= shape["maxLength"], where
    if isinstance(kind, params.OneOf):
        words = {word for one in fitting for word in one.get("enum", [])}
        assert set(kind.words) <= words, where
    if isinstance(kind, params.ArrayOf):
        hold_kind(kind.element, shape["items"], f"{where}[]")
    if isinstance(kind, params.HashOf):
        hold(kind.fields, shape, where)


# --- The yardstick measures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def subscription(billing) -> dict:
    return billing.subscription(billing.customer(), billing.price())


def broken(body: dict, change) -> dict:
    body = copy.deepcopy(body)
    change(body)
    return body


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(invented=1),
        lambda body: body["items"]["data"][0].update(invented=1),
        lambda body: body["items"]["data"][0]["price"]["recurring"].update(invented=1),
        lambda body: body["automatic_tax"].update(invented=1),
        lambda body: body["items"]["data"][0].pop("current_period_end"),
        lambda body: body["items"]["data"][0]["price"].update(unit_amount_decimal=1900),
        lambda body: body.update(status="running"),
        lambda body: body.update(customer=None),
        lambda body: body.update(metadata={"a": 1}),
        lambda body: body.update(created="2025-10-15"),
        lambda body: body["items"]["data"][0].update(current_trial={"end": 1}),
    ],
)
def test_a_response_that_stripe_would_not_send_is_found(subscription, change):
    """Unknown keys at any depth, missing keys, wrong types, words and nulls."""
    path = f"/v1/subscriptions/{subscription['id']}"
    assert_response_valid("GET", path, 200, subscription)
    with pytest.raises(AssertionError, match="not as Stripe describes it"):
        assert_response_valid("GET", path, 200, broken(subscription, change))


def test_an_error_must_have_stripes_shape():
    """Any status but 200 is held to the error object."""
    assert_response_valid("GET", "/v1/customers/cus_x", 404, {"error": {"type": "invalid_request_error", "message": "m"}})
    with pytest.raises(AssertionError):
        assert_response_valid("GET", "/v1/customers/cus_x", 404, {"error": {"type": "not_found"}})
    with pytest.raises(AssertionError):
        assert_response_valid("GET", "/v1/customers/cus_x", 404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    "method, path, given",
    [
        ("POST", "/v1/customers", {"nme": "x"}),
        ("POST", "/v1/customers", {"address": {"strasse": "x"}}),
        ("POST", "/v1/subscriptions", {"customer": "c", "items": {"0": {"pirce": "p"}}}),
        ("POST", "/v1/billing/meter_events", {"event_name": "x"}),
        ("GET", "/v1/customers", {"limit": "ten"}),
        ("GET", "/v1/subscriptions", {"status": "running"}),
        ("POST", "/v1/billing/meter_events", {"event_name": "x", "payload": {}, "identifier": "i" * 101}),
    ],
)
def test_a_request_that_stripe_would_refuse_is_found(method, path, given):
    """Unknown names at any depth, missing ones, wrong types, words and lengths."""
    with pytest.raises(AssertionError):
        assert_request_valid(method, path, given)


@pytest.mark.parametrize(
    "method, path, given",
    [
        ("GET", "/v1/customers", {"limit": "10", "created": {"gte": "1"}, "expand": ["data.subscriptions"]}),
        ("POST", "/v1/customers/cus_x", {"metadata": "", "address": {"city": "x"}, "balance": "-5"}),
        ("POST", "/v1/subscriptions", {"customer": "c", "items": {"0": {"price": "p"}, "1": {"price": "q"}}, "trial_end": "now"}),
        ("POST", "/v1/prices", {"currency": "usd", "tiers": {"0": {"up_to": "5"}, "1": {"up_to": "inf"}}, "active": "true"}),
        ("POST", "/v1/billing/meter_events", {"event_name": "x", "payload": {"value": "5"}, "timestamp": "1"}),
    ],
)
def test_form_strings_are_read_as_the_described_types(method, path, given):
    """Integers, booleans, numbered arrays, and either-or parameters."""
    assert_request_valid(method, path, given)


def test_a_recording_is_judged_exchange_by_exchange():
    """A refused request may be anything; an answered one may not."""
    error = {"error": {"type": "invalid_request_error", "message": "m"}}
    refused = {"method": "POST", "path": "/v1/customers", "params": {"nme": "x"}, "status": 400, "body": error}
    unknown_url = {"method": "GET", "path": "/v1/nothing", "params": {}, "status": 404, "body": error}
    assert assert_exchanges_valid(json.dumps(one) for one in (refused, unknown_url)) == 2
    with pytest.raises(AssertionError):
        assert_exchanges_valid([json.dumps({**refused, "status": 200, "body": {"id": "cus_x"}})])
