"""`make up` and `make down`, for real; the tests share one stack, so their order is that of a day with it."""

import os
import signal
from contextlib import suppress
from datetime import datetime

import psutil
import pytest
import stripe

from sandbox.environment import SECRET_KEY
from stack_fixture import DAG_ID, SandboxStack
from token_billing.catalog import PURE
from token_billing.windows import HOUR

pytestmark = pytest.mark.slow

_TIMES = ("logical_date", "data_interval_start", "data_interval_end")


def test_a_new_sandbox_bills_its_past_hours_by_itself(stack: SandboxStack) -> None:
    stack.wait_for_green_runs(6)
    with stack.billing() as db:
        hours = db.execute("SELECT bool_and(billed), date_trunc('hour', created_at) FROM token_usage GROUP BY 2").fetchall()
    billed = [all_billed for all_billed, _ in hours]
    assert billed.count(True) >= 6
    assert billed.count(False) <= 1  # the hour that is still open


def test_every_run_started_late_covers_the_window_that_the_scheduler_would_have_given_it(stack: SandboxStack) -> None:
    runs = [[datetime.fromisoformat(run[name]) for name in _TIMES] for run in stack.api().runs(DAG_ID)]
    assert all((start, end) == (logical_date, logical_date + HOUR) for logical_date, start, end in runs)
    with stack.billing() as db:
        frozen = {start for (start,) in db.execute("SELECT window_start FROM billing.fence")}
    assert len(frozen) >= 6
    assert frozen <= {start for _, start, _ in runs}


def test_usage_goes_on_arriving(stack: SandboxStack) -> None:
    question = "SELECT arrived_until > now() - interval '15 seconds' FROM sandbox.live_usage"
    with stack.billing() as db:
        assert db.execute(question).fetchone() == (True,)


def test_what_happens_at_stripe_is_kept_by_the_webhook(stack: SandboxStack) -> None:
    """And the subscriptions that the sandbox linked itself are followed."""
    client = stripe.StripeClient(SECRET_KEY, base_addresses={"api": stack.simulator_base()}).v1
    [price] = client.prices.list({"lookup_keys": [PURE.lookup_key]}).data
    subscription = client.subscriptions.create({"customer": client.customers.create().id, "items": [{"price": price.id}]})
    kept = "SELECT bool_or(came_by = 'webhook') FROM billing.stripe_event WHERE subscription_id = %s"
    stack.wait_until(kept, [subscription.id])
    stack.wait_until("SELECT count(*) = (SELECT count(*) FROM tenants) FROM billing.subscription_link")


def test_only_this_machine_reaches_the_sandbox(stack: SandboxStack) -> None:
    pids: set[int] = set()
    for process in stack.processes():
        with suppress(psutil.NoSuchProcess):  # tasks come and go
            pids |= {process.pid, *(child.pid for child in process.children(recursive=True))}
    listening = [
        connection.laddr
        for connection in psutil.net_connections("inet")
        if connection.pid in pids and connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert len({address.port for address in listening}) == 3  # Airflow, PostgreSQL, the simulator


def test_a_second_up_says_that_it_is_up(stack: SandboxStack) -> None:
    before = stack.state()
    said = stack.up()
    assert "already up" in said
    assert before.url is not None and before.url in said
    assert stack.state() == before


def test_down_leaves_no_process_also_after_a_kill(stack: SandboxStack) -> None:
    os.kill(stack.state().pids["scheduler"], signal.SIGKILL)
    ended = stack.command("down")
    assert ended.returncode == 0 and "stopped" in ended.stdout, ended.stdout + ended.stderr
    assert stack.processes() == []
    again = stack.command("down")
    assert (again.returncode, again.stdout) == (0, "nothing was running\n")


def test_what_was_billed_stays_billed_in_the_next_life(stack: SandboxStack) -> None:
    ports = (stack.home / "ports.json").read_text()
    stack.up()
    assert (stack.home / "ports.json").read_text() == ports
    assert len(stack.wait_for_green_runs(6)) < 8  # nothing that had its run got another
    with stack.billing() as db:
        fences = db.execute("SELECT max(revision) FROM billing.fence").fetchone()
    assert fences == (0,)


def test_a_killed_supervisor_leaves_nothing_that_down_does_not_end(stack: SandboxStack) -> None:
    os.kill(stack.state().pids["supervisor"], signal.SIGKILL)
    assert stack.command("status").returncode == 1
    assert stack.command("down").returncode == 0
    assert stack.processes() == []
