"""What several files of these tests stand on."""

from collections.abc import Iterator

import pytest

from unreliable_network import UnreliableNetwork, unreliable_network
from world import World


@pytest.fixture
def network(world: World) -> Iterator[UnreliableNetwork]:
    """Lies between the product and the simulator."""
    with unreliable_network(world.simulator.base_url) as network:
        world.stripe_base = network.base_url
        yield network
