"""Months of billing, a small world of those that `make months` lives: every final invoice is explained to the cent."""

import subprocess
import sys

import pytest

from months.planner import BEGIN
from months.worlds import World, lived
from sandbox.postgres import PostgresServer
from sandbox.services import prepare_billing_database
from sandbox.stripe_simulator.process import StripeSimulator


@pytest.fixture
def months_dsn(postgres: PostgresServer) -> str:
    """A database that was adopted on the months' first day."""
    dsn = postgres.recreate_database("months")
    prepare_billing_database(dsn, lambda: BEGIN)
    return dsn


def test_every_final_invoice_is_explained_to_the_cent_and_nothing_is_flagged(months_dsn: str, simulator: StripeSimulator) -> None:
    """With late rows, outages, plan changes and a network that fails now and then."""
    result = lived(World("clean", 2, 5, seed=3, active=0.02), months_dsn, simulator)
    assert not result.problems, "\n".join(result.problems)
    must_happen = ("late rows", "fault: answer lost", "charges explained to the cent", "at Stripe: other items")
    assert not [name for name in must_happen if not result.figures[name]], "months in which too little goes wrong prove too little"


def test_the_oracle_shares_no_code_with_the_product() -> None:
    """Whatever it imports, nothing of the product comes along."""
    program = "import sys, months.oracle; sys.exit(any(name.startswith('token_billing') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
