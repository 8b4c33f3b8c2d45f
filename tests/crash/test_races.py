"""Runs, a backfill, a cleared run and the late usage run race on one hour while usage is recorded: all is billed once."""

from pathlib import Path

from crash.races import Races
from sandbox.stripe_simulator.process import StripeSimulator

#: Of those that `make races` runs, so many as take some seconds.
SEEDS = range(1, 9)


def test_whatever_the_schedule_all_is_billed_as_if_one_came_after_the_other(
    billing_dsn: str, simulator: StripeSimulator, tmp_path: Path
) -> None:
    """The law also holds at every instant at which somebody looks."""
    races = Races(billing_dsn, simulator, tmp_path)
    for seed in SEEDS:
        assert not races.race(seed), f"make races SCHEDULES=1 SEED={seed}; its last steps: {races.trace[-40:]}"
    races.close()
    assert (races.figures.lost_tokens, races.figures.doubled_tokens) == (0, 0)
    assert races.figures.late_reports and races.figures.looks, "schedules in which nobody meets anybody prove too little"
