"""Where tenants are linked by their columns alone, invoices are held against what Stripe said of their items when it was asked."""

from datetime import timedelta

import pytest

from invoiced_shop import OPENED, InvoicedShop
from token_billing.stages.reconcile_invoices import compare_invoices
from token_billing.windows import HOUR

RUN = timedelta(minutes=2)
DAY = 86_400


def link(shop: InvoicedShop, *tenants: str) -> None:
    """Tenants of whom the application says which item bills them, and nobody followed their subscriptions."""
    for tenant in tenants:
        customer = shop.client.customers.create({"email": f"{tenant}@example.com"}).id
        bought = shop.client.subscriptions.create({"customer": customer, "items": [{"price": shop.prices["managed_ai_pure"]}]})
        shop.subscriptions[tenant] = bought
        shop.world.sql("INSERT INTO tenants VALUES (%s, %s, %s, %s, %s)", tenant, tenant, customer, bought.id, shop.metered_item(bought.id))


def reprice(shop: InvoicedShop, tenant: str, price: str) -> None:
    bought = shop.subscriptions[tenant].id
    shop.client.subscriptions.update(bought, {"items": [{"id": shop.metered_item(bought), "price": shop.prices[price]}]})


def final(shop: InvoicedShop, months: int = 1) -> None:
    """So many months' invoices are final; nothing is synced."""
    shop.at(shop.period_end + (months - 1) * timedelta(days=30) + HOUR + RUN)


#: By tenant, how far its line is shifted.
SHIFTED = {"hour": 3600, "back": -3600, "day": DAY, "days": 20 * DAY, "later": 30 * DAY, "next": 31 * DAY, "before": -31 * DAY}


@pytest.mark.parametrize("is_synced", [True, False])
def test_a_shifted_line_is_of_a_wrong_period_however_far_and_nothing_else(shop: InvoicedShop, is_synced: bool) -> None:
    """No hour near a bound was used. The invoice after it is right, or lacks its line, although the shifted one may name its time."""
    tenants = ["right", *SHIFTED]
    if is_synced:
        shop.subscribe(**dict.fromkeys(tenants, "pure"))
    else:
        link(shop, *tenants)
    shop.use(*((tenant, 6_000_000) for tenant in tenants), at=OPENED + 50 * HOUR)
    final(shop)
    for tenant, seconds in SHIFTED.items():
        shop.world.simulator.shift_period(shop.invoice(tenant).id, seconds)
    if is_synced:
        shop.sync()
    shop.compare()
    assert shop.found() == {tenant: ["wrong_period"] for tenant in SHIFTED}
    shop.use(*((tenant, 2_000_000) for tenant in tenants), at=shop.world.clock() + timedelta(days=3))
    final(shop, 2)
    if is_synced:
        shop.sync()
    shop.world.simulator.shift_period(shop.invoice("right").id, -20 * DAY)
    shop.world.simulator.drop_line(shop.invoice("next").id)
    shop.compare()
    assert shop.found() == {tenant: ["wrong_period"] for tenant in tenants} | {"next": ["missing_hour", "wrong_period"]}


def test_an_invoice_without_a_line_of_an_item_that_nobody_follows_lacks_its_usage(shop: InvoicedShop) -> None:
    link(shop, "right", "dropped", "unused")
    shop.use(("right", 6_000_000), ("dropped", 6_000_001))
    final(shop)
    shop.world.simulator.drop_line(shop.invoice("dropped").id)
    shop.world.simulator.drop_line(shop.invoice("unused").id)
    shop.compare()
    assert shop.found() == {"dropped": ["missing_hour"]}
    final(shop, 2)
    shop.compare()
    assert shop.found() == {"dropped": ["missing_hour"]}, "once, and in no month without usage"


def test_of_an_item_whose_period_stripe_does_not_tell_the_invoice_says_which_one_it_closes(shop: InvoicedShop) -> None:
    """As it was noted when usage was sent, or drafts were looked at."""
    link(shop, "right", "dropped")
    shop.use(("right", 6_000_000), ("dropped", 6_000_001))
    final(shop)
    shop.world.simulator.drop_line(shop.invoice("dropped").id)
    shop.world.sql("UPDATE billing.item_reading SET period_start = NULL, period_end = NULL")
    for tenant in ("right", "dropped"):
        item, invoice = shop.metered_item(shop.subscriptions[tenant].id), shop.invoice(tenant).id
        period = OPENED, shop.period_end, invoice, shop.world.clock()
        shop.world.sql(
            "INSERT INTO billing.invoiced_period VALUES (%s, %s, %s, %s, 'paid', NULL, %s)", item, period[2], *period[:2], period[3]
        )
    shop.compare()
    assert shop.found() == {"dropped": ["missing_hour"]}


@pytest.mark.parametrize("is_synced", [True, False])
def test_an_invoice_that_does_not_say_why_it_was_made_closes_what_had_ended_then(shop: InvoicedShop, is_synced: bool) -> None:
    """So the usage that it lacks is missing; a subscription's first invoice closes nothing."""
    if is_synced:
        shop.subscribe(right="pure", dropped="pure")
    else:
        link(shop, "right", "dropped")
    shop.use(("right", 6_000_000), ("dropped", 6_000_001))
    final(shop)
    if is_synced:
        shop.sync()
    shop.world.simulator.drop_line(shop.invoice("dropped").id)
    shop.read()
    shop.world.sql("UPDATE billing.invoice SET billing_reason = NULL")
    compare_invoices(shop.world.connect, shop.world.target, shop.world.clock, {})
    assert shop.found() == {"dropped": ["missing_hour"]}
    [(told,)] = shop.world.sql("SELECT scope FROM billing.discrepancy")
    assert told == shop.invoice("dropped").id


