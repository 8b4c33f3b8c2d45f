"""Invoices that what answers for Stripe shows with less in them, or with what makes no sense: right ones are right, others are told of, and
one that is odd stops no other."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from invoiced_shop import OPENED, InvoicedShop
from token_billing.accruals import Standing
from token_billing.stages.accruals import accruals
from token_billing.stages.explain import explain
from token_billing.windows import HOUR
from unreliable_network import UnreliableNetwork

#: What each tenant of these used.
TOKENS = 6_000_000


def shows(network: UnreliableNetwork, change: Callable[[dict[str, Any]], None]) -> None:
    """Every listed invoice is changed so."""

    def changed(page: dict[str, Any]) -> dict[str, Any]:
        for invoice in page["data"]:
            change(invoice)
        return page

    network.answers["/v1/invoices"] = changed


@pytest.fixture
def two(shop: InvoicedShop) -> InvoicedShop:
    """Tenants a and b, whose month is over."""
    shop.subscribe(a="pure", b="pure")
    shop.use(("a", TOKENS), ("b", TOKENS))
    shop.final()
    return shop


def test_a_first_invoice_that_does_not_say_what_it_is_bills_nothing_of_the_time_to_come(
    two: InvoicedShop, network: UnreliableNetwork
) -> None:
    """It names the metered item with no quantity for the month that begins."""
    closing = {one.customer: one for one in (two.invoice("a"), two.invoice("b"))}

    def first(invoice: dict[str, Any]) -> None:
        invoice.pop("billing_reason")
        if not invoice["lines"]["data"]:
            line = dict(closing[invoice["customer"]].to_dict()["lines"]["data"][0])
            invoice["lines"]["data"] = [{**line, "id": f"il_of_{invoice['id']}", "quantity": 0, "amount": 0}]

    shows(network, first)
    two.compare()
    assert two.found() == {}


def test_one_invoice_that_makes_no_sense_is_told_and_the_others_are_compared(two: InvoicedShop, network: UnreliableNetwork) -> None:
    """Lines that end before they start, or stand there twice; and of b, an error that is found all the same."""
    two.world.simulator.change_line(two.invoice("b").id, amount=1)
    odd = two.invoice("a").id

    def backwards(invoice: dict[str, Any]) -> None:
        if invoice["id"] == odd:
            period = invoice["lines"]["data"][0]["period"]
            period["start"], period["end"] = period["end"], period["start"]

    def twice(invoice: dict[str, Any]) -> None:
        if invoice["id"] == odd:
            invoice["lines"]["data"] *= 2

    for change in (backwards, twice):
        shows(network, change)
        two.compare()
        assert two.found() == {odd: ["unexplained"], "b": ["wrong_price"]}


@pytest.mark.parametrize(("status", "found"), [("draft", {}), ("paid", {"odd": ["unexplained"]})])
def test_lines_that_cannot_be_read_stop_no_other_invoice(
    two: InvoicedShop, network: UnreliableNetwork, status: str, found: dict[str, list[str]]
) -> None:
    """A draft may have been deleted between the list and its lines; any other is told of."""
    two.world.simulator.change_line(two.invoice("b").id, amount=1)
    odd = two.invoice("a").id

    def more_lines(invoice: dict[str, Any]) -> None:
        if invoice["id"] == odd:
            invoice["lines"]["has_more"], invoice["status"] = True, status

    shows(network, more_lines)
    network.broken_paths[f"/v1/invoices/{odd}/lines"] = 404
    two.compare()
    assert {("odd" if about == odd else about): causes for about, causes in two.found().items()} == {**found, "b": ["wrong_price"]}


def test_a_negative_quantity_of_usage_is_told(two: InvoicedShop) -> None:
    two.world.simulator.change_line(two.invoice("a").id, quantity=-5)
    two.compare()
    assert two.found() == {"a": ["unexplained"]}


def test_an_invoice_that_does_not_say_when_it_became_final_is_accrued_no_more(two: InvoicedShop, network: UnreliableNetwork) -> None:
    """Nobody else has looked at it."""

    def timeless(invoice: dict[str, Any]) -> None:
        invoice.pop("status_transitions", None)
        invoice.pop("effective_at", None)

    shows(network, timeless)
    two.compare()
    two.world.sql("DELETE FROM billing.invoiced_period")
    two.at(two.world.clock() + timedelta(days=5))
    found = accruals(two.world.connect, two.world.clock(), two.world.clock)
    assert [one.usage.tokens for one in found] == 2 * [{Standing.INVOICED: TOKENS}]


def test_two_charges_that_an_item_lacks_are_told_with_all_they_come_to(shop: InvoicedShop) -> None:
    """Its price changed in the middle of the month, and the invoice has a line of neither."""
    shop.subscribe(a="pure")
    shop.use(("a", TOKENS))
    item = shop.metered_item(shop.subscriptions["a"].id)
    shop.at(OPENED + 5 * HOUR)
    shop.client.subscriptions.update(shop.subscriptions["a"].id, {"items": [{"id": item, "price": shop.prices["managed_ai_bundled"]}]})
    shop.sync()
    shop.use(("a", 7_000_000), at=OPENED + 7 * HOUR)
    shop.final()
    invoice = shop.invoice("a")
    for line in invoice.lines.data:
        shop.world.simulator.drop_line(invoice.id, line.id)
    shop.compare()
    open_ones = "FROM billing.discrepancy WHERE resolved_at IS NULL ORDER BY 2"
    found = shop.world.sql(f"SELECT cause, expected_token_count, expected_cents {open_ones}")
    assert found == [("missing_hour", TOKENS, 12_000), ("missing_hour", 7_000_000, 1_000)]


def test_an_explanation_knows_of_a_trial(shop: InvoicedShop) -> None:
    """What asks for nothing then differs from nothing."""
    shop.add_tenants("a")
    shop.subscriptions["a"] = shop.buy("pure", client_reference_id="a", subscription_data={"trial_period_days": 7})
    shop.sync()
    shop.use(("a", TOKENS))
    shop.at(OPENED + timedelta(days=7, hours=2))
    shop.sync()
    shop.compare()
    assert explain(shop.world.connect, shop.invoice("a").id).differences == []
    shop.world.sql("UPDATE billing.subscription SET payload = payload - 'trial_start'")
    [difference] = explain(shop.world.connect, shop.invoice("a").id).differences
    assert difference == "the lines bill 0.00 USD, the price asks 120.00 USD"
