"""The DAG close_billing_periods through real Airflow task runs."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from invoiced_shop import PERIOD_END, InvoicedShop
from sandbox.airflow_runs import AirflowRuns
from task_states import states
from world import World

#: What the fixture `airflow` runs.
DAG_ID = "close_billing_periods"

TEN_MINUTES = timedelta(minutes=10)


def test_a_draft_is_held_told_of_and_let_go(world: World, airflow: AirflowRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its usage is not confirmed: it is held for two days, then a run fails with what is missing, and three hours later it is final."""
    monkeypatch.setenv("BILLING_CLOCK_URL", f"{world.simulator.base_url}/simulator/clock")
    shop = InvoicedShop.opened(world)
    shop.subscribe(bolt="pure")
    shop.use(("bolt", 1_000))

    def run_after(period_end: timedelta) -> dict[str, str]:
        shop.at(PERIOD_END + period_end)
        shop.sync()
        return states(airflow.run(world.clock()))

    assert run_after(TEN_MINUTES) == {"hold_and_release": "success", "check_closings": "success", "ended_well": "success"}
    held_until = datetime.fromtimestamp(shop.invoice("bolt").automatically_finalizes_at, UTC)
    assert held_until > PERIOD_END + timedelta(days=2)
    assert run_after(2 * TEN_MINUTES)["check_closings"] == "success"
    told = run_after(timedelta(hours=48, minutes=10))
    assert told == {"hold_and_release": "success", "check_closings": "failed", "ended_well": "upstream_failed"}
    assert shop.invoice("bolt").status == "draft"
    [(cause, details)] = world.sql("SELECT cause, details FROM billing.discrepancy WHERE cause <> 'short_grace' AND resolved_at IS NULL")
    assert cause == "period_incomplete" and "1,000 tokens" in details
    run_after(timedelta(hours=51, minutes=20))
    shop.at(world.clock() + timedelta(hours=1, minutes=10))
    assert shop.invoice("bolt").status in ("open", "paid")


def test_a_failure_to_hold_is_not_hidden_by_the_check_after_it(world: World, airflow: AirflowRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs all the same, for what is known; the run fails."""
    InvoicedShop.opened(world)
    connection = os.environ["AIRFLOW_CONN_STRIPE_DEFAULT"]
    monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", connection.replace(world.simulator.api_key, "sk_test_of_nobody"))
    run = airflow.run(world.clock())
    assert states(run) == {"hold_and_release": "failed", "check_closings": "success", "ended_well": "upstream_failed"}
    assert run.state == "failed"
