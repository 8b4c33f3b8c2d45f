"""What differs between an invoice and our rows is named with its cause, and nothing else is."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from invoiced_shop import OPENED, InvoicedShop
from legacy_account import PERIOD
from token_billing.model import Sink
from token_billing.stages.read_invoices import read_invoices
from token_billing.stages.reconcile_invoices import compare_invoices
from token_billing.windows import HOUR, Window
from unreliable_network import UnreliableNetwork
from world import World

MINUTE = timedelta(minutes=1)
HALF_PAST = timedelta(minutes=30)


def tamper(shop: InvoicedShop, statement: str, tenant: str) -> None:
    """Behind the back of the triggers that refuse it."""
    shop.world.sql(
        f"ALTER TABLE token_usage DISABLE TRIGGER USER; {statement} WHERE tenant_id = '{tenant}'; "
        "ALTER TABLE token_usage ENABLE TRIGGER USER"
    )


#: What is planted in a tenant's month, by the cause that must be found.
PLANTED: dict[str, list[str]] = {
    "right": [],
    "right_tiers": [],
    "lost": ["missing_hour"],
    "doubled": ["duplicate"],
    "valued": ["missing_hour"],
    "cents": ["wrong_price"],
    "tokens": ["unexplained"],
    "shifted": ["wrong_period"],
    "tier_dropped": ["wrong_tier"],
    "all_dropped": ["missing_hour"],
    "by_hand": ["manual_line"],
    "euro": ["currency"],
    "twice": ["duplicate"],
    "changed": 2 * ["rows_changed"],
    "deleted": 2 * ["rows_changed"],
    "unmarked": 2 * ["rows_changed"],
    "void": ["voided_invoice"],
    "repriced": ["wrong_price"],
}
TIERED = ("right_tiers", "tier_dropped")


def test_each_planted_error_is_named_by_its_cause_and_nothing_else_is(shop: InvoicedShop) -> None:
    """One error a tenant; the customers are billed in two hours of the month."""
    stripe = shop.world.simulator
    shop.subscribe(**{tenant: "bundled" if tenant in TIERED else "pure" for tenant in PLANTED})
    stranger = shop.client.customers.create({"email": "stranger@example.com"}).id
    item = {"price": shop.prices["managed_ai_pure"]}
    shop.subscriptions["stranger"] = shop.client.subscriptions.create({"customer": stranger, "items": [item]})
    shop.use(*((tenant, 6_000_000 + n) for n, tenant in enumerate(PLANTED)))
    shop.use(*((tenant, 250_000) for tenant in PLANTED), at=OPENED + 2 * HOUR + HALF_PAST)
    shop.send_event("stranger", 77, OPENED + 2 * HOUR)
    stripe.lose_event(shop.identifier("lost"))
    stripe.double_event(shop.identifier("doubled"))
    stripe.change_event(shop.identifier("valued"), value=5_000_000)
    tamper(shop, "UPDATE token_usage SET input_tokens = input_tokens + 1", "changed")
    tamper(shop, "DELETE FROM token_usage", "deleted")
    tamper(shop, "UPDATE token_usage SET billed = false", "unmarked")
    shop.at(shop.period_end + MINUTE)
    shop.client.invoices.finalize_invoice(shop.invoice("void").id, {"auto_advance": False})
    shop.client.invoices.void_invoice(shop.invoice("void").id)
    shop.final()
    stripe.change_line(shop.invoice("cents").id, amount=12_501)
    stripe.change_line(shop.invoice("tokens").id, quantity=6_250_000)
    stripe.change_line(shop.invoice("repriced").id, price=shop.prices["managed_ai_bundled"])
    stripe.shift_period(shop.invoice("shifted").id, 86_400)
    stripe.drop_line(shop.invoice("tier_dropped").id)
    stripe.drop_line(shop.invoice("all_dropped").id)
    stripe.add_line(shop.invoice("by_hand").id, 100)
    stripe.change_currency(shop.invoice("euro").id, "eur")
    stripe.double_usage(shop.invoice("twice").id)
    shop.compare()
    found = shop.found()
    [unlinked] = {about for about in found if about not in PLANTED}
    assert found.pop(unlinked) == ["unlinked_tenant"]
    assert found == {tenant: causes for tenant, causes in PLANTED.items() if causes}


@pytest.mark.parametrize("free", [{"trial_period_days": 7}, {"pause_collection": {"behavior": "void"}}, {}])
def test_a_trial_that_was_never_synced_is_asked_for_at_stripe(shop: InvoicedShop, free: dict[str, Any]) -> None:
    """The application linked the tenant, nobody followed the subscription: an invoice that asks for nothing may be right all the same."""
    customer = shop.client.customers.create({"email": "a@example.com"}).id
    wanted = {"customer": customer, "items": [{"price": shop.prices["managed_ai_pure"]}]}
    trial = {name: value for name, value in free.items() if name.startswith("trial")}
    bought = shop.client.subscriptions.create({**wanted, **trial})
    if not trial and free:
        shop.client.subscriptions.update(bought.id, free)
    shop.subscriptions["a"] = bought
    shop.world.sql("INSERT INTO tenants VALUES ('a', 'a', %s, %s, %s)", customer, bought.id, shop.metered_item(bought.id))
    shop.use(("a", 6_000_000))
    shop.at((OPENED + timedelta(days=7) if trial else shop.period_end) + MINUTE)
    if not free:
        shop.client.invoices.finalize_invoice(shop.invoice("a").id, {"auto_advance": False})
        shop.client.invoices.void_invoice(shop.invoice("a").id)
    shop.at(shop.world.clock() + 2 * HOUR)
    shop.compare()
    assert shop.found() == ({} if free else {"a": ["voided_invoice"]})
    assert shop.world.sql("SELECT count(*) FROM billing.subscription") == [(0,)]


def test_a_second_item_on_the_meter_of_one_that_is_linked_is_a_duplicate(shop: InvoicedShop) -> None:
    """A customer whom two items bill the same tokens pays twice, although no tenant was ever linked to the second one."""
    shop.subscribe(a="pure")
    again = {"customer": shop.subscriptions["a"].customer, "items": [{"price": shop.prices["managed_ai_pure"]}]}
    shop.client.subscriptions.create(again)
    shop.use(("a", 1_000_000))
    shop.final()
    shop.compare()
    assert shop.found() == {"a": ["duplicate"]}


def test_a_line_whose_period_was_shifted_makes_no_duplicate_of_the_next_one(shop: InvoicedShop) -> None:
    """The invoice after it is right, although the two overlap now."""
    shop.subscribe(a="pure")
    shop.use(("a", 1_000_000))
    shop.final()
    shop.world.simulator.shift_period(shop.invoice("a").id, 7200)
    shop.compare()
    shop.use(("a", 2_000_000), at=shop.world.clock() + timedelta(days=3))
    shop.period_end += timedelta(days=30)
    shop.final()
    shop.compare()
    assert shop.found() == {"a": ["wrong_period"]}


def test_what_is_mended_goes_away_by_itself_and_what_comes_late_is_found(shop: InvoicedShop, network: UnreliableNetwork) -> None:
    """A cent is corrected; a report that a raced push sent into the final invoice's period is late; the comparison can be repeated, and two
    at once come to the same."""
    shop.subscribe(a="pure", b="bundled")
    shop.use(("a", 1_000_000), ("b", 6_000_000))
    shop.final()
    assert shop.compare()["differences"] == 0
    shop.world.simulator.change_line(shop.invoice("a").id, amount=2_001)
    assert shop.compare()["news"] == 1
    with ThreadPoolExecutor(2) as pool:
        assert [one["news"] for one in pool.map(lambda _: shop.compare(), range(2))] == [0, 0]
    assert shop.found() == {"a": ["wrong_price"]}
    shop.world.simulator.change_line(shop.invoice("a").id, amount=2_000)
    shop.compare()
    assert shop.found() == {}

    shop.world.sql("DELETE FROM billing.invoiced_period")
    network.broken_paths["/v1/invoices"] = 404  # as if the push had looked a moment before the invoice was final
    shop.use(("b", 500), at=shop.period_end - 2 * HOUR)
    network.broken_paths.clear()
    shop.at(shop.world.clock() + timedelta(days=1))
    shop.compare()
    assert shop.found() == {"b": ["late_after_finalisation"]}
    [(expected, found, cents)] = shop.world.sql(
        "SELECT expected_token_count, found_token_count, expected_cents FROM billing.discrepancy WHERE resolved_at IS NULL"
    )
    assert (expected, found, cents) == (500, 0, 0), "500 tokens are worth a quarter of a cent"


def test_a_price_edited_at_stripe_is_kept_beside_what_it_was(shop: InvoicedShop) -> None:
    """Whose invoice is billed by the edited one is told; the first reading stays what was agreed."""
    shop.subscribe(a="bundled", b="pure")
    shop.use(("a", 6_000_000), ("b", 6_000_000))
    tiers = [{"up_to": 4_000_000, "unit_amount_decimal": "0"}, {"up_to": "inf", "unit_amount_decimal": "0.0005"}]
    shop.world.simulator.edit_price(shop.prices["managed_ai_bundled"], tiers=tiers)
    shop.world.simulator.edit_price(shop.prices["managed_ai_pure"], unit_amount_decimal="0.003")
    shop.final()
    shop.compare()
    assert shop.found() == {"a": ["wrong_tier"], "b": ["wrong_price"]}
    assert shop.world.sql("SELECT count(*) FROM billing.price_reading") == [(2,)]
    shop.compare()
    assert shop.world.sql("SELECT count(*) FROM billing.price_reading") == [(2,)], "once each"
    [details] = {one for (one,) in shop.world.sql("SELECT details FROM billing.discrepancy WHERE cause = 'wrong_tier'")}
    assert "was edited at Stripe" in details


def test_an_invoice_that_changes_while_it_is_compared_is_compared_again(shop: InvoicedShop, network: UnreliableNetwork) -> None:
    """Another run read it anew, after this one had opened its books."""
    shop.subscribe(a="pure")
    shop.use(("a", 1_000_000))
    shop.final()

    def changed(price: Any) -> Any:
        network.answers.clear()
        shop.world.simulator.change_line(shop.invoice("a").id, amount=2_001)
        shop.at(shop.world.clock() + MINUTE)
        shop.read()
        return price

    network.answers[f"/v1/prices/{shop.prices['managed_ai_pure']}"] = changed
    assert (shop.compare()["differences"], shop.compare()["differences"]) == (0, 1)


@pytest.mark.parametrize("sink", [Sink.USAGE_RECORDS], indirect=True)
def test_usage_records_of_tenants_that_nobody_follows_are_compared_alike(world: World) -> None:
    """Two tenants share an item of the legacy metered billing system, which the application's columns alone name."""
    world.simulator.reset(clock=OPENED)
    world.set_time(OPENED)
    world.window = Window(OPENED)
    world.link("a", "b")
    world.sql("UPDATE tenants SET stripe_usage_item_id = (SELECT stripe_usage_item_id FROM tenants WHERE id = 'a')")
    world.use("a", 1_000_000)
    world.use("b", 7)
    world.set_time(world.window.end + MINUTE)
    world.bill()
    world.set_time(world.window.start + PERIOD - timedelta(days=40) + 2 * HOUR)
    read_invoices(world.connect, world.target, world.clock)
    compare_invoices(world.connect, world.target, world.clock, {})
    assert world.sql("SELECT count(*) FROM billing.discrepancy") == [(0,)]
    [(csv,)] = world.sql("SELECT csv FROM billing.statement")
    assert '"a, b"' in csv and "1000007,1000007,0,usd,2000,2000,0" in csv
    [(invoice,)] = world.sql("SELECT invoice_id FROM billing.invoice_line WHERE quantity > 0")
    world.simulator.change_line(invoice, quantity=1_000_006)
    read_invoices(world.connect, world.target, world.clock)
    compare_invoices(world.connect, world.target, world.clock, {})
    assert world.sql("SELECT cause, expected_token_count, found_token_count FROM billing.discrepancy") == [
        ("unexplained", 1_000_007, 1_000_006)
    ]


