"""Who bought what: a tenant is linked by its checkout, once, and to what Stripe says now."""

from datetime import timedelta

import pytest

from shop import Shop

MINUTES = timedelta(minutes=1)


@pytest.mark.parametrize("named_by", ["client_reference_id", "metadata", "customer"])
def test_a_checkout_links_its_tenant(shop: Shop, named_by: str) -> None:
    shop.add_tenants("acme")
    match named_by:
        case "client_reference_id":
            bought = shop.buy("bundled", client_reference_id="acme", metadata={"tenant_id": "somebody else"})
        case "metadata":
            bought = shop.buy("bundled", metadata={"tenant_id": "acme"})
        case _:
            customer = shop.client.customers.create({"name": "Acme"}).id
            shop.world.sql("UPDATE tenants SET stripe_customer_id = %s", customer)
            bought = shop.buy("bundled", customer=customer)
    shop.sync()
    assert shop.columns() == {"acme": (bought.customer, bought.id, shop.metered_item(bought.id))}
    assert next(start for _, start, _ in shop.timeline("acme")) == shop.world.clock()
    assert shop.open_discrepancies() == []


def test_a_linked_tenant_is_not_relinked_by_a_checkout(shop: Shop) -> None:
    """It becomes a discrepancy, which goes away once the second subscription is no more."""
    shop.add_tenants("acme", "other")
    first = shop.buy("bundled", client_reference_id="acme")
    shop.sync()
    shop.at(shop.world.clock() + 5 * MINUTES)
    second = shop.buy("pure", client_reference_id="acme")
    shop.buy("pure", client_reference_id="other")
    shop.sync()
    assert shop.columns()["acme"][1] == first.id != second.id
    assert shop.columns()["other"][1] is not None  # the conflict held nobody up
    assert shop.open_discrepancies() == [("link_conflict", "acme")]
    shop.sync()
    assert shop.open_discrepancies() == [("link_conflict", "acme")]


def test_who_left_may_come_back(shop: Shop) -> None:
    """A link to a subscription that has ended is none any more."""
    shop.add_tenants("acme")
    first = shop.buy("bundled", client_reference_id="acme")
    shop.at(shop.world.clock() + 50 * MINUTES)
    shop.client.subscriptions.cancel(first.id, {"invoice_now": True})
    shop.at(shop.world.clock() + 5 * MINUTES)
    again = shop.buy("pure", client_reference_id="acme")
    shop.sync()
    assert shop.columns()["acme"][1] == again.id
    assert next(item for item, _, _ in shop.timeline("acme")) != shop.metered_item(again.id)
    assert shop.open_discrepancies() == []


def test_who_was_linked_by_the_application_and_comes_back_keeps_the_time_before(shop: Shop) -> None:
    """Also when a second subscription, bought while the first one went on, is there to be mistaken for the next."""
    shop.world.link("acme")
    shop.sync()
    _, first, item = shop.columns()["acme"]
    assert first
    shop.at(shop.world.clock() + 5 * MINUTES)
    beside = shop.buy("bundled", client_reference_id="acme")
    shop.sync()
    shop.at(shop.world.clock() + 30 * MINUTES)
    ended = shop.world.clock()
    shop.client.subscriptions.cancel(first, {"invoice_now": True})
    shop.at(shop.world.clock() + 5 * MINUTES)
    again = shop.buy("pure", client_reference_id="acme")
    for _ in range(3):
        shop.sync()
        shop.client.subscriptions.update(again.id, {"description": f"{shop.world.clock()}"})
        shop.at(shop.world.clock() + 5 * MINUTES)
        assert shop.columns()["acme"][1] == again.id
        assert shop.timeline("acme")[0][::2] == (item, ended)
        assert shop.open_discrepancies() == [("link_conflict", "acme")]
    assert beside.id != again.id


