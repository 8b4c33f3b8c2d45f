"""However long Stripe, or we, were away: a report whose only answer was lost is counted once, or kept aside once it cannot be."""

from datetime import datetime, timedelta

import pytest

from token_billing.errors import BillingError, StripeUnavailable
from token_billing.model import Sink
from unreliable_network import UnreliableNetwork
from world import World, both_sinks

#: Around Stripe's 24 hours of remembering identifiers, and around its 35 days of taking events.
AWAY = {
    "23 h 59": timedelta(hours=23, minutes=59),
    "24 h 01": timedelta(hours=24, minutes=1),
    "30 h": timedelta(hours=30),
    "34 d 23 h": timedelta(days=34, hours=23),
    "35 d 1 h": timedelta(days=35, hours=1),
}


def lose_the_only_answer(world: World, network: UnreliableNetwork, how: str) -> datetime:
    """One attempt, just after the window closed; returns when."""
    attempted = world.window.end + timedelta(minutes=5)
    world.simulator.reset(clock=attempted)
    world.link("a")
    world.use("a", 5)
    world.set_time(attempted)
    network.always = how
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    return attempted


def bill_for_days(world: World, start: datetime, days: float) -> None:
    """Runs every twelve hours, whatever becomes of them."""
    for hours in range(0, int(days * 24) + 1, 12):
        world.set_time(start + timedelta(hours=hours))
        try:
            world.bill()
        except BillingError:
            continue


@both_sinks
@pytest.mark.parametrize("away", AWAY)
def test_a_report_that_arrived_is_billed_once_after(world: World, network: UnreliableNetwork, away: str) -> None:
    attempted = lose_the_only_answer(world, network, "answer lost")
    bill_for_days(world, attempted + AWAY[away], 2.5)
    assert world.states() == {"a": "billed"}
    assert world.received() == [5]
    assert world.marked() == {"a": 5}


@both_sinks
@pytest.mark.parametrize("away", AWAY)
def test_a_report_that_never_arrived_is_billed_once_or_quarantined_after(world: World, network: UnreliableNetwork, away: str) -> None:
    """A meter event's absence has to hold for a day: when that is known too late for Stripe, it is quarantined and never sent."""
    attempted = lose_the_only_answer(world, network, "request lost")
    bill_for_days(world, attempted + AWAY[away], 2.5)
    too_late = AWAY[away] > timedelta(days=34) and world.sink is Sink.BILLING_METERS
    assert world.sql("SELECT state, quarantine_reason FROM billing.usage_report") == (
        [("quarantined", "older_than_35_days")] if too_late else [("billed", None)]
    )
    assert world.received() == ([] if too_late else [5])
    assert world.marked() == ({} if too_late else {"a": 5})
