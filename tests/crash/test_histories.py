"""Random histories, a small budget of those that `make crash` lives through: nothing lost, nothing twice."""

from collections import Counter

from crash.histories import lived
from crash.plans import make_plan
from sandbox.stripe_simulator.process import StripeSimulator

#: Enough that every kind of fault happens, and still some seconds.
SEEDS = range(1, 21)


def test_every_token_is_billed_once_in_random_histories(billing_dsn: str, simulator: StripeSimulator) -> None:
    """The law also holds at every instant at which somebody looks."""
    figures: Counter[str] = Counter()
    for result in lived(billing_dsn, simulator, SEEDS):
        assert not result.problems, f"{result.how_to_repeat}: {result.problems}"
        figures += result.figures
    must_happen = (
        "kills at a statement",
        "kills at a commit",
        "kills at a request",
        "answer lost",
        "request lost",
        "effects after recovery began",
        "late rows",
        "long writers committed",
        "writers rolled back",
        "outages",
        "runs beside another",
        "stored errors replayed",
        "days of read-backs",
        "looks at the law",
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
