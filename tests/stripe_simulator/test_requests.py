"""Who may ask, for what, and how a request is read before any resource sees it."""

from __future__ import annotations

import base64

import pytest
import stripe

RESERVED = "\u00e4 & = [] 100% +"


def test_a_wrong_key_is_refused_and_not_shown(raw):
    """401 with Stripe's wording; only the key's kind and last four characters are repeated."""
    reply = raw.get("/v1/account", Authorization="Bearer sk_test_abcdefghijkl1234")
    assert reply.status == 401
    assert reply.error == {"message": "Invalid API Key provided: sk_test_************1234", "type": "invalid_request_error"}


def test_a_live_key_is_always_refused(raw):
    """The simulator takes no live key, whatever it was started with."""
    reply = raw.get("/v1/account", Authorization="Bearer sk_live_abcdefghijkl1234")
    assert reply.status == 401
    assert reply.error["message"].startswith("Invalid API Key provided: sk_live_*")


def test_a_request_without_a_key_is_told_how_to_give_one(raw):
    """401, and the wording that begins "You did not provide an API key"."""
    reply = raw.call("GET", "/v1/account", headers={"Authorization": None})
    assert reply.status == 401
    assert reply.error["message"].startswith("You did not provide an API key.")


def test_basic_authentication_takes_the_key_as_user_name(raw, simulator):
    """As in `curl -u sk_test_…:`."""
    credentials = base64.b64encode(f"{simulator.api_key}:".encode()).decode()
    assert raw.get("/v1/account", Authorization=f"Basic {credentials}").status == 200


def test_the_account_is_always_the_same_one(raw, simulator):
    """Its id survives a reset, so that what pins it stays pinned."""
    first = raw.get("/v1/account").body["id"]
    simulator.reset()
    assert raw.get("/v1/account").body["id"] == first
    assert first.startswith("acct_1")


def test_every_answer_names_its_request_and_version(raw):
    """`Request-Id` is new for each request; `Stripe-Version` is the SDK's."""
    replies = [raw.get("/v1/account"), raw.get("/v1/nothing"), raw.get("/v1/account")]
    assert len({reply.headers["request-id"] for reply in replies}) == 3
    assert {reply.headers["stripe-version"] for reply in replies} == {"2026-10-28.endive"}


def test_another_api_version_is_refused(raw):
    """The simulator speaks one version; answering another in its shapes would mislead."""
    reply = raw.get("/v1/account", **{"Stripe-Version": "2024-06-20"})
    assert reply.status == 400
    assert "Invalid Stripe API version" in reply.error["message"]


@pytest.mark.parametrize("method, path", [("GET", "/v1/nothing"), ("DELETE", "/v1/billing/meters/mtr_1"), ("GET", "/v1/customers/")])
def test_a_url_that_stripe_does_not_have_is_not_recognized(raw, method, path):
    """404 with Stripe's wording, for an unknown path as for a method the path does not take."""
    reply = raw.call(method, path)
    assert reply.status == 404
    assert reply.error["message"].startswith(f"Unrecognized request URL ({method}: {path}).")


def test_values_survive_the_form_encoding(raw):
    """Reserved characters, brackets and letters beyond ASCII arrive as they were sent."""
    customer = raw.post("/v1/customers", {"name": RESERVED, "metadata[a key]": RESERVED}).body
    assert customer["name"] == RESERVED
    assert customer["metadata"] == {"a key": RESERVED}


def test_a_json_body_is_refused(raw):
    """Stripe's v1 takes forms only."""
    reply = raw.call("POST", "/v1/customers", '{"name": "x"}', {"Content-Type": "application/json"})
    assert reply.status == 400
    assert "application/x-www-form-urlencoded" in reply.error["message"]


def test_a_body_that_is_not_utf_8_is_refused(raw):
    """400, not a failure of the simulator."""
    assert raw.post("/v1/customers", "name=%ff").status == 400


