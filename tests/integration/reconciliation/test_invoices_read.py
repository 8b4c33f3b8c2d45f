"""Invoices and their lines are kept as Stripe shows them, whatever is killed and however often they are read."""

from datetime import timedelta
from typing import Any

import pytest

from invoiced_shop import InvoicedShop
from token_billing.errors import InvoicesNotListed, StripeUnavailable
from token_billing.windows import HOUR
from unreliable_network import UnreliableNetwork

MINUTE = timedelta(minutes=1)


def kept(shop: InvoicedShop) -> list[tuple[str, str]]:
    """Reason and status of the invoices, in the order in which they were made."""
    return shop.world.sql("SELECT billing_reason, status FROM billing.invoice ORDER BY created_at, billing_reason")


def lines(shop: InvoicedShop) -> list[tuple[Any, ...]]:
    """Kind, quantity and amount of the newest invoice's lines, in their order."""
    return shop.world.sql(
        "SELECT kind, quantity, amount_cents FROM billing.invoice_line JOIN billing.invoice USING (invoice_id) "
        "WHERE created_at = (SELECT max(created_at) FROM billing.invoice) ORDER BY position"
    )


def test_every_line_is_kept_with_its_kind(shop: InvoicedShop) -> None:
    """The base in advance, and two tiers of usage; reading it again changes nothing."""
    shop.subscribe(acme="bundled")
    shop.use(("acme", 6_000_000))
    shop.final()
    assert (shop.read(), shop.read()) == (2, 1)
    assert kept(shop) == [("subscription_create", "paid"), ("subscription_cycle", "paid")]
    assert lines(shop) == [("flat", 1, 5000), ("usage", 5_000_000, 0), ("usage", 1_000_000, 500)]


def test_a_draft_is_read_again_until_it_is_final(shop: InvoicedShop) -> None:
    """It grows meanwhile, and once it is final it stays as it is."""
    shop.subscribe(bolt="pure")
    shop.use(("bolt", 1_000))
    shop.at(shop.period_end)
    shop.read()
    assert (kept(shop)[-1], lines(shop)) == (("subscription_cycle", "draft"), [("usage", 1_000, 2)])
    shop.send_event("bolt", 500_000, shop.period_end - 5 * MINUTE)
    shop.at(shop.period_end + HOUR)
    shop.read()
    assert (kept(shop)[-1], lines(shop)) == (("subscription_cycle", "paid"), [("usage", 501_000, 1_002)])


def test_more_lines_than_an_invoice_shows_are_read_from_their_list(shop: InvoicedShop) -> None:
    """A price of 130 tiers has so many lines; the invoice itself shows ten of them, and a page of the list a hundred."""
    tiers = [{"up_to": n * 10, "unit_amount_decimal": "0.05"} for n in range(1, 130)] + [{"up_to": "inf", "unit_amount_decimal": "1"}]
    [meter] = [one for one in shop.client.billing.meters.list().data if one.event_name == "managed_ai_tokens_pure"]
    price = shop.client.prices.create(
        {
            "currency": "usd",
            "product": "managed_ai_tokens_pure",
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "tiers": tiers,
        }
    )
    customer = shop.client.customers.create({"email": "a@example.com"}).id
    shop.subscriptions["tall"] = shop.client.subscriptions.create({"customer": customer, "items": [{"price": price.id}]})
    shop.send_event("tall", 1_300, shop.world.clock())
    shop.at(shop.period_end + HOUR)
    shop.read()
    assert [quantity for _, quantity, _ in lines(shop)] == [10] * 130


def test_a_reading_that_is_cut_off_goes_on_with_the_next(shop: InvoicedShop, network: UnreliableNetwork, monkeypatch: Any) -> None:
    """After its first page: the rest is listed again, for the cursor follows what was kept."""
    shop.subscribe(a="pure", b="pure", c="pure")
    monkeypatch.setattr("token_billing.adapters.stripe_gateway.invoices.PAGE", 2)

    def last_page(page: Any) -> Any:
        network.broken_paths["/v1/invoices"] = 500
        return page

    network.answers["/v1/invoices"] = last_page
    with pytest.raises(StripeUnavailable):
        shop.read()
    assert len(kept(shop)) == 2
    network.answers.clear()
    network.broken_paths.clear()
    assert shop.read() == len(kept(shop)) == 3


def test_an_older_reading_never_overwrites_a_newer_one(shop: InvoicedShop, network: UnreliableNetwork) -> None:
    """A worker that had read the draft and was stopped stores it after another has stored the final invoice."""
    shop.subscribe(bolt="pure")
    shop.use(("bolt", 1_000))
    shop.at(shop.period_end)

    def overtaken(page: Any) -> Any:
        network.answers.clear()
        shop.at(shop.period_end + HOUR)
        shop.read()
        return page

    network.answers["/v1/invoices"] = overtaken
    shop.read()
    assert kept(shop)[-1] == ("subscription_cycle", "paid")


def test_an_invoice_that_is_voided_late_is_known_to_be_void(shop: InvoicedShop) -> None:
    """Weeks after it was listed last, only an event tells of it."""
    shop.subscribe(bolt="pure")
    shop.use(("bolt", 1_000_000))
    shop.at(shop.period_end + MINUTE)
    [draft, _] = shop.client.invoices.list().data
    shop.client.invoices.finalize_invoice(draft.id, {"auto_advance": False})
    shop.sync()
    shop.at(shop.period_end + timedelta(days=6))
    shop.read()
    shop.at(shop.period_end + timedelta(days=12))
    shop.client.invoices.void_invoice(draft.id)
    shop.sync()
    shop.read()
    assert ("subscription_cycle", "void") in kept(shop)


def test_a_deleted_draft_is_forgotten(shop: InvoicedShop) -> None:
    """What Stripe has no more, nobody waits for."""
    shop.subscribe(bolt="pure")
    shop.read()
    shop.world.sql(
        "INSERT INTO billing.invoice (invoice_id, customer_id, status, currency, created_at, total_cents, read_at) "
        "VALUES ('in_gone', 'cus', 'draft', 'usd', %s, 0, %s)",
        shop.world.clock(),
        shop.world.clock() - HOUR,
    )
    shop.at(shop.world.clock() + MINUTE)
    shop.read()
    assert kept(shop) == [("subscription_create", "paid")]


def test_a_stand_in_without_invoices_is_told_of(shop: InvoicedShop, network: UnreliableNetwork) -> None:
    """What was kept stays."""
    shop.subscribe(bolt="pure")
    shop.read()
    network.broken_paths["/v1/invoices"] = 404
    with pytest.raises(InvoicesNotListed, match="made up for /v1/invoices"):
        shop.read()
    assert kept(shop) == [("subscription_create", "paid")]


def test_an_invoice_that_cannot_be_understood_is_told_and_holds_no_other_up(shop: InvoicedShop, network: UnreliableNetwork) -> None:
    """Until it can be read: then it is compared like any other."""
    shop.subscribe(acme="pure", bolt="pure")
    shop.use(("acme", 1_000), ("bolt", 2_000))
    shop.final()

    def without_currency(page: Any) -> Any:
        del page["data"][0]["currency"]
        return page

    network.answers["/v1/invoices"] = without_currency
    shop.read()
    assert len(kept(shop)) == 3
    assert [cause for cause, _ in shop.open_discrepancies()] == ["unexplained"]
    network.answers.clear()
    shop.read()
    shop.compare()
    assert len(kept(shop)) == 4 and shop.open_discrepancies() == []
