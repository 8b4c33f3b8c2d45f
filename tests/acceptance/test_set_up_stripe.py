"""The DAG set_up_stripe through real Airflow task runs."""

from collections.abc import Iterator
from typing import Any

import pytest
import stripe
from airflow.models.variable import Variable
from airflow.utils.session import create_session
from sqlalchemy import delete

from billing_airflow.webhook_secrets import WEBHOOK_SECRET_VARIABLE, find_webhook_secrets
from sandbox.airflow_runs import AirflowRuns
from task_states import states
from world import World, now

#: What the fixture `airflow` runs.
DAG_ID = "set_up_stripe"


@pytest.fixture
def no_secret() -> Iterator[None]:
    """Airflow keeps none, before and after."""

    def forget() -> None:
        with create_session() as session:
            session.execute(delete(Variable).where(Variable.key == WEBHOOK_SECRET_VARIABLE))

    forget()
    yield
    forget()


def run(airflow: AirflowRuns, **params: Any) -> Any:
    """A run as the form starts it."""
    return airflow.dag.test(logical_date=now(), run_conf=params)


def shown(run: Any, task: str) -> str:
    """What a task left as XCom."""
    return str(next(one for one in run.get_task_instances() if one.task_id == task).xcom_pull(task_ids=task))


def prices(world: World) -> int:
    client = stripe.StripeClient(world.simulator.api_key, base_addresses={"api": world.simulator.base_url})
    return len(client.v1.prices.list({"limit": 100}).data)


def test_a_run_plans_and_applies_only_when_it_is_asked_to(world: World, airflow: AirflowRuns) -> None:
    """The plan is a diff that the UI shows."""
    planned = run(airflow)
    assert (str(planned.state), states(planned), prices(world)) == ("success", {"plan": "success", "apply": "skipped"}, 0)
    assert "+   price solo: 19.00 USD a month" in shown(planned, "plan")
    applied = run(airflow, apply=True)
    assert (states(applied), prices(world)) == ({"plan": "success", "apply": "success"}, 6)
    assert dict(world.sql("SELECT name, price_id FROM billing.catalogue_price WHERE is_newest"))["solo"] in shown(applied, "apply")
    again = run(airflow, apply=True)
    assert (states(again), prices(world)) == ({"plan": "success", "apply": "success"}, 6)
    assert shown(again, "plan").endswith("unchanged: 11.")


def test_a_wrong_setting_fails_the_run_before_anything_is_made(world: World, airflow: AirflowRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_PRICE_ID_TEAM", "price_of_another_account")
    failed = run(airflow, apply=True)
    assert (str(failed.state), states(failed)["plan"], prices(world)) == ("failed", "failed", 0)


def test_the_webhooks_secret_is_kept_where_the_webhook_finds_it(world: World, airflow: AirflowRuns, no_secret: None) -> None:
    """An endpoint that is there already needs no other secret; what the runs show has none."""
    url = "https://airflow.example.com/api/billing/webhook"
    applied = [run(airflow, apply=True, webhook_url=url) for _ in range(2)]
    assert [states(one)["apply"] for one in applied] == ["success", "success"]
    [secret] = find_webhook_secrets()
    assert secret.startswith("whsec_")
    assert "+ webhook endpoint" in shown(applied[0], "apply") and not any(secret in shown(one, "apply") for one in applied)
