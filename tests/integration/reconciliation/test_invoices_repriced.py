"""Items whose price changes in the middle of a period are billed for each time by itself."""

from datetime import timedelta

from invoiced_shop import OPENED, InvoicedShop
from world import World


def test_an_item_that_had_a_price_twice_in_a_period_bills_each_time_by_itself(world: World) -> None:
    """Its lines are of the times in which it had the price, which is no wrong period."""
    shop = InvoicedShop.opened(world)
    shop.subscribe(a="pure")
    item = shop.metered_item(shop.subscriptions["a"].id)
    for day, price in enumerate(("managed_ai_bundled", "managed_ai_pure"), 1):
        shop.use(("a", 1_000_000), at=OPENED + timedelta(days=day, hours=-2))
        shop.at(OPENED + timedelta(days=day))
        shop.client.subscriptions.update(shop.subscriptions["a"].id, {"items": [{"id": item, "price": shop.prices[price]}]})
        shop.sync()
    shop.use(("a", 1_000_000), at=OPENED + timedelta(days=3))
    shop.final()
    shop.compare()
    assert shop.found() == {}
