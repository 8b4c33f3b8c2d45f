"""Backfills, runs by hand and clears, in a real Airflow and all over each other: whatever overlaps, every token is billed once.

Airflow itself keeps a DAG to one active backfill and a logical date to one run; nothing here relies on it. Two schedulers run."""

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from sandbox.airflow_api import AirflowRefused
from sandbox.environment import ROOT
from stack_fixture import DAG_ID, SandboxStack
from token_billing.adapters.clock import system_clock
from token_billing.windows import HOUR, Window, last_closed_window

pytestmark = pytest.mark.slow

#: What one task does after the other, as Airflow's workers call it.
EVERY_STAGE = """
import sys
from billing_airflow import stages
print("ready", flush=True)
window = sys.stdin.readline().strip()
for shard in stages.freeze(window):
    stages.push(window, shard)
stages.mark_billed(window)
stages.check_conservation(window)
"""


@pytest.fixture(scope="module")
def up(stack: SandboxStack) -> SandboxStack:
    """Billed as far as it can be."""
    stack.up()
    stack.wait_for_green_runs(6)
    return stack


@pytest.fixture(scope="module")
def environment(up: SandboxStack) -> dict[str, str]:
    """What the stack's scheduler has; so would a shell on its machine."""
    return psutil.Process(up.state().pids["scheduler"]).environ()


