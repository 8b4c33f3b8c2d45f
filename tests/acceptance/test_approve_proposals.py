"""The DAG approve_proposals through real Airflow task runs, where nobody is asked; questions are tested on a running stack."""

from datetime import timedelta

import pytest

from office import Office
from sandbox.airflow_runs import AirflowRuns
from token_billing.proposals import Decision
from world import World

#: What the fixture `airflow` runs.
DAG_ID = "approve_proposals"


def test_an_hourly_run_carries_out_what_was_decided(world: World, airflow: AirflowRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody decided while Stripe could not be reached: that run fails, the next one makes the item, and one after it nothing."""
    monkeypatch.setenv("BILLING_CLOCK_URL", f"{world.simulator.base_url}/simulator/clock")
    office = Office.opened(world)
    office.bill_late()
    office.decide(Decision.INVOICE_ITEM)
    world.simulator.script_faults([{"kind": "reset_before_effect", "path": "/v1/invoiceitems"}])
    for state, items in (("failed", []), ("success", [(500, "usd", "1")]), ("success", [(500, "usd", "1")])):
        office.world.set_time(office.world.clock() + timedelta(minutes=1))
        assert airflow.run(office.world.clock()).state == state
        assert office.items() == items
    assert office.audited() == [("decide", "proposal 1", "ann"), ("apply", "proposal 1", "ann")]
