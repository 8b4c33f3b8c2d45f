"""The simulator as a process: it starts or says why not, ends when told, and forgets nothing when killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

import sandbox
from sandbox.stripe_simulator.process import SimulatorFailed, StripeSimulator


@pytest.fixture
def make_raw(raw):
    """Raw HTTP and billing for another simulator than the session's."""

    def make(simulator: StripeSimulator):
        return type(raw)(simulator.base_url, simulator.api_key)

    return make


@pytest.fixture
def make_billing(billing, make_raw):
    return lambda simulator: type(billing)(make_raw(simulator))


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox.stripe_simulator", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(sandbox.__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)


def test_a_killed_simulator_forgets_nothing(make_raw, make_billing, tmp_path, now):
    """kill -9, start again on the same folder: objects, events, identifiers, kept answers, settings, clock and next ids are as before."""
    first = StripeSimulator.start(state_dir=tmp_path, clock=now)
    raw, billing = make_raw(first), make_billing(first)
    meter, customer = billing.meter(), billing.customer(name="Ada")
    subscription = billing.subscription(customer, billing.metered_price(meter))
    first.settings(summary_delay_seconds=7)
    sent = raw.post(
        "/v1/billing/meter_events",
        {"event_name": "tokens", "identifier": "i", "payload[stripe_customer_id]": customer, "payload[value]": 5},
        key="k1",
    )
    made = raw.post("/v1/customers", {"name": "Bob"}, key="k2")
    refused = raw.post("/v1/billing/meter_events", {"event_name": "none", "payload[value]": 5}, key="k3")
    billing.send(customer, "five", now, "rejected")
    billing.send(customer, 6, now, "cancelled")
    cancel = {"event_name": "tokens", "type": "cancel", "cancel[identifier]": "cancelled"}
    raw.post("/v1/billing/meter_event_adjustments", cancel)
    later = now + timedelta(minutes=1)
    first.set_clock(later)
    before = [first.meter_events(), raw.get("/v1/customers").body, raw.get(f"/v1/subscriptions/{subscription['id']}").body]
    first.kill()

    with StripeSimulator.start(state_dir=tmp_path, clock="real") as second:
        raw, billing = make_raw(second), make_billing(second)
        assert second.now() == later
        assert second.settings()["summary_delay_seconds"] == 7
        assert [second.meter_events(), raw.get("/v1/customers").body, raw.get(f"/v1/subscriptions/{subscription['id']}").body] == before
        assert billing.total(meter, customer, now, later) == 5
        assert billing.send(customer, 5, now, "i").status == 400
        for path, params, key, answered in (
            (
                "/v1/billing/meter_events",
                {"event_name": "tokens", "identifier": "i", "payload[stripe_customer_id]": customer, "payload[value]": 5},
                "k1",
                sent,
            ),
            ("/v1/customers", {"name": "Bob"}, "k2", made),
            ("/v1/billing/meter_events", {"event_name": "none", "payload[value]": 5}, "k3", refused),
        ):
            replayed = raw.post(path, params, key=key)
            assert (replayed.status, replayed.body) == (answered.status, answered.body)
            assert replayed.headers["idempotent-replayed"] == "true"
        assert billing.customer() not in [one["id"] for one in before[1]["data"]]


def test_a_reset_survives_a_kill_too(make_raw, make_billing, tmp_path, now):
    """What was forgotten stays forgotten, and the clock of the reset holds."""
    first = StripeSimulator.start(state_dir=tmp_path, clock=now)
    make_billing(first).customer()
    first.reset(clock=now - timedelta(days=1))
    customer = make_billing(first).customer(name="after")
    first.kill()
    with StripeSimulator.start(state_dir=tmp_path, clock=now) as second:
        assert second.now() == now - timedelta(days=1)
        data = make_raw(second).get("/v1/customers").body["data"]
        assert [one["id"] for one in data] == [customer]


def test_a_journal_of_an_older_version_is_understood(make_raw, make_billing, tmp_path, now):
    """It lacks what objects hold since then; a subscription goes on where its last invoice left it."""
    first = StripeSimulator.start(state_dir=tmp_path, clock=now)
    subscription = make_billing(first).subscription(make_billing(first).customer(), make_billing(first).price())["id"]
    first.kill()
    journal = tmp_path / "journal.jsonl"
    newer = {"left_charges", "rolled_over_at", "price_since", "marked_uncollectible_at", "pause_behavior", "edits", "starting_balance"}
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for change in [change for line in lines for change in line if change[0] == "put"]:
        change[2] = {name: value for name, value in change[2].items() if name not in newer}
    older = [[change for change in line if change[:2] != ["put", "events"]] for line in lines]
    journal.write_text("".join(json.dumps(line) + "\n" for line in older))
    with StripeSimulator.start(state_dir=tmp_path, clock=now) as second:
        second.set_clock(now + timedelta(days=70))
        invoices = make_raw(second).get("/v1/invoices", {"subscription": subscription}).body["data"]
        assert [one["billing_reason"] for one in invoices] == ["subscription_cycle", "subscription_cycle", "subscription_create"]


