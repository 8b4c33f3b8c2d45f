"""Usage records are compared by billing period, which is all that Stripe tells of them."""

import pytest
import stripe

from legacy_account import PERIOD
from meters import Meters
from sandbox.stripe_simulator import LEGACY_API_VERSION
from token_billing.errors import StripeUnavailable
from token_billing.model import Sink
from token_billing.windows import HOUR
from unreliable_network import UnreliableNetwork


@pytest.fixture
def sink() -> Sink:
    return Sink.USAGE_RECORDS


def test_a_period_that_agrees_confirms_its_usage_records(billed: Meters) -> None:
    """Of each item; usage that comes later is compared with the whole period again."""
    billed.at(0.5)
    assert billed.compare() == {"reports_confirmed": 2, "reads": 2}
    assert billed.confirmed() == {"a": 50, "b": 70}
    billed.world.use("a", 3)
    billed.world.bill()
    billed.at(1.5)
    assert billed.compare() == {"reports_confirmed": 1, "reads": 1}
    assert billed.confirmed() == {"a": 53, "b": 70}
    billed.at(9)
    assert billed.compare() == {}


def test_a_period_in_doubt_confirms_nothing(billed: Meters, network: UnreliableNetwork) -> None:
    """Equal totals say nothing while something may or may not have arrived."""
    network.always = "request lost"
    billed.world.use("a", 3)
    billed.world.freeze()
    with pytest.raises(StripeUnavailable):
        billed.world.push()
    billed.at(0.5)
    billed.compare()
    assert billed.confirmed() == {"b": 70}


def test_a_period_that_differs_a_day_after_its_end_is_told(billed: Meters) -> None:
    """Somebody else set usage of the item at another second; which record it was cannot be told."""
    world = billed.world
    ((item,),) = world.sql("SELECT stripe_usage_item_id FROM tenants WHERE id = 'a'")
    client = stripe.StripeClient(world.simulator.api_key, base_addresses={"api": world.simulator.base_url})
    client.raw_request(
        "post",
        f"/v1/subscription_items/{item}/usage_records",
        quantity=9,
        timestamp=int(world.window.start.timestamp()) + 3000,
        action="set",
        stripe_version=LEGACY_API_VERSION,
    )
    billed.at(0.5)
    assert billed.compare()["periods_not_settled"] == 1
    assert billed.confirmed() == {"b": 70} and billed.found() == []
    world.set_time(world.window.start + PERIOD + 25 * HOUR)
    billed.compare()
    assert billed.found() == [("surplus_at_stripe", "a", 50, 59)]
