"""Random histories around period ends, a few of those that `make closings` lives: nobody goes untold of an invoice without its usage."""

import subprocess
import sys

import pytest

from closings.histories import Histories
from closings.plans import BEGIN
from crash.result import Result
from sandbox.postgres import PostgresServer
from sandbox.services import prepare_billing_database
from sandbox.stripe_simulator.process import StripeSimulator

HISTORIES = range(9, 17)


@pytest.fixture
def closings_dsn(postgres: PostgresServer) -> str:
    """A database that was adopted when everybody subscribes."""
    dsn = postgres.recreate_database("closings")
    prepare_billing_database(dsn, lambda: BEGIN)
    return dsn


def test_nobody_goes_untold_of_an_invoice_without_its_usage(closings_dsn: str, simulator: StripeSimulator) -> None:
    """With outages, late rows, kills and people who finalise by hand; nothing else is told, and what is complete goes early."""
    with Histories(closings_dsn, simulator) as histories:
        lived = [histories.live(seed) for seed in HISTORIES]
    assert not [problem for result in lived for problem in result.problems]
    figures = sum((result.figures for result in lived), start=Result(0).figures)
    must_happen = ("late rows", "final invoices", "released early", "told", "final and incomplete", "told before it was final")
    assert not [name for name in must_happen if not figures[name]], "histories in which too little goes wrong prove too little"


def test_the_oracle_shares_no_code_with_the_product() -> None:
    """Whatever it imports, nothing of the product comes along."""
    program = "import sys, closings.oracle; sys.exit(any(name.startswith('token_billing') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