@pytest.mark.parametrize(
    "path, params, unknown",
    [
        ("/v1/customers", {"nme": "x"}, "nme"),
        ("/v1/customers", {"address[strasse]": "x"}, "address[strasse]"),
        ("/v1/subscriptions", {"customer": "c", "items[0][price]": "p", "items[0][pirce]": "p"}, "items[0][pirce]"),
        ("/v1/prices", {"currency": "usd", "tiers[1][up_to]": "inf", "tiers[1][amount]": "1"}, "tiers[1][amount]"),
    ],
)
def test_an_unknown_parameter_is_refused_at_any_depth(raw, path, params, unknown):
    """400 parameter_unknown, naming the parameter as it was written."""
    reply = raw.post(path, params)
    assert reply.status == 400
    assert (reply.error["code"], reply.error["param"]) == ("parameter_unknown", unknown)
    assert reply.error["message"] == f"Received unknown parameter: {unknown}"


@pytest.mark.parametrize(
    "path, params, missing",
    [
        ("/v1/subscriptions", {"items[0][price]": "p"}, "customer"),
        ("/v1/prices", {"currency": "usd", "recurring[usage_type]": "licensed"}, "recurring[interval]"),
        ("/v1/billing/meter_events", {"event_name": "x"}, "payload"),
        ("/v1/billing/meter_event_adjustments", {"event_name": "x", "type": "cancel"}, "cancel[identifier]"),
    ],
)
def test_a_missing_parameter_is_named(raw, path, params, missing):
    """400 parameter_missing."""
    reply = raw.post(path, params)
    assert reply.status == 400
    assert (reply.error["code"], reply.error["param"]) == ("parameter_missing", missing)
    assert reply.error["message"] == f"Missing required param: {missing}."


@pytest.mark.parametrize(
    "path, params, message",
    [
        ("/v1/customers", {"balance": "ten"}, "Invalid integer: ten"),
        ("/v1/customers", {"email": "e" * 513}, "Invalid string: eeeeeeeeee...eeeeeeeeee; must be at most 512 characters"),
        ("/v1/customers", {"address": "here"}, "Invalid hash"),
        ("/v1/customers", {"name[first]": "x"}, "Invalid string: [hash]"),
        ("/v1/products", {"name": "x", "active": "yes"}, "Invalid boolean: yes"),
        ("/v1/products", {"name": ""}, "You passed an empty string for 'name'."),
        ("/v1/prices", {"currency": "usd", "unit_amount_decimal": "5E-7"}, "Invalid decimal: 5E-7"),
        ("/v1/prices", {"currency": "usd", "unit_amount_decimal": "0.0000000000001"}, "Invalid decimal: 0.0000000000001; must contain at"),
        ("/v1/prices", {"currency": "dollars"}, "Invalid currency: dollars"),
        ("/v1/prices", {"currency": "usd", "tiers": "all"}, "Invalid array"),
        ("/v1/prices", {"currency": "usd", "tiers_mode": "steep"}, "Invalid tiers_mode: must be one of graduated or volume"),
        ("/v1/prices", {"currency": "usd", "tiers[0][up_to]": "many"}, "Invalid integer: many"),
        ("/v1/customers", [("name", "x"), ("name[y]", "z")], "Invalid parameter: name[y]"),
    ],
)
def test_a_parameter_of_the_wrong_type_is_refused(raw, path, params, message):
    """400, in Stripe's words where they are known."""
    reply = raw.post(path, params)
    assert reply.status == 400
    assert reply.error["message"].startswith(message)
    assert reply.error["type"] == "invalid_request_error"


def test_an_object_that_is_not_there_is_404_in_a_path_and_400_in_a_parameter(raw):
    """resource_missing either way."""
    in_path = raw.get("/v1/customers/cus_x")
    in_parameter = raw.post("/v1/subscriptions", {"customer": "cus_x", "items[0][price]": "price_x"})
    assert (in_path.status, in_parameter.status) == (404, 400)
    for reply, param in ((in_path, "id"), (in_parameter, "customer")):
        assert reply.error["code"] == "resource_missing"
        assert reply.error["message"] == "No such customer: 'cus_x'"
        assert reply.error["param"] == param


def test_the_sdk_raises_its_own_errors(client):
    """AuthenticationError and InvalidRequestError with code and parameter, from the real SDK."""
    with pytest.raises(stripe.InvalidRequestError) as missing:
        client.v1.customers.retrieve("cus_x")
    assert (missing.value.http_status, missing.value.code, missing.value.param) == (404, "resource_missing", "id")
    with pytest.raises(stripe.AuthenticationError):
        client.v1.customers.create({"name": "x"}, {"api_key": "sk_test_wrong_key_here"})
