"""An hour in which a plan, a period or a subscription begins or ends: each side goes where it belongs, or is kept aside with its reason."""

from datetime import datetime, timedelta

import pytest

from shop import Shop
from token_billing.errors import FactsUnknown, ReportsLeftOver
from token_billing.stages.quarantined import quarantined_usage
from token_billing.windows import HOUR, Window

MINUTES = timedelta(minutes=1)
BUNDLED, PURE = "managed_ai_tokens_bundled", "managed_ai_tokens_pure"


@pytest.fixture
def acme(shop: Shop) -> str:
    """A tenant with the Bundled plan since ten o'clock; the window is the hour from eleven. Returns its subscription."""
    shop.add_tenants("acme")
    bought = shop.buy("bundled", client_reference_id="acme")
    shop.sync()
    shop.world.window = Window(shop.world.clock() + HOUR)
    return str(bought.id)


def at(shop: Shop, minutes: float) -> datetime:
    return shop.world.window.start + minutes * MINUTES


def use(shop: Shop, minutes: float, tokens: int, tenant: str = "acme") -> None:
    shop.world.use(tenant, tokens, at=at(shop, minutes))


def bill(shop: Shop) -> dict[str, int]:
    """The hour's run, two minutes after it closed."""
    shop.at(max(shop.world.clock(), shop.world.window.end + 2 * MINUTES))
    assert shop.facts_are_known()
    return shop.world.bill()


