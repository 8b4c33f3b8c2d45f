"""Random histories, a small budget of those that `make crash` lives through: nothing lost, nothing twice."""

import subprocess
import sys
from collections import Counter

from crash.histories import lived
from crash.planner import make_plan
from sandbox.stripe_simulator.process import StripeSimulator

#: Enough that every kind of fault happens, and still some seconds.
SEEDS = range(43, 55)


def test_every_token_is_billed_once_in_random_histories(billing_dsn: str, simulator: StripeSimulator) -> None:
    """The law also holds at every instant at which somebody looks."""
    figures: Counter[str] = Counter()
    for result in lived(billing_dsn, simulator, SEEDS):
        assert not result.problems, f"{result.how_to_repeat}: {result.problems}"
        figures += result.figures
    must_happen = (
        "kill: at a statement",
        "kill: at a commit",
        "kill: at a request",
        "fault: answer lost",
        "fault: request lost",
        "effects after recovery began",
        "late rows",
        "long writers committed",
        "writers rolled back",
        "outages",
        "runs beside another",
        "runs cleared from a later stage",
        "runs with a wrong clock",
        "clock jumps",
        "events disowned",
        "reports revoked",
        "foreign events",
        "pauses",
        "held reports approved",
        "held reports refused",
        "tenants relinked",
        "restores",
        "stored errors replayed",
        "days of read-backs",
        "looks at an instant",
        "at Stripe: other items",
        "at Stripe: other price",
        "at Stripe: no tokens",
        "at Stripe: leave",
        "at Stripe: buy",
        "syncs that failed",
        "runs without the facts",
        "reports of a part of an hour",
        "reports sent before a fact came",
        "kept aside: after_subscription",
        "kept aside: item_ended",
        "kept aside: period_invoiced",
    )
    assert not [name for name in must_happen if not figures[name]], "histories in which too little goes wrong prove too little"


def test_the_histories_catch_the_job_this_product_replaces(billing_dsn: str, simulator: StripeSimulator) -> None:
    """It loses tokens and doubles tokens in the same histories, so the comparison can fail."""
    results = list(lived(billing_dsn, simulator, range(1, 9), "replaced"))
    assert sum(result.lost_tokens for result in results) > 0
    assert sum(result.doubled_tokens for result in results) > 0
    assert all(result.problems for result in results)


def test_a_seed_is_always_the_same_history() -> None:
    assert make_plan(7) == make_plan(7)
    assert make_plan(7) != make_plan(8)


def test_the_oracle_shares_no_code_with_the_product() -> None:
    """Whatever it imports, nothing of the product comes along."""
    program = "import sys, crash.oracle, crash.subscription_oracle; sys.exit(any(name.startswith('token_billing') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
