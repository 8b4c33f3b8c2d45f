"""An idempotency key's first answer is its only answer, for 24 hours."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from typing import Any

import pytest
import stripe
from starlette.requests import Request
from starlette.responses import Response

from sandbox.stripe_simulator.clock import ClockSetting
from sandbox.stripe_simulator.endpoint import Endpoint
from sandbox.stripe_simulator.gateway import Gateway
from sandbox.stripe_simulator.resources import customers
from sandbox.stripe_simulator.state import State, derived_id


def test_a_repeated_request_is_answered_from_memory(raw):
    """Same key, same parameters: the first status and body, marked as replayed, and no second object."""
    first = raw.post("/v1/customers", {"name": "a", "phone": "1"}, key="k")
    again = raw.post("/v1/customers", "phone=1&name=a", key="k")
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.status, again.body) == (200, first.body)
    assert len(raw.get("/v1/customers").body["data"]) == 1


def test_a_replay_is_the_first_answer_even_after_a_change(raw):
    """What is replayed is what was answered, not what the object has become."""
    customer = raw.post("/v1/customers", {"name": "a"}, key="k").body["id"]
    raw.post(f"/v1/customers/{customer}", {"name": "b"})
    assert raw.post("/v1/customers", {"name": "a"}, key="k").body["name"] == "a"


@pytest.mark.parametrize("path, params", [("/v1/customers", {"name": "b"}), ("/v1/products", {"name": "a"})])
def test_a_key_with_other_parameters_is_an_idempotency_error(raw, path, params):
    """400 idempotency_error for other parameters as for another path."""
    raw.post("/v1/customers", {"name": "a"}, key="k")
    reply = raw.post(path, params, key="k")
    assert reply.status == 400
    assert reply.error["type"] == "idempotency_error"
    assert reply.error["message"].startswith("Keys for idempotent requests can only be used with the same parameters")
    assert "'k'" in reply.error["message"]


def test_a_refusal_by_the_endpoint_is_kept(raw, billing):
    """An endpoint that began to execute has answered, even if with 400: mending the cause does not change the replay."""
    params = {"event_name": "tokens", "payload[value]": 1, "payload[stripe_customer_id]": "c"}
    first = raw.post("/v1/billing/meter_events", params, key="k")
    billing.meter()
    again = raw.post("/v1/billing/meter_events", params, key="k")
    assert first.status == again.status == 400
    assert again.headers["idempotent-replayed"] == "true"
    assert again.body == first.body
    assert raw.post("/v1/billing/meter_events", params, key="other").status == 200


def test_failed_validation_is_not_kept(raw):
    """Parameters that fail validation never reached an endpoint, so the key is still free."""
    assert raw.post("/v1/customers", {"nme": "a"}, key="k").status == 400
    assert raw.post("/v1/customers", {"name": "a"}, key="k").status == 200


def test_a_wrong_key_is_not_kept(raw):
    """Nor is a 401."""
    wrong = {"Authorization": "Bearer sk_test_wrong", "Idempotency-Key": "k"}
    assert raw.call("POST", "/v1/customers", {"name": "a"}, wrong).status == 401
    assert raw.post("/v1/customers", {"name": "a"}, key="k").status == 200


def test_a_key_is_forgotten_after_24_hours(raw, pass_time):
    """By the simulator's clock: then the same request makes a second object."""
    first = raw.post("/v1/customers", {"name": "a"}, key="k").body["id"]
    pass_time(hours=23, minutes=59, seconds=59)
    assert raw.post("/v1/customers", {"name": "a"}, key="k").body["id"] == first
    pass_time(seconds=1)
    assert raw.post("/v1/customers", {"name": "a"}, key="k").body["id"] != first


def test_a_key_has_at_most_255_characters(raw):
    """A longer one is refused."""
    assert raw.post("/v1/customers", {}, key="k" * 255).status == 200
    assert raw.post("/v1/customers", {}, key="k" * 256).status == 400


def test_only_posts_have_idempotency(raw):
    """Stripe ignores the header on GET: the second answer is the present one."""
    customer = raw.post("/v1/customers", {"name": "a"}).body["id"]
    key = {"Idempotency-Key": "k"}
    raw.get(f"/v1/customers/{customer}", **key)
    raw.post(f"/v1/customers/{customer}", {"name": "b"})
    assert raw.get(f"/v1/customers/{customer}", **key).body["name"] == "b"


def test_two_requests_at_once_with_one_key_do_not_both_execute(raw, simulator):
    """While the first is worked on, the second is turned away with 409; afterwards it would be answered from memory."""
    simulator.settings(latency_seconds=0.3)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        both = [threads.submit(raw.post, "/v1/customers", {"name": "a"}, key="k") for _ in range(2)]
        replies = sorted((one.result() for one in both), key=lambda reply: reply.status)
    simulator.settings(latency_seconds=0)
    assert [reply.status for reply in replies] == [200, 409]
    assert replies[1].error["code"] == "idempotency_key_in_use"
    assert raw.post("/v1/customers", {"name": "a"}, key="k").body == replies[0].body


def test_a_failure_of_the_server_is_kept_and_undone(capsys):
    """A 500 is replayed like any answer, though the cause is gone; and what the failed request had changed is undone."""
    state = State(ClockSetting(0))
    gateway = Gateway(state, frozenset({"sk_test_x"}))
    causes = [RuntimeError("broken")]

    def run(state: State, given: dict[str, Any]) -> dict[str, Any]:
        made = customers.create(state, given)
        if causes:
            raise causes.pop()
        return made

    def asked(key: str) -> Response:
        headers = [(b"authorization", b"Bearer sk_test_x"), (b"idempotency-key", key.encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/customers", "query_string": b"", "headers": headers, "path_params": {}}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        return asyncio.run(gateway.answer(Request(scope, receive), Endpoint("POST", "/v1/customers", {}, run)))

    first, again = asked("k"), asked("k")
    assert (first.status_code, again.status_code, again.body) == (500, 500, first.body)
    assert json.loads(first.body)["error"]["type"] == "api_error"
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert list(state.customers.newest_first()) == []
    other = asked("other")
    assert (other.status_code, json.loads(other.body)["id"]) == (200, derived_id("customer", 1))
    assert "broken" in capsys.readouterr().err


def test_the_sdk_knows_the_error(client):
    """stripe.IdempotencyError, which is not an InvalidRequestError: never to be taken for a refusal."""
    client.v1.customers.create({"name": "a"}, {"idempotency_key": "k"})
    with pytest.raises(stripe.IdempotencyError):
        client.v1.customers.create({"name": "b"}, {"idempotency_key": "k"})