@pytest.fixture(scope="module")
def second_scheduler(environment: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "-m", "airflow", "scheduler", "--skip-serve-logs"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()


def first_billed_window(stack: SandboxStack) -> Window:
    with stack.billing() as db:
        (start,) = db.execute("SELECT min(window_start) FROM billing.fence").fetchone() or ()
    return Window(start)


def use(stack: SandboxStack, window: Window, tokens: int) -> None:
    """A call of each of the tenants, in the middle of the window."""
    with stack.billing() as db:
        db.execute(
            "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) "
            "SELECT id, 'm', %s, 0, %s FROM tenants WHERE stripe_usage_item_id IS NOT NULL",
            (tokens, window.start + timedelta(minutes=30)),
        )


def run(stack: SandboxStack, logical_date: datetime | None, window: Window | None = None) -> str:
    """Triggers a run, as the UI's button does; its id. `window`: the data interval, where it is not the date's own."""
    body = {"logical_date": logical_date and logical_date.isoformat()}
    if window is not None:
        body |= {"data_interval_start": window.start.isoformat(), "data_interval_end": window.end.isoformat()}
    return str(stack.api().call("POST", f"/dags/{DAG_ID}/dagRuns", body)["dag_run_id"])


def backfill(stack: SandboxStack, first: Window, last: Window) -> int:
    """Creates a backfill that runs finished hours again, as the UI's dialog does; its id."""
    body = {
        "dag_id": DAG_ID,
        "from_date": first.start.isoformat(),
        "to_date": last.start.isoformat(),
        "reprocess_behavior": "completed",
        "max_active_runs": 4,
    }
    return int(stack.api().call("POST", "/backfills", body)["id"])


def tasks(stack: SandboxStack, run_id: str) -> dict[str, dict[str, Any]]:
    found = stack.api().call("GET", f"/dags/{DAG_ID}/dagRuns/{quote(run_id)}/taskInstances")["task_instances"]
    return {one["task_id"]: one for one in found}


def log(stack: SandboxStack, run_id: str, task: dict[str, Any]) -> str:
    path = f"/dags/{DAG_ID}/dagRuns/{quote(run_id)}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
    return json.dumps(stack.api().call("GET", path)["content"])


def wait_until_over(stack: SandboxStack, waiting: str = "", seconds: float = 150) -> dict[str, dict[str, Any]]:
    """The DAG's runs by id, once none is under way, but for one that waits."""
    deadline = time.monotonic() + seconds
    while True:
        runs = {one["dag_run_id"]: one for one in stack.api().runs(DAG_ID)}
        if not any(one["state"] in ("queued", "running") for run_id, one in runs.items() if run_id != waiting):
            return runs
        assert time.monotonic() < deadline, Counter(one["state"] for one in runs.values())
        time.sleep(0.5)


def at_stripe(stack: SandboxStack, first: Window, last: Window) -> dict[tuple[str, datetime], int]:
    """Tokens of the events that Stripe has, by customer and hour."""
    port = json.loads((stack.home / "ports.json").read_text())["simulator"]
    tokens: Counter[tuple[str, datetime]] = Counter()
    after: int | None = 0
    while after is not None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/simulator/meter_events?after={after}") as answer:
            page = json.load(answer)
        for event in page["data"]:
            time_of_event = datetime.fromtimestamp(event["timestamp"], UTC)
            if first.start <= time_of_event < last.end:
                tokens[event["customer"], time_of_event.replace(minute=0, second=0, microsecond=0)] += int(event["value"])
        after = page["next_after"]
    return tokens


def assert_billed_once(stack: SandboxStack, first: Window, last: Window) -> None:
    """Every row of these windows is billed, and Stripe has exactly their tokens, hour for hour."""
    with stack.billing() as db:
        found = db.execute(
            "SELECT stripe_customer_id, date_trunc('hour', created_at, 'UTC') AS hour, sum(input_tokens + output_tokens)::int, "
            "bool_and(billed) FROM token_usage JOIN tenants ON tenants.id = tenant_id "
            "WHERE created_at >= %s AND created_at < %s GROUP BY 1, 2",
            (first.start, last.end),
        ).fetchall()
    assert all(billed for *_, billed in found)
    assert {(customer, hour): tokens for customer, hour, tokens, _ in found if tokens} == at_stripe(stack, first, last)


def test_overlapping_backfills_runs_by_hand_and_clears_bill_each_token_once(
    up: SandboxStack, environment: dict[str, str], second_scheduler: None
) -> None:
    """Over hours that were billed and hours that no run ever covered; and a run of a billed hour says that it did nothing."""
    oldest = first_billed_window(up)
    missed = [Window(oldest.start - back * HOUR) for back in (4, 3, 2, 1)]
    billed = Window(last_closed_window(system_clock()).start - HOUR)
    for number, window in enumerate(missed):
        use(up, window, 5 + number)
    (cleared,) = (one["dag_run_id"] for one in up.api().runs(DAG_ID) if one["logical_date"] == f"{billed.start:%Y-%m-%dT%H:%M:%SZ}")
    # From a shell, from the first missed hour to the first billed one, which this one leaves alone.
    command = ["backfill", "create", "--dag-id", DAG_ID, "--max-active-runs", "2"]
    dates = ["--from-date", missed[0].start.isoformat(), "--to-date", oldest.start.isoformat()]
    created = subprocess.run([sys.executable, "-m", "airflow", *command, *dates], env=environment, capture_output=True, text=True)
    assert created.returncode == 0, created.stdout + created.stderr
    with pytest.raises(AirflowRefused, match="already a running backfill"):
        backfill(up, missed[0], oldest)
    # Somebody stops it half-way and makes another at once, beside what still runs.
    (active,) = (one for one in up.api().call("GET", f"/backfills?dag_id={DAG_ID}")["backfills"] if one["completed_at"] is None)
    up.api().call("PUT", f"/backfills/{active['id']}/cancel")
    backfill(up, missed[0], oldest)
    by_hand = [run(up, window.end + timedelta(minutes=7)) for window in (missed[1], missed[2], oldest)]
    up.api().call("POST", f"/dags/{DAG_ID}/dagRuns/{quote(cleared)}/clear", {"dry_run": False})
    runs = wait_until_over(up)
    # What was running when the first backfill was cancelled, the second left alone; what was waiting it ran.
    assert Counter(one["state"] for one in runs.values()) == {"success": len(runs)}
    assert {one["data_interval_start"] for one in runs.values() if one["dag_run_id"] in by_hand} == {
        f"{window.start:%Y-%m-%dT%H:%M:%SZ}" for window in (missed[1], missed[2], oldest)
    }
    assert_billed_once(up, missed[0], billed)
    for again in (by_hand[-1], cleared):
        ended = tasks(up, again)
        assert ended["push"]["state"] == "skipped"
        assert "holds nothing new: what it held before is frozen already, and is not billed again" in log(up, again, ended["freeze"])


def test_the_same_tasks_twice_at_once_bill_once(up: SandboxStack, environment: dict[str, str]) -> None:
    """As when a scheduler takes a living task for a dead one and another runs it again: two workers do all of an hour's work."""
    window = Window(first_billed_window(up).start - 10 * HOUR)
    use(up, window, 11)
    start = [sys.executable, "-c", EVERY_STAGE]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    workers = [subprocess.Popen(start, env=environment, cwd=ROOT, **pipes) for _ in range(2)]
    for worker in workers:
        while worker.stdout.readline() != "ready\n":
            assert worker.poll() is None
    for worker in workers:
        worker.stdin.write(f"{window.start.isoformat()}\n")
        worker.stdin.flush()
    for worker in workers:
        said, _ = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
    assert_billed_once(up, window, window)


def test_a_run_that_names_no_closed_hour_fails_at_once_and_says_what_to_do(up: SandboxStack) -> None:
    """No data interval, an hour still open, an hour to come: none is tried again, since time alone does not mend the run."""
    now = system_clock()
    still_open = Window(last_closed_window(now).end)
    refused = {
        run(up, None): "this run has no data interval, so it names no hour to bill; trigger it with a logical date, or use a backfill",
        run(up, now, still_open): f"window {still_open} is still open",
        run(up, now - timedelta(seconds=1), Window(still_open.start + 48 * HOUR)): "has not begun",
    }
    runs = wait_until_over(up)
    for run_id, message in refused.items():
        assert runs[run_id]["state"] == "failed"
        freeze = tasks(up, run_id)["freeze"]
        assert (freeze["state"], freeze["try_number"]) == ("failed", 1)
        assert message in log(up, run_id, freeze)
        settle(up, run_id)


def test_airflow_holds_back_what_is_dated_in_the_future(up: SandboxStack) -> None:
    """A backfill is refused, a run by hand does nothing before its date."""
    last = last_closed_window(system_clock())
    to_come = Window(last.end + HOUR)
    with pytest.raises(AirflowRefused, match="future"):
        backfill(up, to_come, Window(to_come.start + 24 * HOUR))
    waiting = run(up, to_come.end)
    assert wait_until_over(up, waiting)[waiting]["state"] in ("queued", "running")
    assert {task["state"] for task in tasks(up, waiting).values()} == {None}
    settle(up, waiting)


def settle(stack: SandboxStack, run_id: str) -> None:
    """Other tests expect that no run has failed or waits."""
    stack.api().call("PATCH", f"/dags/{DAG_ID}/dagRuns/{quote(run_id)}", {"state": "success"})
