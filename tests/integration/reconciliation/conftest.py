"""Two tenants whose usage of an hour is billed, and a shop with invoices, on a virtual clock."""

from datetime import UTC, datetime

import pytest

from invoiced_shop import InvoicedShop
from meters import Meters
from token_billing.windows import Window
from world import World


@pytest.fixture
def meters(world: World) -> Meters:
    """Tenants a and b, linked; clocks stand a few minutes after the window's end."""
    world.window = Window(datetime(2026, 3, 10, 14, tzinfo=UTC))
    world.simulator.reset(clock=world.window.start)
    world.simulator.settings(summary_delay_seconds=0)
    meters = Meters(world)
    meters.at(0.1)
    world.link("a", "b")
    return meters


@pytest.fixture
def billed(meters: Meters) -> Meters:
    """a used 50 tokens in the window, b 70; both are billed."""
    meters.world.use("a", 50)
    meters.world.use("b", 70)
    meters.world.bill()
    return meters


@pytest.fixture
def shop(world: World) -> InvoicedShop:
    """At ten in the morning, without a tenant."""
    return InvoicedShop.opened(world)
