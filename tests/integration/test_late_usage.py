"""What no run has billed is found, whenever it came, and billed by the same stages."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from token_billing.errors import ReportsLeftOver, StripeUnavailable
from token_billing.model import Clock
from token_billing.stages.late_usage import future_usage, late_windows
from token_billing.windows import HOUR, Window
from unreliable_network import UnreliableNetwork, unreliable_network
from world import World, now


@pytest.fixture
def network(world: World) -> Iterator[UnreliableNetwork]:
    with unreliable_network(world.simulator.base_url) as network:
        yield network


def hours_back(world: World, hours: int) -> World:
    """The same world, an earlier window."""
    return World(world.dsn, world.simulator, Window(world.window.start - hours * HOUR))


def late(world: World, clock: Clock = now) -> list[Window]:
    return late_windows(world.connect, clock)


def test_rows_that_came_after_their_hour_was_billed_are_billed_once(world: World) -> None:
    """As the hour's next revision."""
    world.link("a")
    world.use("a", 5)
    world.bill()
    assert late(world) == []
    world.use("a", 7)
    assert late(world) == [world.window]
    world.bill()
    assert late(world) == []
    assert world.marked() == world.at_stripe() == {"a": 12}


def test_an_hour_that_no_run_ever_covered_is_found(world: World) -> None:
    """A run that was never made leaves no fence and no failure behind, only rows."""
    world.link("a")
    skipped = hours_back(world, 30)
    skipped.use("a", 5)
    assert late(world) == [skipped.window]
    skipped.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}


def test_an_hour_that_is_still_open_is_not_late(world: World) -> None:
    world.use("a", 5, at=now())
    assert late(world) == []


def test_rows_seen_by_a_fence_are_not_late_again(world: World) -> None:
    """Quarantined usage stays unbilled for long."""
    world.use("nobody", 5)
    world.bill()
    assert world.states() == {"nobody": "quarantined"}
    assert late(world) == []


def test_a_row_of_a_transaction_older_than_the_fence_is_late(world: World) -> None:
    """It began before the freeze and committed after it."""
    world.link("a")
    world.use("a", 5)
    with world.connect() as writer:
        world.use("a", 7, db=writer)
        world.bill()
        assert late(world) == [], "nobody can see it yet"
    assert late(world) == [world.window]
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 12}


def test_an_hour_whose_reports_wait_for_an_answer_is_taken_up_again(world: World, network: UnreliableNetwork) -> None:
    """Its run has used up its tries; nobody needs to remember it."""
    world.link("a")
    world.use("a", 5)
    lost = World(world.dsn, world.simulator, world.window, stripe_base=network.base_url)
    network.always = "answer lost"
    with pytest.raises((StripeUnavailable, ReportsLeftOver)):
        lost.bill()
    assert late(world) == [], "its own run is still at it"
    assert late(world, lambda: now() + 2 * HOUR) == [world.window]
    world.bill()
    assert late(world, lambda: now() + 2 * HOUR) == []
    assert world.marked() == world.at_stripe() == {"a": 5}


def test_an_hour_whose_reports_were_accepted_but_not_marked_is_taken_up_again(world: World) -> None:
    world.link("a")
    world.use("a", 5)
    world.freeze()
    world.push()
    assert late(world, lambda: now() + 2 * HOUR) == [world.window]


def test_the_oldest_come_first_and_a_run_takes_no_more_than_it_can_show(world: World) -> None:
    """The rest is the next run's."""
    for hours in (5, 3, 9):
        hours_back(world, hours).use("a", 5)
    assert late_windows(world.connect, now, most=2) == [hours_back(world, 9).window, hours_back(world, 5).window]


def test_usage_that_came_more_than_35_days_late_is_quarantined_with_its_tokens(world: World) -> None:
    world.link("a")
    ancient = hours_back(world, 36 * 24)
    ancient.use("a", 5)
    assert late(world) == [ancient.window]
    assert ancient.bill()["quarantined"] == 5
    assert world.sql("SELECT quarantine_reason FROM billing.usage_report") == [("older_than_35_days",)]
    assert (late(world), world.at_stripe()) == ([], {})


def test_rows_dated_in_the_future_are_told_and_billed_when_their_hour_has_closed(world: World) -> None:
    world.link("a")
    ahead = Window(world.window.end + 2 * HOUR)
    world.use("a", 5, at=ahead.start + timedelta(minutes=30))
    world.use("a", 7, at=ahead.start + timedelta(minutes=40))
    world.use("a", 9, at=now())
    assert future_usage(world.connect, now) == {"a": (2, 12)}
    assert late(world) == []
    later = World(world.dsn, world.simulator, ahead, clock=lambda: ahead.end)
    assert late(world, later.clock) == [Window(world.window.end), ahead]
    world.simulator.set_clock(ahead.end)
    later.bill()
    assert world.marked() == {"a": 12}
    assert future_usage(world.connect, later.clock) == {}
