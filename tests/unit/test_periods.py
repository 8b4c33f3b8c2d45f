"""Which invoices close a billing period, and how long what is known of them holds."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from token_billing.adapters.stripe_gateway.objects import invoiced_by, present_period, terms_of
from token_billing.periods import DRAFT_IS_FRESH, BillingPeriod, FinalPeriods, InvoicedPeriod
from token_billing.rating import amount_cents

START, END = datetime(2025, 10, 15, tzinfo=UTC), datetime(2025, 11, 15, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DRAFT = InvoicedPeriod("si_a", BillingPeriod(START, END), "in_1", "draft", END + timedelta(hours=1), END)


def test_a_period_holds_its_start_and_not_its_end() -> None:
    """Of its own item, and only where its invoice is final."""
    final = FinalPeriods.among([replace(DRAFT, status="open"), replace(DRAFT, usage_item_id="si_b")])
    assert [final.hold("si_a", time, END) for time in (START - MINUTE, START, END - MINUTE, END)] == [False, True, True, False]
    assert DRAFT.finalizes_at is not None
    assert not final.hold("si_b", START, DRAFT.finalizes_at - 3 * MINUTE)
    assert final.hold("si_b", START, DRAFT.finalizes_at - 2 * MINUTE), "what is sent now may come too late"


@pytest.mark.parametrize("status", ["open", "paid", "uncollectible", "void"])
def test_what_is_final_stays_known(status: str) -> None:
    """For ever; a draft for a moment, and never beyond its finalisation."""
    assert replace(DRAFT, status=status).is_known(END + timedelta(days=999))
    assert DRAFT.is_known(END + DRAFT_IS_FRESH - MINUTE)
    assert not DRAFT.is_known(END + DRAFT_IS_FRESH)
    assert not replace(DRAFT, finalizes_at=END + MINUTE).is_known(END + MINUTE)
    assert not replace(DRAFT, seen_at=END + timedelta(minutes=58)).is_known(END + timedelta(hours=1))


def invoice(**more: Any) -> SimpleNamespace:
    span = {"period_start": int(START.timestamp()), "period_end": int(END.timestamp())}
    return SimpleNamespace(**{"id": "in_1", "status": "paid", "billing_reason": "subscription_cycle", **span, **more})


def line(item: str | None, start: datetime, end: datetime, *, proration: bool = False) -> SimpleNamespace:
    details = item and SimpleNamespace(subscription_item=item, proration=proration)
    period = SimpleNamespace(start=int(start.timestamp()), end=int(end.timestamp()))
    return SimpleNamespace(parent=SimpleNamespace(subscription_item_details=details), period=period)


def test_an_invoices_lines_say_which_usage_it_bills() -> None:
    """Not those of the base price, which is paid in advance; without a line of the item, the invoice looks back on the period itself."""
    ahead = line("si_base", END, END + timedelta(days=30))
    found = invoiced_by(invoice(), [ahead, line("si_a", START, END), line("si_a", START, END), line(None, START, END)], "si_a", END)
    assert [(one.period, one.is_final) for one in found] == [((START, END), True)]
    assert [one.period for one in invoiced_by(invoice(), [ahead], "si_a", END)] == [(START, END)]
    assert invoiced_by(invoice(period_start=5, period_end=5), [ahead], "si_a", END) == []
    assert invoiced_by(invoice(billing_reason="manual"), [ahead], "si_a", END) == [], "made in the middle of a period"


def test_a_proration_closes_no_usage() -> None:
    """An item whose licensed price gives way to a metered one is credited for the very time in which it will bill usage."""
    credit = line("si_a", START + timedelta(days=5), END, proration=True)
    at_once = invoice(billing_reason="subscription_update")
    assert invoiced_by(at_once, [credit], "si_a", END) == []
    assert [one.period for one in invoiced_by(invoice(), [credit, line("si_a", START, END)], "si_a", END)] == [(START, END)]


def test_a_first_period_begins_with_its_item() -> None:
    """There is nothing before it; of an item that tells of no period nothing is known."""

    def item(created: datetime) -> SimpleNamespace:
        bounds = {"current_period_start": int(START.timestamp()), "current_period_end": int(END.timestamp())}
        return SimpleNamespace(created=int(created.timestamp()), **bounds)

    assert present_period(item(START)) == ((START, END), True)
    assert present_period(item(START - timedelta(days=31))) == ((START, END), False)
    assert present_period(item(START + timedelta(days=3))) == ((START, END), False)
    assert present_period(SimpleNamespace(created=5)) == (None, False)


def test_amounts_are_read_from_either_form() -> None:
    """The decimal one has it all; a stand-in may give the whole one only."""
    per_unit = SimpleNamespace(id="p", currency="usd", billing_scheme="per_unit", unit_amount=7, transform_quantity=None)
    assert amount_cents(terms_of(per_unit), 3) == 21
    assert amount_cents(terms_of(SimpleNamespace(**{**vars(per_unit), "unit_amount_decimal": "0.5"})), 3) == 2
    with pytest.raises(AttributeError):
        terms_of(SimpleNamespace(id="p", currency="usd", billing_scheme="tiered", tiers_mode="graduated"))
