"""Totals that look wrong wait for a person before they are sent; nothing else waits for them."""

from dataclasses import replace

import pytest

from token_billing.errors import DecisionRefused
from token_billing.settings import Gates, PushSettings
from token_billing.stages.hold import decide, held_reports
from token_billing.stages.late_usage import late_windows
from token_billing.windows import HOUR, Window
from world import SETTINGS, World, now

CEILING = replace(SETTINGS, gates=Gates(largest_total=1000))
HISTORY = replace(SETTINGS, gates=Gates(multiple_of_history=10))


def hours_back(world: World, hours: int) -> World:
    return World(world.dsn, world.simulator, Window(world.window.start - hours * HOUR))


def bill(world: World, settings: PushSettings) -> None:
    world.freeze()
    world.push(settings)
    world.mark_billed()


def test_without_a_gate_every_total_is_sent(world: World) -> None:
    """Gates are off until somebody sets them."""
    world.link("a")
    world.use("a", 2**31 - 1)
    bill(world, SETTINGS)
    assert world.marked() == world.at_stripe() == {"a": 2**31 - 1}


def test_an_absurd_total_is_held_and_nobody_else_waits(world: World) -> None:
    """The push succeeds; its tokens stay pending."""
    world.link("absurd", "largest")
    world.use("absurd", 600)
    world.use("absurd", 401)
    world.use("largest", 1000)
    bill(world, CEILING)
    assert world.marked() == world.at_stripe() == {"largest": 1000}
    assert world.states() == {"absurd": "frozen", "largest": "billed"}
    (held,) = held_reports(world.connect)
    assert (held.tenant_id, held.reason, held.token_count, held.limit_tokens) == ("absurd", "absurd_total", 1001, 1000)
    assert late_windows(world.connect, lambda: now() + 5 * HOUR) == [], "nothing can be done before somebody decides"


def test_what_was_held_once_is_not_held_again(world: World) -> None:
    world.link("absurd")
    world.use("absurd", 1001)
    bill(world, CEILING)
    bill(world, CEILING)
    assert len(held_reports(world.connect)) == 1


def test_a_total_beyond_the_tenants_own_history_is_held(world: World) -> None:
    """Ten times the largest hour of the four weeks before; a tenant without a day of history cannot be judged by it."""
    world.link("steady", "new")
    for hours in range(1, 25):
        earlier = hours_back(world, hours)
        earlier.use("steady", 10)
        earlier.bill()
    world.use("steady", 101)
    world.use("new", 10**6)
    bill(world, HISTORY)
    (held,) = held_reports(world.connect)
    assert (held.tenant_id, held.reason, held.limit_tokens) == ("steady", "beyond_history", 100)
    assert world.states() == {"steady": "frozen", "new": "billed"}


def test_late_rows_count_with_what_their_hour_holds_already(world: World) -> None:
    """Else a total would only have to come in two halves."""
    world.link("a")
    world.use("a", 900)
    bill(world, CEILING)
    world.use("a", 101)
    bill(world, CEILING)
    assert [held.token_count for held in held_reports(world.connect)] == [1001]
    assert world.marked() == world.at_stripe() == {"a": 900}


def test_an_approved_total_is_sent_once(world: World) -> None:
    world.link("absurd")
    world.use("absurd", 1001)
    bill(world, CEILING)
    (held,) = held_reports(world.connect)
    decide(world.connect, held.report_id, approve=True, by="ada", clock=now)
    assert late_windows(world.connect, lambda: now() + 5 * HOUR) == [world.window]
    bill(world, CEILING)
    assert world.marked() == world.at_stripe() == {"absurd": 1001}
    assert world.sql("SELECT decision, decided_by FROM billing.hold") == [("approved", "ada")]


def test_a_refused_total_is_quarantined(world: World) -> None:
    world.link("absurd")
    world.use("absurd", 1001)
    bill(world, CEILING)
    (held,) = held_reports(world.connect)
    decide(world.connect, held.report_id, approve=False, by="ada", clock=now)
    bill(world, CEILING)
    assert world.sql("SELECT state, quarantine_reason FROM billing.usage_report") == [("quarantined", "refused_at_gate")]
    assert (held_reports(world.connect), world.at_stripe()) == ([], {})


def test_a_decision_stands(world: World) -> None:
    """Two people may look at the same hold; and nobody decides about what was never held."""
    world.link("absurd")
    world.use("absurd", 1001)
    bill(world, CEILING)
    (held,) = held_reports(world.connect)
    decide(world.connect, held.report_id, approve=False, by="ada", clock=now)
    with pytest.raises(DecisionRefused, match="refused by ada"):
        decide(world.connect, held.report_id, approve=True, by="bob", clock=now)
    with pytest.raises(DecisionRefused, match="not held"):
        decide(world.connect, 10**9, approve=True, by="bob", clock=now)
