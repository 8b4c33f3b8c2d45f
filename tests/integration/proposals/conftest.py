"""A shop whose month is over: some of its usage came too late for the invoice."""

import pytest

from office import Office
from world import World


@pytest.fixture
def office(world: World) -> Office:
    """Tenant a has 6 million tokens on its invoice to come."""
    return Office.opened(world)


@pytest.fixture
def late(office: Office) -> Office:
    """A million tokens more came too late."""
    office.bill_late()
    return office
