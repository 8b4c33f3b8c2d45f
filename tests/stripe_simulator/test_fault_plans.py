"""Which request meets which fault: by a script, or by chance that can be repeated."""

from __future__ import annotations

import http.client
from collections import Counter

import pytest

from sandbox.stripe_simulator.faults import KINDS, Fault, FaultPlan, SeededFaults
from sandbox.stripe_simulator.process import SimulatorFailed

EVENTS = "/v1/billing/meter_events"


@pytest.fixture
def send(raw, simulator):
    """Sends meter event number n; its status, or None without an answer."""

    def send(number: int) -> int | None:
        params = {"event_name": "tokens", "identifier": f"i{number}", "payload[value]": 1}
        try:
            return raw.post(EVENTS, params, key=f"k{number}").status
        except (ConnectionError, http.client.HTTPException):
            return None

    return send


def test_a_script_is_followed_in_order_and_ends(simulator, billing, send):
    """One fault a request; `pass` lets one by; afterwards all goes well."""
    billing.meter()
    simulator.script_faults(["rate_limit", "pass", "error_before_effect"])
    assert [send(number) for number in range(5)] == [429, 200, 500, 200, 200]
    faults = simulator.faults()
    assert (faults["script"], faults["seeded"]) == ([], None)
    assert faults["met"] == [
        {"kind": kind, "method": "POST", "path": EVENTS, "idempotency_key": f"k{number}"}
        for number, kind in enumerate(["rate_limit", "pass", "error_before_effect"])
    ]


def test_a_fault_waits_for_the_request_it_is_for(simulator, raw, billing, send):
    """Method and the beginning of the path must match; others neither meet it nor use it up."""
    billing.meter()
    simulator.script_faults([Fault("rate_limit", method="GET", path="/v1/customers"), Fault("error_before_effect")])
    assert raw.post("/v1/customers").status == 200
    assert raw.get("/v1/account").status == 200
    assert send(1) == 500
    assert raw.get("/v1/customers/cus_x").status == 429
    assert raw.get("/v1/customers/cus_x").status == 404


def test_a_new_script_replaces_the_old_one(simulator, billing, send):
    """Also by an empty one."""
    billing.meter()
    simulator.script_faults(["rate_limit", "rate_limit"])
    simulator.script_faults(["error_before_effect"])
    assert [send(1), send(2)] == [500, 200]
    simulator.script_faults(["rate_limit"])
    simulator.script_faults([])
    assert send(3) == 200


def test_a_seed_repeats_a_history_exactly(simulator, billing, send):
    """The same seed, the same requests: the same answers, faults and events; another seed, another history."""
    probabilities = {"rate_limit": 0.1, "reset_after_effect": 0.15, "reset_in_body": 0.1, "kept_error_after_effect": 0.1, "conflict": 0.05}

    def history(seed: int):
        simulator.reset()
        billing.meter()
        simulator.seed_faults(seed, probabilities)
        statuses = [send(number % 30) for number in range(60)]
        return statuses, simulator.faults()["met"], simulator.meter_events()

    first = history(7)
    assert history(7) == first
    assert history(8) != first
    assert {met["kind"] for met in first[1]} == set(probabilities)
    assert None in first[0] and 200 in first[0]


def test_a_seed_keeps_to_its_probabilities():
    """One number a matching request; others are left alone and draw nothing."""
    plan = FaultPlan()
    plan.follow_seed(SeededFaults(1, {"rate_limit": 0.2, "conflict": 0.3}))
    drawn = Counter()
    for _ in range(10_000):
        assert plan.next_fault("GET", EVENTS, None) is None
        fault = plan.next_fault("POST", EVENTS, None)
        drawn[fault and fault.kind] += 1
    assert {kind: round(count / 10_000, 1) for kind, count in drawn.items()} == {"rate_limit": 0.2, "conflict": 0.3, None: 0.5}


def test_a_script_goes_before_a_seed(simulator, billing, send):
    """What the script takes, the seed does not see; clearing ends both and keeps the memory of what was met."""
    billing.meter()
    simulator.seed_faults(1, {"rate_limit_with_retry_after": 1.0}, retry_after_seconds=3)
    simulator.script_faults(["pass", "error_before_effect"])
    assert [send(number) for number in range(4)] == [200, 500, 429, 429]
    simulator.clear_faults()
    assert send(2) == 200
    assert [met["kind"] for met in simulator.faults()["met"]] == ["pass", "error_before_effect"] + ["rate_limit_with_retry_after"] * 2


def test_a_reset_clears_all_faults(simulator, billing, send):
    """Script, seed, what was met, and what was on its way."""
    billing.meter()
    simulator.script_faults(["delayed_delivery", "rate_limit"])
    simulator.seed_faults(1, {"conflict": 1.0})
    assert send(1) is None
    simulator.reset()
    assert simulator.faults() == {"script": [], "seeded": None, "met": [], "delayed": 0}
    assert simulator.release_delayed() == []
    billing.meter()
    assert send(1) == 200


def test_every_kind_of_fault_is_carried_out(simulator, raw, billing, send):
    """None is a word without a deed: each meets a request, and the simulator goes on."""
    billing.meter()
    for number, kind in enumerate(KINDS):
        if not kind.startswith("hang"):
            simulator.script_faults([kind])
            assert send(number) in (None, 200, 409, 429, 500)
    assert send(100) == 200


@pytest.mark.parametrize(
    "path, body",
    [
        ("script", '{"faults": "rate_limit"}'),
        ("script", '{"faults": ["rate_limits"]}'),
        ("script", '{"faults": [{"method": "POST"}]}'),
        ("script", '{"faults": [{"kind": "rate_limit", "retry_after": 1}]}'),
        ("script", '{"faults": [{"kind": "rate_limit_with_retry_after", "retry_after_seconds": -1}]}'),
        ("script", '{"faults": [{"kind": "delayed_delivery", "deliver_after_seconds": "1"}]}'),
        ("script", '{"faults": [{"kind": "conflict", "path": 1}]}'),
        ("seed", '{"seed": 1}'),
        ("seed", '{"seed": "1", "probabilities": {}}'),
        ("seed", '{"seed": 1, "probabilities": {"rate_limits": 0.1}}'),
        ("seed", '{"seed": 1, "probabilities": {"rate_limit": 1.1}}'),
        ("seed", '{"seed": 1, "probabilities": {"rate_limit": 0.6, "conflict": 0.6}}'),
        ("seed", '{"seed": 1, "probabilities": {"pass": 0.5}}'),
    ],
)
def test_a_fault_that_does_not_exist_is_refused(raw, path, body):
    """With a reason, so that a test does not believe to have tested what never happened."""
    reply = raw.call("POST", f"/simulator/faults/{path}", body)
    assert reply.status == 400
    assert reply.body["error"]


def test_the_launcher_tells_why_a_fault_is_refused(simulator):
    """SimulatorFailed names the kinds there are."""
    with pytest.raises(SimulatorFailed, match="is no kind of fault; there are pass, reset_before_effect"):
        simulator.script_faults(["nothing"])