def sides(shop: Shop, tenant: str = "acme") -> list[tuple[int, int, int, str, str | None]]:
    """Minutes of the window, tokens, state or reason, and event name."""
    start = shop.world.window.start
    return [
        ((begin - start) // MINUTES, (end - start) // MINUTES, tokens, state, event)
        for one, begin, end, tokens, state, event in shop.reports()
        if one == tenant and start <= begin < shop.world.window.end
    ]


def test_a_plan_change_divides_the_hour(shop: Shop, acme: str) -> None:
    """Usage of the very second of the change is the new plan's."""
    shop.at(at(shop, 20))
    shop.change_plan(acme, "pure")
    for minutes, tokens in ((0, 1), (19.999, 2), (20, 4), (59.999, 8)):
        use(shop, minutes, tokens)
    assert bill(shop)["billed"] == 15
    assert sides(shop) == [(0, 20, 3, "billed", BUNDLED), (20, 60, 12, "billed", PURE)]
    assert shop.open_discrepancies() == []


def test_a_plan_held_for_ten_minutes_bills_them(shop: Shop, acme: str) -> None:
    for minutes, plan in ((20, "pure"), (30, "bundled")):
        shop.at(at(shop, minutes))
        shop.change_plan(acme, plan)
    for minutes, tokens in ((10, 1), (25, 2), (45, 4)):
        use(shop, minutes, tokens)
    bill(shop)
    assert sides(shop) == [(0, 20, 1, "billed", BUNDLED), (20, 30, 2, "billed", PURE), (30, 60, 4, "billed", BUNDLED)]


def test_a_period_that_ends_within_the_hour_divides_it(shop: Shop) -> None:
    """Each side's event is dated in its own period, and each invoice has its own side."""
    shop.at(shop.world.clock() + 25 * MINUTES)
    shop.add_tenants("acme")
    bought = shop.buy("pure", client_reference_id="acme")
    [(_, _, period_end), *_] = shop.timeline("acme") if shop.sync() else []
    shop.world.window = Window(period_end.replace(minute=0))
    for minutes, tokens in ((10, 1_000_000), (40, 2_000_000)):
        use(shop, minutes, tokens)
    assert bill(shop)["billed"] == 3_000_000
    assert [(one[0], one[1]) for one in sides(shop)] == [(0, 25), (25, 60)]
    shop.at(shop.world.clock() + 2 * HOUR)
    [ended] = [one for one in shop.client.invoices.list({"subscription": bought.id}).data if one.billing_reason == "subscription_cycle"]
    assert (ended.status, ended.total) == ("paid", 2000)


@pytest.mark.parametrize("minutes", [0, 30])
def test_usage_before_a_subscription_is_kept_aside(shop: Shop, minutes: int) -> None:
    shop.add_tenants("acme")
    shop.world.window = Window(shop.world.clock() + HOUR)
    shop.at(at(shop, 30))
    shop.buy("pure", client_reference_id="acme")
    use(shop, minutes, 1_000_000)
    bill(shop)
    assert [(tokens, state) for _, _, tokens, state, _ in sides(shop)] == [(1_000_000, "billed" if minutes else "before_subscription")]
    if not minutes:
        [aside] = quarantined_usage(shop.world.connect)
        assert (aside.usage.reason, aside.amount_cents) == ("before_subscription", 2000)


def test_usage_after_the_end_is_kept_aside(shop: Shop, acme: str) -> None:
    shop.at(at(shop, 20))
    shop.client.subscriptions.cancel(acme, {"invoice_now": True})
    for minutes, tokens in ((10, 6_000_000), (40, 1_000_000)):
        use(shop, minutes, tokens)
    bill(shop)
    assert sides(shop) == [(0, 20, 6_000_000, "billed", BUNDLED), (20, 60, 1_000_000, "after_subscription", None)]
    [aside] = quarantined_usage(shop.world.connect)
    assert aside.amount_cents == 500  # the first five million are free, and six are billed


def test_a_cancellation_without_an_invoice_is_told(shop: Shop, acme: str) -> None:
    """Stripe drops what was used since the last one."""
    shop.at(at(shop, 1))
    shop.client.subscriptions.cancel(acme)
    shop.at(at(shop, 5))
    shop.sync()
    assert shop.open_discrepancies() == [("cancelled_without_invoice", "acme")]


def test_a_cancellation_that_is_noticed_at_once_is_told_of_later(shop: Shop, acme: str) -> None:
    """Its invoice may still come within the first minute."""
    shop.at(at(shop, 1))
    shop.client.subscriptions.cancel(acme)
    shop.sync()
    assert shop.open_discrepancies() == []
    shop.at(at(shop, 6))
    shop.sync()
    assert shop.open_discrepancies() == [("cancelled_without_invoice", "acme")]


def test_usage_at_a_price_whose_meter_counts_otherwise_is_kept_aside(shop: Shop) -> None:
    """With the reason, and not left waiting for ever."""
    meter = shop.client.billing.meters.create(
        {
            "display_name": "Calls",
            "event_name": "calls",
            "default_aggregation": {"formula": "count"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
    )
    price = shop.client.prices.create(
        {
            "currency": "usd",
            "unit_amount": 1,
            "product_data": {"name": "Calls"},
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
        }
    )
    bought = shop.client.subscriptions.create({"customer": shop.client.customers.create().id, "items": [{"price": price.id}]})
    columns = (bought.customer, bought.id, bought["items"]["data"][0].id)
    shop.world.sql("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')")
    shop.world.sql("UPDATE tenants SET stripe_customer_id = %s, stripe_subscription_id = %s, stripe_usage_item_id = %s", *columns)
    shop.sync()
    shop.world.window = Window(shop.world.clock() + HOUR)
    use(shop, 10, 5)
    bill(shop)
    assert [(tokens, state) for _, _, tokens, state, _ in sides(shop)] == [(5, "item_not_metered")]


def test_a_billing_cycle_begun_anew_that_is_learned_of_late_is_shown(shop: Shop, acme: str) -> None:
    """The item and the price are the same, but the periods are two."""
    shop.at(at(shop, 30))
    shop.client.subscriptions.update(acme, {"billing_cycle_anchor": "now"})
    for minutes, tokens in ((10, 1), (40, 2)):
        use(shop, minutes, tokens)
    shop.at(shop.world.window.end + 2 * MINUTES)
    shop.world.bill()
    shop.sync()
    assert shop.open_discrepancies() == [("boundary_inside_report", "acme")]


def test_usage_of_a_plan_without_tokens_is_kept_aside(shop: Shop, acme: str) -> None:
    shop.at(at(shop, 20))
    shop.change_plan(acme, "solo")
    for minutes, tokens in ((10, 1), (40, 2)):
        use(shop, minutes, tokens)
    bill(shop)
    assert sides(shop) == [(0, 20, 1, "billed", BUNDLED), (20, 60, 2, "item_ended", None)]


def test_usage_of_a_deleted_customer_is_kept_aside(shop: Shop, acme: str) -> None:
    """Stripe bills nothing of it any more, whenever it was used."""
    shop.at(at(shop, 20))
    shop.client.customers.delete(shop.client.subscriptions.retrieve(acme).customer)
    for minutes, tokens in ((10, 1), (40, 2)):
        use(shop, minutes, tokens)
    bill(shop)
    assert {state for _, _, _, state, _ in sides(shop)} == {"customer_deleted"}


def test_a_customer_made_anew_bills_from_then_on(shop: Shop, acme: str) -> None:
    shop.at(at(shop, 20))
    shop.sync()
    shop.client.customers.delete(shop.client.subscriptions.retrieve(acme).customer)
    shop.at(at(shop, 30))
    shop.buy("pure", client_reference_id="acme")
    for minutes, tokens in ((10, 1), (25, 2), (40, 4)):
        use(shop, minutes, tokens)
    bill(shop)
    assert [(tokens, state) for _, _, tokens, state, _ in sides(shop)] == [(1, "customer_deleted"), (2, "customer_deleted"), (4, "billed")]


@pytest.mark.parametrize("what", ["trial", "paused collection"])
def test_trials_and_paused_collection_are_billed_as_ever(shop: Shop, what: str) -> None:
    """What they cost is Stripe's to say: its invoices of that time ask for nothing."""
    shop.add_tenants("acme")
    trial = {"subscription_data": {"trial_period_days": 7}} if what == "trial" else {}
    bought = shop.buy("pure", client_reference_id="acme", **trial)
    if what != "trial":
        shop.client.subscriptions.update(bought.id, {"pause_collection": {"behavior": "void"}})
    shop.world.window = Window(shop.world.clock() + HOUR)
    use(shop, 10, 5)
    assert bill(shop)["billed"] == 5


def test_who_is_excluded_is_kept_aside(shop: Shop, acme: str) -> None:
    from token_billing.stages.exclude import exclude, include

    exclude(shop.world.connect, "acme", "complimentary", at(shop, 0), "anna")
    use(shop, 10, 5)
    bill(shop)
    assert [(tokens, state) for _, _, tokens, state, _ in sides(shop)] == [(5, "excluded_tenant")]
    include(shop.world.connect, "acme", at(shop, 60))
    shop.world.window = Window(shop.world.window.end)
    use(shop, 10, 7)
    bill(shop)
    assert [(tokens, state) for _, _, tokens, state, _ in sides(shop)] == [(7, "billed")]


def test_usage_of_an_unlinked_tenant_has_its_worth(shop: Shop) -> None:
    """At the list price."""
    shop.add_tenants("nobody")
    shop.world.window = Window(shop.world.clock() + HOUR)
    use(shop, 10, 1_000_000, "nobody")
    bill(shop)
    [aside] = quarantined_usage(shop.world.connect)
    assert (aside.usage.reason, aside.amount_cents) == ("no_customer", 2000)


def test_facts_that_come_later_divide_what_was_never_attempted(shop: Shop, acme: str) -> None:
    shop.sync()
    shop.at(at(shop, 20))
    shop.change_plan(acme, "pure")
    for minutes, tokens in ((10, 1), (40, 2)):
        use(shop, minutes, tokens)
    shop.at(shop.world.window.end + 2 * MINUTES)
    shop.world.freeze()
    assert [(begin, end) for begin, end, *_ in sides(shop)] == [(0, 60)]
    shop.sync()
    shop.world.push()
    shop.world.mark_billed()
    assert sides(shop) == [(0, 20, 1, "billed", BUNDLED), (20, 60, 2, "billed", PURE)]
    assert sum(shop.world.marked().values()) == 3


def test_what_was_sent_before_a_fact_came_is_shown(shop: Shop, acme: str) -> None:
    shop.sync()
    shop.at(at(shop, 20))
    shop.change_plan(acme, "pure")
    for minutes, tokens in ((10, 1), (40, 2)):
        use(shop, minutes, tokens)
    shop.at(shop.world.window.end + 2 * MINUTES)
    shop.world.bill()
    shop.sync()
    assert sides(shop) == [(0, 60, 3, "billed", BUNDLED)]
    assert shop.open_discrepancies() == [("boundary_inside_report", "acme")]


def test_an_hour_waits_for_its_facts(shop: Shop, acme: str) -> None:
    """Until Stripe's list can be taken for complete up to its end, and no longer than five minutes."""
    shop.at(shop.world.window.end + 0.5 * MINUTES)
    assert not shop.facts_are_known()
    shop.at(shop.world.window.end + 2 * MINUTES)
    shop.world.stripe_base = "http://127.0.0.1:9"
    assert not shop.facts_are_known()
    shop.at(shop.world.window.end + 6 * MINUTES)
    with pytest.raises(FactsUnknown, match="goes on without"):
        shop.facts_are_known()
    shop.world.stripe_base = None
    assert shop.facts_are_known()


def test_usage_beyond_what_is_known_waits(shop: Shop, acme: str) -> None:
    """Nothing was heard for months: whether the subscription goes on must be found out first."""
    shop.sync()
    shop.at(shop.world.clock() + timedelta(days=100))
    shop.world.window = Window(shop.world.clock() - HOUR)
    use(shop, 10, 5)
    shop.world.freeze()
    with pytest.raises(ReportsLeftOver):
        shop.world.push()
    assert [state for *_, state, _ in sides(shop)] == ["frozen"]
    assert bill(shop)["billed"] == 5
