"""A shop whose clock stands at ten in the morning, with no tenant yet."""

from datetime import UTC, datetime

import pytest

from shop import Shop
from token_billing.windows import Window
from world import World

#: Nothing is in the simulator's memory before it.
OPENED = datetime(2026, 3, 10, 10, 0, tzinfo=UTC)


@pytest.fixture
def shop(world: World) -> Shop:
    world.simulator.reset(clock=OPENED)
    world.set_time(OPENED)
    world.window = Window(OPENED)
    return Shop(world)
