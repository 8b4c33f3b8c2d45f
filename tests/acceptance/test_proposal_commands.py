"""What people decide by command, with Airflow's own database beside the billing database."""

import json

from typer.testing import CliRunner

from billing_airflow.__main__ import app
from sandbox.airflow_runs import AirflowRuns
from world import World

#: What the fixture `airflow` runs; it brings Airflow's database up to date.
DAG_ID = "report_usage"


def test_an_operator_lists_decides_releases_and_reads_the_audit(world: World, airflow: AirflowRuns) -> None:
    """A quarantine is acknowledged, mended, proposed, and released; another decision about it is refused."""

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(words))
        return done.exit_code, done.output

    world.link("a")
    world.use("a", 11)
    world.use("b", 5)
    world.bill()
    [(aside,)] = world.sql("SELECT id FROM billing.usage_report WHERE state = 'quarantined'")
    assert run("acknowledge", str(aside), "--reason", "a test account", "--by", "ann")[0] == 0
    assert "acknowledged" in run("quarantined")[1]
    code, told = run("release", str(aside), "--reason", "why not", "--by", "ann")
    assert code == 1 and "its cause stands: unknown_tenant" in told
    assert run("proposals") == (0, "")
    world.sql(
        "INSERT INTO tenants (id, name, stripe_customer_id, stripe_subscription_id, stripe_usage_item_id) "
        "SELECT 'b', 'b', stripe_customer_id, stripe_subscription_id, stripe_usage_item_id FROM tenants"
    )
    code, told = run("proposals")
    assert code == 0 and "release of b, 5 tokens" in told and "waits for a decision: release, declined" in told
    [proposal] = json.loads(run("proposals", "--json")[1])
    assert proposal["choices"] == ["release", "declined"]
    number = str(proposal["id"])
    assert run("decide-proposal", number, "--as", "invoice_item", "--by", "ann")[0] == 1
    assert run("decide-proposal", number, "--as", "release", "--by", "ann")[0] == 0
    assert run("decide-proposal", number, "--as", "declined", "--by", "bob")[0] == 1
    seen = ("--reason", "seen in the dashboard", "--by", "ann")
    code, told = run("resolve-proposal", number, "--not-made", *seen)
    assert code == 1 and f"nothing is in doubt about proposal {number}" in told
    assert run("resolve-proposal", number, *seen)[0] == run("resolve-proposal", number, "--not-made", "--made-as", "ii_1", *seen)[0] == 2
    assert world.states()["b"] == "frozen" and "release by ann, done" in run("proposals", "--all")[1]
    assert [one["action"] for one in json.loads(run("audit", "--json")[1])] == ["apply", "release", "decide", "acknowledge"]
    assert f"ann: release report {aside}" in run("audit", f"report {aside}")[1]