def test_a_period_that_a_billing_threshold_cut_is_said_and_is_no_difference(shop: InvoicedShop) -> None:
    """The threshold's invoice bills a part, the one at the period's end what is left of it."""
    shop.subscribe(acme="pure")
    shop.use(("acme", 500))
    shop.final()
    shop.read()
    usage = "FROM billing.invoice_line WHERE kind = 'usage' AND quantity > 0"
    [(invoice_id, start, end)] = shop.world.sql(f"SELECT invoice_id, period_start, period_end {usage}")
    cut = end - timedelta(days=9)
    shop.world.sql(
        "INSERT INTO billing.invoice SELECT 'in_part', customer_id, subscription_id, 'subscription_threshold', 'paid', currency, %s, NULL,"
        " %s, 0, read_at FROM billing.invoice WHERE invoice_id = %s",
        *(cut, cut, invoice_id),
    )
    columns = "line_id, invoice_id, position, kind, usage_item_id, price_id, quantity, amount_cents, currency, period_start, period_end"
    part = "'il_part', 'in_part', 0, kind, usage_item_id, price_id, 300, 0, currency, %s, %s"
    shop.world.sql(f"INSERT INTO billing.invoice_line ({columns}) SELECT {part} {usage}", start, cut)
    shop.world.sql("UPDATE billing.invoice_line SET quantity = 200 WHERE line_id <> 'il_part' AND quantity = 500")
    compare_invoices(shop.world.connect, shop.world.target, shop.world.clock, {})
    assert [cause for causes in shop.found().values() for cause in causes if cause != "short_grace"] == []
