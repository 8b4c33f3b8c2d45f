"""kill -9 at every SQL statement and every request of a run: the next run finishes it, nothing lost and nothing twice."""

from random import Random

import pytest

from crash.kill_points import KillPoints, Scenario, different
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.model import Sink

#: `make kill-points` kills at all places and all pairs of them; here the first run alone dies everywhere, the others in samples.
PLACES_OF_ANOTHER_SCENARIO = 40
PAIRS_OF_A_SCENARIO = 8


@pytest.mark.parametrize("scenario", Scenario)
def test_a_run_killed_anywhere_is_finished_by_the_next(scenario: Scenario, billing_dsn: str, simulator: StripeSimulator) -> None:
    """Each kill has an hour of its own; the places are found by running, not listed."""
    proof = KillPoints(billing_dsn, simulator)
    places = proof.places(scenario)
    assert len(places) > 80
    if scenario is not Scenario.FIRST_RUN:
        places = Random(1).sample(places, PLACES_OF_ANOTHER_SCENARIO)
    proof.one_deep(scenario, places)
    figures = proof.close()
    assert not figures.problems
    assert (figures.lost_tokens, figures.doubled_tokens) == (0, 0)
    assert figures.outlived <= 0.05 * len(places), "most runs pass the place at which they were to be killed"


@pytest.mark.parametrize("scenario", Scenario)
def test_a_run_that_sends_usage_records_killed_anywhere_is_finished_by_the_next(
    scenario: Scenario, billing_dsn: str, simulator: StripeSimulator
) -> None:
    """The same for the other sink, whose reports are set again and never get another name."""
    proof = KillPoints(billing_dsn, simulator, Sink.USAGE_RECORDS)
    places = Random(1).sample(proof.places(scenario), PLACES_OF_ANOTHER_SCENARIO)
    proof.one_deep(scenario, places)
    figures = proof.close()
    assert not figures.problems
    assert (figures.lost_tokens, figures.doubled_tokens) == (0, 0)


def test_a_healing_run_killed_anywhere_is_healed_by_a_third(billing_dsn: str, simulator: StripeSimulator) -> None:
    """A sample, the same every time as far as the places are."""
    rng = Random(1)
    proof = KillPoints(billing_dsn, simulator)
    for scenario in Scenario:
        firsts = rng.sample(proof.places(scenario), PAIRS_OF_A_SCENARIO)
        seconds = proof.one_deep(scenario, firsts)
        proof.two_deep(scenario, [(first, rng.choice(different(seconds[first]))) for first in firsts])
    figures = proof.close()
    assert not figures.problems
    assert (figures.lost_tokens, figures.doubled_tokens) == (0, 0)
    assert figures.outlived <= 0.05 * figures.kills, "most runs pass the place at which they were to be killed"
