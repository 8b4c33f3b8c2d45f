"""The DAG reconcile_meters through real Airflow task runs."""

import os
from datetime import timedelta

import pytest

from invoiced_shop import InvoicedShop
from sandbox.airflow_runs import AirflowRuns
from task_states import states
from world import World

#: What the fixture `airflow` runs.
DAG_ID = "reconcile_meters"


def test_what_differs_fails_the_check_whatever_became_of_the_comparison(
    world: World, airflow: AirflowRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could be read is recorded before a run says what could not: nobody is left untold of it."""
    monkeypatch.setenv("BILLING_CLOCK_URL", f"{world.simulator.base_url}/simulator/clock")
    shop = InvoicedShop.opened(world)
    shop.subscribe(bolt="pure")
    shop.use(("bolt", 1_000))
    shop.send_event("bolt", 7, world.window.start + timedelta(minutes=40))
    for hours, check in ((7, "success"), (7, "failed")):
        shop.at(world.clock() + timedelta(hours=hours))
        ended = "success" if check == "success" else "upstream_failed"
        assert states(airflow.run(world.clock())) == {"compare": "success", "check_discrepancies": check, "ended_well": ended}
    connection = os.environ["AIRFLOW_CONN_STRIPE_DEFAULT"]
    monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", connection.replace(world.simulator.api_key, "sk_test_of_nobody"))
    shop.at(world.clock() + timedelta(hours=1))
    assert states(airflow.run(world.clock())) == {"compare": "failed", "check_discrepancies": "failed", "ended_well": "upstream_failed"}
    world.sql("UPDATE billing.discrepancy SET resolved_at = now(), resolved_by = 'ann'")
    run = airflow.run(world.clock() + timedelta(seconds=1))
    assert states(run) == {"compare": "failed", "check_discrepancies": "success", "ended_well": "upstream_failed"}
    assert run.state == "failed", "a comparison that failed is not hidden by the check after it"