def test_what_was_bought_before_a_person_relinked_stays(shop: Shop) -> None:
    shop.add_tenants("acme")
    first = shop.buy("bundled", client_reference_id="acme")
    shop.sync()
    shop.at(shop.world.clock() + 30 * MINUTES)
    second = shop.buy("pure", client_reference_id="nobody")
    shop.client.subscriptions.cancel(first.id, {"invoice_now": True})
    columns = (second.customer, second.id, shop.metered_item(second.id))
    shop.world.sql(
        "UPDATE tenants SET stripe_customer_id = %s, stripe_subscription_id = %s, stripe_usage_item_id = %s WHERE id = 'acme'", *columns
    )
    for _ in range(3):
        shop.sync()
        shop.client.subscriptions.update(second.id, {"description": f"{shop.world.clock()}"})
        shop.at(shop.world.clock() + 5 * MINUTES)
        assert [item for item, _, _ in shop.timeline("acme")][:2] == [shop.metered_item(first.id), columns[2]]


def test_a_checkout_for_nobody_waits_for_its_tenant(shop: Shop) -> None:
    bought = shop.buy("pure", client_reference_id="late")
    shop.sync()
    assert shop.open_discrepancies() == [("unknown_tenant", None)]
    shop.add_tenants("late")
    shop.sync()
    assert shop.columns()["late"][1] == bought.id
    assert shop.open_discrepancies() == []


def test_what_the_application_linked_is_followed(shop: Shop) -> None:
    """From before the product knew of events."""
    shop.world.link("acme")
    before = shop.columns()
    shop.sync()
    assert shop.columns() == before
    assert next(item for item, _, _ in shop.timeline("acme")) == before["acme"][2]


def test_what_the_application_relinks_is_what_counts(shop: Shop) -> None:
    shop.add_tenants("acme")
    first = shop.buy("bundled", client_reference_id="acme")
    shop.sync()
    second = shop.buy("pure", client_reference_id="nobody")
    columns = (second.customer, second.id, shop.metered_item(second.id))
    shop.world.sql(
        "UPDATE tenants SET stripe_customer_id = %s, stripe_subscription_id = %s, stripe_usage_item_id = %s WHERE id = 'acme'", *columns
    )
    shop.sync()
    assert shop.columns()["acme"] == columns
    assert {item for item, _, _ in shop.timeline("acme")} == {columns[2]}
    assert ("overlapping_subscriptions", "acme") in shop.open_discrepancies()
    shop.client.subscriptions.cancel(first.id)
    shop.sync()
    assert shop.columns()["acme"] == columns


def test_a_plan_change_names_the_new_item(shop: Shop) -> None:
    shop.add_tenants("acme")
    bought = shop.buy("bundled", client_reference_id="acme")
    shop.sync()
    shop.at(shop.world.clock() + 10 * MINUTES)
    shop.change_plan(bought.id, "pure")
    shop.sync()
    assert shop.columns()["acme"] == (bought.customer, bought.id, shop.metered_item(bought.id))
    assert len({item for item, _, _ in shop.timeline("acme")}) == 2


def test_a_subscription_without_a_metered_price_of_ours_is_told(shop: Shop) -> None:
    shop.add_tenants("acme")
    bought = shop.buy("solo", client_reference_id="acme")
    shop.sync()
    assert shop.columns()["acme"][1:] == (bought.id, None)
    assert shop.open_discrepancies() == [("no_metered_item", "acme")]


def test_syncing_twice_changes_nothing(shop: Shop) -> None:
    shop.add_tenants("acme")
    shop.buy("bundled", client_reference_id="acme")
    assert shop.sync().tenants == {"acme"}
    before = shop.timeline("acme"), shop.columns()
    assert shop.sync().event_count == 0
    assert (shop.timeline("acme"), shop.columns()) == before


def test_a_renewal_that_no_news_told_of_is_found(shop: Shop) -> None:
    """By looking, before the known periods run out."""
    shop.add_tenants("acme")
    shop.buy("pure", client_reference_id="acme")
    shop.sync()
    known_until = shop.timeline("acme")[-1][2]
    shop.world.simulator.settings(events_delay_seconds=1e7)
    shop.at(known_until - timedelta(days=6))
    shop.sync()
    assert shop.timeline("acme")[-1][2] > known_until
