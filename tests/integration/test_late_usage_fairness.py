"""More windows than one run takes on: none waits for ever behind others."""

from collections.abc import Iterable

from token_billing.stages.late_usage import late_windows
from token_billing.windows import HOUR, Window
from world import World, now


def windows_back(world: World, hours: Iterable[int]) -> list[World]:
    return [World(world.dsn, world.simulator, Window(world.window.start - back * HOUR)) for back in hours]


def stuck_windows(world: World, hours: Iterable[int]) -> set[Window]:
    """Windows whose reports outlast every run, as those do that wait for a person."""
    stuck = windows_back(world, hours)
    for one in stuck:
        one.use("a", 5)
        one.freeze()
    return {one.window for one in stuck}


def late(world: World, run: int, most: int) -> list[Window]:
    """What the n-th hourly run takes, from when the reports' own runs are over."""
    return late_windows(world.connect, lambda: now() + (2 + run) * HOUR, most)


def test_new_rows_are_not_kept_waiting_by_stuck_windows_however_old(world: World) -> None:
    """They have half of a run's places, the oldest first."""
    stuck = stuck_windows(world, range(10, 20))
    new = windows_back(world, (1, 2, 3))
    for one in new:
        one.use("a", 7)
    found = late(world, 0, most=4)
    assert [window for window in found if window not in stuck] == [new[2].window, new[1].window]
    assert (len(found), found) == (4, sorted(found))


def test_stuck_windows_are_not_kept_waiting_by_many_new_ones(world: World) -> None:
    """A year of usage that somebody imports late must not use up the hours in which a report can be sent again safely."""
    stuck = stuck_windows(world, (1, 2))
    for one in windows_back(world, range(10, 20)):
        one.use("a", 7)
    assert stuck < set(late(world, 0, most=4))


def test_places_that_one_kind_does_not_need_are_the_other_kinds(world: World) -> None:
    stuck_windows(world, range(10, 16))
    (new,) = windows_back(world, [1])
    new.use("a", 7)
    found = late(world, 0, most=5)
    assert (len(found), found[-1]) == (5, new.window)
    assert len(late(world, 0, most=100)) == 7


def test_each_of_many_stuck_windows_has_its_turn(world: World) -> None:
    """Whatever the others' age, and though none of them ever gets anywhere."""
    stuck = stuck_windows(world, range(1, 11))
    runs = [set(late(world, run, most=2)) for run in range(120)]
    assert all(len(taken) == 2 for taken in runs)
    assert set.union(*runs) == stuck


def test_a_window_with_both_is_taken_once(world: World) -> None:
    (one,) = stuck_windows(world, [3])
    World(world.dsn, world.simulator, one).use("a", 7)
    assert late(world, 0, most=100) == [one]
