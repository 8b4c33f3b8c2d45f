"""Months of billing, a small world of those that `make months` lives."""

import subprocess
import sys
from datetime import timedelta

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


#: One of each sort: `make months` plants all there are.
KINDS = (
    "an event is lost",
    "an event is rejected beyond the samples",
    "a foreign event in an hour of none",
    "the invoice becomes final under a push",
    "a tier's end is edited",
    "a line is dropped",
    "a row is changed",
)


def test_invoices_are_explained_to_the_cent_and_each_planted_error_is_found_and_nothing_else(
    months_dsn: str, simulator: StripeSimulator
) -> None:
    """With late rows, outages, plan changes and a network that fails now and then."""
    hour, hold = timedelta(hours=1), timedelta(hours=4)
    world = World("planted", 1, 3 + len(KINDS), seed=3, active=0.012, buys_within=hour, kinds=KINDS, longest_hold=hold)
    result = lived(world, months_dsn, simulator)
    assert not result.problems, "\n".join(result.problems)
    assert {one.kind for one in result.planted} == set(KINDS)
    must_happen = ("late rows", "fault: failed read", "charges explained to the cent", "events disowned")
    assert not [name for name in must_happen if not result.figures[name]], "months in which too little goes wrong prove too little"


def test_the_oracle_shares_no_code_with_the_product() -> None:
    """Whatever it imports, nothing of the product comes along."""
    program = "import sys, months.oracle; sys.exit(any(name.startswith('token_billing') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
