"""One switch pauses all sending and nothing else."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from token_billing.errors import PauseRefused, SendingPaused
from token_billing.stages.late_usage import late_windows
from token_billing.stages.pause import pause_sending, resume_sending
from unreliable_network import UnreliableNetwork, unreliable_network
from world import SETTINGS, World, now


@pytest.fixture
def network(world: World) -> Iterator[UnreliableNetwork]:
    with unreliable_network(world.simulator.base_url) as network:
        yield network


def pause(world: World, reason: str = "Stripe has an incident") -> None:
    pause_sending(world.connect, by="ada", reason=reason, clock=now)


def test_nothing_is_sent_while_sending_is_paused(world: World) -> None:
    """Freezing goes on, so does marking; the error tells who paused it, and why."""
    world.link("a", "b")
    world.use("a", 5)
    world.freeze()
    world.push()
    pause(world)
    world.use("b", 7)
    world.freeze()
    with pytest.raises(SendingPaused, match=r"ada.*Stripe has an incident"):
        world.push()
    world.mark_billed()
    assert world.marked() == world.at_stripe() == {"a": 5}
    assert world.states() == {"a": "billed", "b": "frozen"}


def test_after_resuming_everything_is_sent_once(world: World) -> None:
    world.link("a")
    world.use("a", 5)
    pause(world)
    world.freeze()
    with pytest.raises(SendingPaused):
        world.push()
    resume_sending(world.connect, by="bob", clock=now)
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}
    assert late_windows(world.connect, now) == []
    assert world.sql("SELECT paused_by, reason, resumed_by FROM billing.pause") == [("ada", "Stripe has an incident", "bob")]


def test_a_push_that_is_under_way_stops_at_its_next_chunk(world: World, network: UnreliableNetwork) -> None:
    """And what it has sent by then stays accepted."""
    world.link(*(f"t{n}" for n in range(12)))
    for n in range(12):
        world.use(f"t{n}", 5)
    sent = World(world.dsn, world.simulator, world.window, stripe_base=network.base_url)

    def pause_first() -> str:
        pause(world)
        return "ok"

    network.troubles.append(pause_first)
    sent.freeze()
    with pytest.raises(SendingPaused):
        sent.push(replace(SETTINGS, largest_chunk=2))
    world.mark_billed()
    assert 0 < len(world.simulator.meter_events()) < 12
    assert world.marked() == world.at_stripe()


def test_pausing_twice_and_resuming_what_is_not_paused_are_refused(world: World) -> None:
    """With who paused it, so that nobody resumes what another paused without knowing."""
    with pytest.raises(PauseRefused, match="is not paused"):
        resume_sending(world.connect, by="bob", clock=now)
    pause(world, "first")
    with pytest.raises(PauseRefused, match=r"ada.*first"):
        pause(world, "second")
