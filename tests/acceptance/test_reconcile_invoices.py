"""The DAG reconcile_invoices through real Airflow task runs, and what has it run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from billing_airflow.__main__ import app
from invoiced_shop import InvoicedShop
from sandbox.airflow_runs import AirflowRuns
from task_states import states
from token_billing.windows import HOUR
from world import World

#: What the fixture `airflow` runs.
DAG_ID = "reconcile_invoices"


def test_an_invoice_that_became_final_is_told_of_once_and_compared(
    world: World, airflow: AirflowRuns, runs_of: Callable[[str], AirflowRuns], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stripe's events have the comparison run, which passes; a cent more on the invoice fails the next one, and stands in the statement."""
    monkeypatch.setenv("BILLING_CLOCK_URL", f"{world.simulator.base_url}/simulator/clock")
    shop = InvoicedShop.opened(world)
    shop.subscribe(bolt="pure")
    shop.use(("bolt", 1_000_000))
    shop.at(shop.period_end + (shop.world.window.end - shop.world.window.start))
    syncs = runs_of("sync_subscriptions")
    told = [states(syncs.run(world.clock()))["tell_of_final_invoices"] for _ in range(2)]
    assert told == ["success", "skipped"]

    assert states(airflow.run(world.clock())) == {"read_invoices": "success", "compare": "success", "check_discrepancies": "success"}
    shop.at(world.clock() + HOUR)  # a reading counts that is newer than the one before
    world.simulator.change_line(shop.invoice("bolt").id, amount=2_001)
    assert states(airflow.run(world.clock())) == {"read_invoices": "success", "compare": "success", "check_discrepancies": "failed"}
    assert shop.found() == {"bolt": ["wrong_price"]}

    page = tmp_path / "statement.html"
    runs = [CliRunner().invoke(app, command) for command in (["statements"], ["statement"], ["statement", "--html", "-o", str(page)])]
    assert [run.exit_code for run in runs] == [0, 0, 0], runs
    assert "1 differences" in runs[0].output and "wrong_price" in runs[1].output and "20.01 USD" in page.read_text()
    assert CliRunner().invoke(app, ["statement", "99"]).exit_code == 1
