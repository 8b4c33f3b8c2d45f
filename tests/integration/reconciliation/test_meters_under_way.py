"""Comparing meters while everything else goes on: kills, runs at once, revocations, late usage, a Stripe that turns reads away."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from meters import Meters
from sandbox.stripe_simulator.faults import Fault
from token_billing.errors import MetersNotTold, StripeUnavailable
from token_billing.windows import HOUR, Window
from unreliable_network import UnreliableNetwork
from world import SETTINGS

SUMMARIES = "/v1/billing/meters"


class Killed(BaseException):
    """The process is gone."""


def summaries_of(meters: Meters) -> str:
    ((meter_id,),) = meters.world.sql("SELECT DISTINCT meter_id FROM billing.usage_report WHERE tenant_id = 'a'")
    return f"{SUMMARIES}/{meter_id}/event_summaries"


def during_the_read(meters: Meters, network: UnreliableNetwork, happens: Callable[[], object], *, earlier_reads: int = 0) -> None:
    """Once, after Stripe has told its total, and before it arrives here."""
    path, left = summaries_of(meters), earlier_reads

    def answer(told: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 and network.answers.pop(path, None):
            happens()
        return told

    network.answers[path] = answer


def test_a_run_that_dies_after_any_of_its_steps_is_finished_by_the_next(billed: Meters) -> None:
    """Each look at the clock is a step; nothing is confirmed by halves."""
    billed.at(0.5)
    alive = billed.world.clock
    for steps in range(100):
        left = steps

        def clock() -> datetime:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return alive()

        billed.world.clock = clock
        try:
            billed.compare()
        except Killed:
            billed.world.clock = alive
            assert billed.confirmed() in ({}, {"a": 50, "b": 70})
            billed.world.sql("UPDATE billing.usage_report SET confirmed_at = NULL")
            billed.world.sql("DELETE FROM billing.counter_reading")
        else:
            break
    assert steps > 4 and billed.confirmed() == {"a": 50, "b": 70}


def test_two_runs_at_once_confirm_and_find_once(billed: Meters) -> None:
    billed.lose("a")
    for hours in (0.5, 6.6):
        billed.at(hours)
        with ThreadPoolExecutor(max_workers=2) as both:
            for run in [both.submit(billed.compare) for _ in range(2)]:
                run.result()
    assert billed.confirmed() == {"b": 70}
    assert billed.found() == [("missing_at_stripe", "a", 50, 0)]
    assert billed.world.sql("SELECT count(*) FROM billing.discrepancy") == [(1,)]


def test_a_report_that_is_sent_anew_between_reading_and_confirming_is_not_confirmed(billed: Meters, network: UnreliableNetwork) -> None:
    """What Stripe counted was the generation before; the new one is compared anew."""

    def send_anew() -> None:
        billed.revoke("a")
        billed.world.bill()

    during_the_read(billed, network, send_anew)
    billed.at(0.5)
    billed.compare(replace(SETTINGS, concurrency=1))
    assert billed.confirmed() == {"b": 70} and billed.world.states()["a"] == "billed"


def test_usage_that_is_accepted_between_reading_and_confirming_waits_for_the_next_look(billed: Meters, network: UnreliableNetwork) -> None:
    """What was compared is confirmed, what came late is not; then the hour is compared again as a whole."""

    def late_usage() -> None:
        billed.world.use("a", 3)
        billed.world.bill()

    during_the_read(billed, network, late_usage)
    billed.at(0.5)
    billed.compare()
    assert billed.confirmed() == {"a": 50, "b": 70}
    billed.at(1.5)
    billed.compare()
    assert billed.confirmed() == {"a": 53, "b": 70} and billed.differing_hours() == []


def test_a_revocation_between_reading_and_concluding_concludes_nothing(billed: Meters, network: UnreliableNetwork) -> None:
    """The report is not missing any more: it is to be sent."""
    billed.lose("a")
    billed.at(0.5)
    billed.compare()
    during_the_read(billed, network, lambda: billed.revoke("a"), earlier_reads=1)  # the hour's; then comes the minute's
    billed.at(6.6)
    billed.compare()
    assert billed.found() == []


def test_what_may_have_arrived_makes_its_hour_wait(billed: Meters, network: UnreliableNetwork) -> None:
    """Nothing is read of the hour, and nothing of it confirmed, before the answer is known."""
    network.always = "answer lost"
    billed.world.use("a", 3)
    billed.world.freeze()
    with pytest.raises(StripeUnavailable):
        billed.world.push()
    billed.at(7)
    assert billed.compare() == {"hours_agrees": 1, "reports_confirmed": 1, "reads": 1}
    assert billed.confirmed() == {"b": 70} and billed.differing_hours() == []
    network.always = "ok"
    billed.world.bill()
    billed.at(7.5)
    billed.compare()
    assert billed.confirmed() == {"a": 53, "b": 70}


def test_an_hour_in_doubt_between_others_waits(billed: Meters, network: UnreliableNetwork) -> None:
    """One call reads all three; of the one in doubt nothing is concluded."""
    world, doubtful = billed.world, billed.world.window
    network.always = "answer lost"
    world.use("a", 3)
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    for window in (Window(doubtful.start - HOUR), Window(doubtful.end)):
        world.set_time(max(world.clock(), window.end))
        world.window = window
        world.use("a", 11)
        world.bill()
    world.set_time(doubtful.end + 2 * HOUR)
    assert billed.compare()["hours_agrees"] == 3
    assert billed.confirmed() == {"a": 22, "b": 70} and billed.differing_hours() == []


def test_reads_that_are_turned_away_are_repeated(billed: Meters) -> None:
    billed.at(0.5)
    billed.world.simulator.script_faults([Fault(kind="rate_limit", method="GET", path=SUMMARIES)] * 3)
    assert billed.compare()["reports_confirmed"] == 2


def test_what_was_read_is_recorded_before_a_stripe_that_went_away_is_told(billed: Meters) -> None:
    billed.at(0.5)
    billed.world.simulator.script_faults([Fault(kind="error_before_effect", method="GET", path=SUMMARIES)] * 4)
    with pytest.raises(StripeUnavailable):
        billed.compare(replace(SETTINGS, concurrency=1))
    assert billed.confirmed() in ({"a": 50}, {"b": 70})
    billed.at(1.5)
    billed.compare()
    assert billed.confirmed() == {"a": 50, "b": 70}


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ({"aggregated_value": float(2**53)}, "more than a float holds exactly"),
        ({"end_time": 0}, "does not group"),
    ],
)
def test_totals_that_cannot_be_compared_are_told_and_confirm_nothing(
    billed: Meters, network: UnreliableNetwork, spoilt: dict[str, Any], told: str
) -> None:
    network.answers[summaries_of(billed)] = lambda answer: {**answer, "data": [{**one, **spoilt} for one in answer["data"]]}
    billed.at(0.5)
    with pytest.raises(MetersNotTold, match=told):
        billed.compare()
    assert billed.confirmed() == {}


def test_a_stripe_without_summaries_is_told_of(billed: Meters, network: UnreliableNetwork) -> None:
    """An endpoint that is not there is a message, not a crash."""
    network.broken_paths[summaries_of(billed)] = 404
    billed.at(0.5)
    with pytest.raises(MetersNotTold, match="made up for"):
        billed.compare()


def test_a_run_reads_what_has_waited_longest_and_leaves_the_rest_to_the_next(billed: Meters) -> None:
    """No more than it may; what is left is told, and goes first."""
    billed.at(7)
    first = billed.compare(most_reads=1)
    assert first == {"hours_agrees": 1, "reports_confirmed": 1, "reads": 1, "left_for_next_run": 1}
    assert billed.compare(most_reads=1)["reads"] == 1
    assert billed.confirmed() == {"a": 50, "b": 70}
