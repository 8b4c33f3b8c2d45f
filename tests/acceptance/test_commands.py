"""Operators' commands, with Airflow's own database beside the billing database."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from billing_airflow.__main__ import app
from sandbox.airflow_runs import AirflowRuns
from sandbox.environment import ROOT
from sandbox.postgres import PostgresServer
from world import World

#: What the fixture `airflow` runs; it brings Airflow's database up to date.
DAG_ID = "report_usage"
EVIDENCE = "meter_event_customer_not_found: no customer"


@pytest.mark.parametrize(
    ("option", "state", "cause"),
    [
        ([], "frozen", "operator"),
        (["--quarantine"], "quarantined", "operator"),
        (["--missing-in-summary"], "frozen", "settled_summary"),
    ],
)
def test_an_operator_revokes_by_a_command(world: World, airflow: AirflowRuns, option: list[str], state: str, cause: str) -> None:
    """Done again, it refuses and ends with an error."""
    world.link("a", "b")
    world.use("a", 11)
    world.use("b", 7)
    world.bill()
    (report_id,) = world.sql("SELECT id FROM billing.usage_report WHERE tenant_id = 'a'")[0]
    command = ["revoke", str(report_id), "--evidence", EVIDENCE, "--by", "bob", *option]
    runs = [CliRunner().invoke(app, command) for _ in range(2)]
    assert [run.exit_code for run in runs] == [0, 1], runs
    assert f"is {state}" in runs[1].output
    assert world.states() == {"a": state, "b": "billed"}
    assert world.sql("SELECT cause, evidence, revoked_by FROM billing.revocation") == [(cause, EVIDENCE, "bob")]


def test_a_command_that_cannot_read_airflows_database_changes_nothing(world: World, airflow: AirflowRuns, postgres: PostgresServer) -> None:
    """Without the mark that is kept there, an older copy could pass for the original."""
    world.link("a")
    world.use("a", 11)
    world.bill()
    empty = postgres.recreate_database("empty").replace("postgresql://", "postgresql+psycopg2://")
    environment = {**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": empty, "PYTHONPATH": f"{ROOT}/include:{ROOT}/plugins"}
    command = [sys.executable, "-m", "billing_airflow", "revoke", "1", "--evidence", EVIDENCE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Airflow's database could not be read" in done.stderr, done.stdout + done.stderr
    assert world.states() == {"a": "billed"}


def test_an_operator_excludes_a_tenant_and_lists_and_settles_discrepancies(world: World, airflow: AirflowRuns) -> None:
    """Each refuses what makes no sense, and says so."""

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(words))
        return done.exit_code, done.output

    assert run("exclude", "a", "--reason", "free") == (
        1,
        "not excluded: 'free' is no reason to exclude a tenant; it is internal or complimentary\n",
    )
    assert run("exclude", "a", "--reason", "internal", "--by", "ann", "--since", "2026-01-01T00:00Z")[0] == 0
    assert run("exclude", "a", "--reason", "internal")[0] == 1
    assert run("include", "a")[0] == 0 and run("include", "a")[0] == 1
    assert world.sql("SELECT reason, excluded_by FROM billing.excluded_tenant") == [("internal", "ann")]
    columns = "(cause, tenant_id, stripe_id, details, found_at)"
    world.sql(f"INSERT INTO billing.discrepancy {columns} VALUES ('link_conflict', 'a', 'sub_1', 'x', now())")
    code, listed = run("discrepancies")
    assert code == 0 and "link_conflict, tenant a, Stripe's sub_1: x" in listed
    assert '"cause": "link_conflict"' in run("discrepancies", "--json")[1]
    assert run("settle", "1", "--by", "ann")[0] == 0 and run("settle", "1")[0] == 1
    assert run("discrepancies") == (0, "")
