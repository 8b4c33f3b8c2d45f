"""A tenant whose billing period ends in the middle of an hour."""

import pytest

from month_end import BEGUN, MonthEnd
from shop import Shop
from world import World


@pytest.fixture
def begun(world: World) -> MonthEnd:
    """Pure, bought just now."""
    world.simulator.reset(clock=BEGUN)
    world.simulator.settings(summary_delay_seconds=0)
    world.set_time(BEGUN)
    shop = Shop(world)
    shop.add_tenants("acme")
    month = MonthEnd(shop, shop.buy("pure", client_reference_id="acme").id)
    shop.sync()
    return month


@pytest.fixture
def month(begun: MonthEnd) -> MonthEnd:
    """An hour before the end of the first period; the first run ever has been."""
    begun.at(-65)
    begun.close()
    return begun