def test_a_torn_last_line_is_cut_off(make_raw, tmp_path, now):
    """It was never answered; what follows is written behind the last whole line and read again."""
    first = StripeSimulator.start(state_dir=tmp_path, clock=now)
    made = [make_raw(first).post("/v1/customers").body["id"]]
    first.kill()
    for torn in (b'[["count","customer",2],["put","cust', b"["):
        with (tmp_path / "journal.jsonl").open("ab") as journal:
            journal.write(torn)
        simulator = StripeSimulator.start(state_dir=tmp_path, clock=now)
        raw = make_raw(simulator)
        assert [one["id"] for one in raw.get("/v1/customers").body["data"]] == made[::-1]
        made.append(raw.post("/v1/customers").body["id"])
        simulator.kill()
    assert len(set(made)) == 3


def test_a_damaged_journal_is_not_guessed_at(tmp_path, now):
    """A broken line that is not the last one is an error with a next step."""
    (tmp_path / "journal.jsonl").write_bytes(b'[["count","customer",1]\n[["count","customer",2]]\n')
    with pytest.raises(SimulatorFailed, match=r"line 1, is damaged .* move the folder away"):
        StripeSimulator.start(state_dir=tmp_path, clock=now)


def test_two_simulators_cannot_share_a_folder(tmp_path, now):
    """The second one says who is in the way."""
    with StripeSimulator.start(state_dir=tmp_path, clock=now), pytest.raises(SimulatorFailed, match="in use by another simulator"):
        StripeSimulator.start(state_dir=tmp_path, clock=now)


def test_a_taken_port_is_told_in_one_line():
    """No traceback; exit code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = started("--port", str(taken.getsockname()[1]))
    assert ended.returncode == 1
    assert ended.stderr.startswith("stripe simulator: port ") and "is taken" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--host", "0.0.0.0"], "not a loopback address"),
        (["--host", "192.168.1.1"], "not a loopback address"),
        (["--clock", "noon"], "neither 'real' nor an RFC 3339 instant"),
        (["--api-key", "sk_live_abc"], "never accepts a live key"),
    ],
)
def test_a_bad_option_is_told_in_one_line(arguments, said):
    """Above all, the simulator listens on this machine only."""
    ended = started("--port", "0", *arguments)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(make_raw, now, number):
    """Exit code 0, also with a connection kept open."""
    simulator = StripeSimulator.start(clock=now)
    idle = socket.create_connection(("127.0.0.1", simulator.port))
    os.kill(simulator.pid, number)
    assert simulator._child.wait(10) == 0
    idle.close()
    simulator.stop()


def test_a_simulator_that_died_is_reported(now):
    """By the launcher, with the exit code."""
    simulator = StripeSimulator.start(clock=now)
    os.kill(simulator.pid, signal.SIGKILL)
    simulator._child.wait()
    assert not simulator.is_alive()
    with pytest.raises(SimulatorFailed, match="has died"):
        simulator.now()
    simulator.stop()


def test_the_child_inherits_no_stripe_variable(monkeypatch, now):
    """Whatever key the parent has in its environment stays there."""
    monkeypatch.setenv("STRIPE_SECRET_KEY", "sk_live_secret")
    with StripeSimulator.start(clock=now) as simulator, open(f"/proc/{simulator.pid}/environ", "rb") as environment:
        assert not [variable for variable in environment.read().split(b"\0") if variable.startswith(b"STRIPE_")]


def test_several_keys_can_be_accepted(make_raw, now):
    """And only those."""
    with StripeSimulator.start(clock=now, api_keys=("sk_test_first", "sk_test_second")) as simulator:
        raw = make_raw(simulator)
        statuses = [raw.get("/v1/account", Authorization=f"Bearer sk_test_{name}").status for name in ("first", "second", "sandbox")]
    assert statuses == [200, 200, 401]


def test_a_simulator_restarts_on_its_port(now, tmp_path):
    """A client's base URL stays good across a crash."""
    first = StripeSimulator.start(state_dir=tmp_path, clock=now)
    port = first.port
    first.health()
    first.kill()
    with StripeSimulator.start(state_dir=tmp_path, port=port, clock=now) as second:
        assert second.port == port


def test_a_simulator_ends_when_whoever_started_it_is_killed(tmp_path):
    """kill -9 of the launcher leaves no simulator behind."""
    script = (
        "import os, sys, signal\n"
        "from sandbox.stripe_simulator.process import StripeSimulator\n"
        "print(StripeSimulator.start().pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(sandbox.__file__).parents[1])}
    launcher = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment, check=False)
    pid = int(launcher.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