def test_a_price_that_changes_later_makes_no_earlier_invoice_wrong(shop: InvoicedShop) -> None:
    """Nor does it when its period is not known; a price that the item never had stays wrong."""
    link(shop, "right", "wrong")
    shop.use(("right", 6_000_000), ("wrong", 6_000_000))
    final(shop)
    shop.world.simulator.change_line(shop.invoice("wrong").id, price=shop.prices["managed_ai_bundled"])
    shop.compare()
    assert shop.found() == {"wrong": ["wrong_price"]}
    reprice(shop, "right", "managed_ai_bundled")
    shop.use(("right", 1_000), ("wrong", 1_000), at=shop.period_end + 25 * HOUR)
    shop.compare()
    assert shop.found() == {"wrong": ["wrong_price"]}
    shop.world.sql("DELETE FROM billing.item_reading WHERE period_end <= %s", shop.period_end)  # as of a look-up that was never kept
    shop.world.sql("UPDATE billing.item_reading SET period_start = NULL, period_end = NULL")
    shop.world.sql("UPDATE billing.invoice SET compared_at = NULL")
    shop.compare()
    assert shop.found() == {"wrong": ["wrong_price"]}


@pytest.mark.parametrize(("day_used", "causes"), [((2,), []), ((12,), []), ((2, 12), ["wrong_period"])])
def test_a_price_that_changed_in_mid_period_is_told_where_usage_went_to_the_old_one(
    shop: InvoicedShop, day_used: tuple[int, ...], causes: list[str]
) -> None:
    """Nobody told of the change: whoever used tokens only before it, or only after it, is billed all the same."""
    link(shop, "a")
    for day in day_used:
        if day > 10:
            shop.at(OPENED + timedelta(days=10))
            reprice(shop, "a", "managed_ai_bundled")
        shop.use(("a", 6_000_000), at=OPENED + timedelta(days=day))
    if day_used == (2,):
        shop.at(OPENED + timedelta(days=10))
        reprice(shop, "a", "managed_ai_bundled")
    final(shop)
    shop.compare()
    assert shop.found() == ({"a": causes} if causes else {})
    shop.use(("a", 1_000), at=shop.period_end + 25 * HOUR)
    final(shop, 2)
    shop.compare()
    assert shop.found() == ({"a": causes} if causes else {})


def test_an_item_that_bills_nobody_any_more_still_lacks_what_it_was_sent(shop: InvoicedShop) -> None:
    """The tenant's columns name another item by now, of the same customer."""
    link(shop, "a")
    shop.use(("a", 6_000_000))
    wanted = {"customer": shop.customer("a"), "items": [{"price": shop.prices["managed_ai_bundled"]}]}
    item = shop.metered_item(shop.client.subscriptions.create(wanted).id)
    shop.world.sql("UPDATE tenants SET stripe_usage_item_id = %s", item)
    shop.use(("a", 7_000_000), at=OPENED + 5 * HOUR)
    final(shop)
    shop.compare()
    assert shop.found() == {}
    shop.world.simulator.drop_line(shop.invoice("a").id)
    shop.compare()
    assert shop.found() == {"a": ["missing_hour"]}


def test_what_stripe_says_of_an_item_again_is_kept_once(shop: InvoicedShop) -> None:
    link(shop, "a")
    shop.use(("a", 1_000))
    shop.world.sql("DELETE FROM billing.metered_item")
    shop.use(("a", 1_000), at=OPENED + 5 * HOUR)
    final(shop)
    shop.use(("a", 1_000), at=shop.period_end + 25 * HOUR)
    assert shop.world.sql("SELECT period_end = %s FROM billing.item_reading ORDER BY read_at", shop.period_end) == [(True,), (False,)]


def test_a_second_item_on_the_meter_of_one_that_nobody_follows_is_a_duplicate(shop: InvoicedShop) -> None:
    link(shop, "a")
    shop.client.subscriptions.create({"customer": shop.customer("a"), "items": [{"price": shop.prices["managed_ai_pure"]}]})
    shop.use(("a", 1_000_000))
    final(shop)
    shop.compare()
    assert shop.found() == {"a": ["duplicate"]}


def test_a_subscription_that_ends_within_a_period_is_billed_what_it_used(shop: InvoicedShop) -> None:
    """Once in the first period, once in the second: nobody was told that the periods end early."""
    link(shop, "soon", "late")
    shop.use(("soon", 6_000_000), ("late", 6_000_000))
    shop.at(OPENED + timedelta(days=3))
    shop.client.subscriptions.cancel(shop.subscriptions["soon"].id, {"invoice_now": True})
    final(shop)
    shop.use(("late", 7_000_000), at=shop.period_end + 25 * HOUR)
    shop.at(shop.period_end + timedelta(days=3))
    shop.client.subscriptions.cancel(shop.subscriptions["late"].id, {"invoice_now": True})
    final(shop, 2)
    shop.compare()
    billed = shop.world.sql("SELECT quantity FROM billing.invoice_line WHERE quantity > 0 ORDER BY 1")
    assert (billed, shop.found()) == ([(6_000_000,), (6_000_000,), (7_000_000,)], {})
