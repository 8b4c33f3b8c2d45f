"""What leads from a line to its rows is added up on the way, and read in few stretches."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from token_billing.explanation import ExplainedCharge, ExplainedReport, HeldRows, explained_charges, readings
from token_billing.invoices import Invoice, InvoiceLine, LineKind
from token_billing.model import ReportState
from token_billing.periods import BillingPeriod
from token_billing.rating import Price, PricingMode, Tier
from token_billing.windows import HOUR, Window

START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
PRICE = Price("price_1", "usd", PricingMode.PER_UNIT, (Tier(None, Decimal("0.5")),))
INVOICE = Invoice("in_1", "cus_1", "sub_1", "subscription_cycle", "paid", "usd", END, None, END + HOUR, 50, END + 2 * HOUR)


def report(number: int, tokens: int = 10, tenant: str = "a", accepted: timedelta = HOUR) -> ExplainedReport:
    window = Window(START + number * HOUR)
    return ExplainedReport(
        number, tenant, window, window.whole, 0, 0, f"usage-{number}", ReportState.BILLED, None,
        "cus_1", "si_1", window.start, 1, tokens, 1, window.end, START + accepted, None, window.end, None,
        HeldRows(1, tokens, number, number),
    )  # fmt: skip


def line(quantity: int, amount_cents: int, kind: LineKind = LineKind.USAGE, proposal: int | None = None) -> InvoiceLine:
    period = BillingPeriod(START, END)
    return InvoiceLine(f"il_{quantity}", kind, "si_1", "price_1", quantity, None, amount_cents, "usd", period, proposal_id=proposal)


def charge(amount_cents: int, *reports: ExplainedReport) -> ExplainedCharge:
    return ExplainedCharge(INVOICE, (line(sum(one.token_count for one in reports), amount_cents),), PRICE, None, reports)


def test_neighbouring_hours_of_a_tenant_are_read_at_once() -> None:
    """What lies far apart, or is another tenant's, is not."""
    found = readings([report(30), report(1), report(3), report(2, tenant="b")])
    assert [(tenant, stretch.start, stretch.end, ids) for tenant, stretch, ids in found] == [
        ("a", START + HOUR, START + 4 * HOUR, [1, 3]),
        ("a", START + 30 * HOUR, START + 31 * HOUR, [30]),
        ("b", START + 2 * HOUR, START + 3 * HOUR, [2]),
    ]


def test_tiers_are_one_charge_and_what_a_proposal_made_is_another() -> None:
    lines = [line(5, 0), line(7, 4), line(1, 9, LineKind.MANUAL, 3), line(1, 5000, LineKind.FLAT)]
    assert [[one.quantity for one in found.lines] for found in explained_charges(INVOICE, lines)] == [[5, 7], [1], [1]]


def test_a_line_on_a_tie_may_go_either_way() -> None:
    """Eleven tokens at half a cent are 5.5 cents: 6 or 5 are right, 4 is not."""
    assert [list(charge(cents, report(1, 11)).differences()) for cents in (6, 5)] == [[], []]
    assert list(charge(4, report(1, 11)).differences()) == ["the lines bill 0.04 USD, the price asks 0.06 USD"]


def test_amounts_that_go_in_steps_may_be_rounded_to_one_or_not() -> None:
    """Of dinars, Stripe charges multiples of ten: 12,340 tokens at 0.01 are 123.4, and 123 and 120 are both right."""
    dinars = Price("price_1", "kwd", PricingMode.PER_UNIT, (Tier(None, Decimal("0.01")),))
    for cents, differs in ((123, False), (120, False), (130, True)):
        told = replace(charge(cents, report(1, 12_340)), price=dinars)
        assert bool(list(told.differences())) is differs


def test_what_does_not_add_up_is_said() -> None:
    """A row that is gone, a report that came when the invoice was final, a price that nobody read."""
    lost = replace(report(1), held=HeldRows())
    assert list(charge(5, lost).differences()) == [
        'report 1 froze 10 tokens of 1 rows, and holds 0 of 0 rows now: see the runbook, "Rows changed"'
    ]
    late = report(2, accepted=END + 2 * HOUR - START)
    short = replace(charge(5, report(1)), reports=(report(1), late))
    assert [one.id for one in short.billed_reports] == [1]
    assert list(short.differences()) == ["report 2, 10 tokens, was accepted when the invoice was final: it is not on it"]
    assert list(replace(charge(5, report(1)), price=None).differences()) == [
        "price price_1 was never read, so the amount could not be rated again"
    ]


def test_a_first_invoice_bills_no_usage() -> None:
    """It names the metered item and bills nothing of it: the reports of its period are on the next one."""
    first = replace(INVOICE, billing_reason="subscription_create")
    assert not ExplainedCharge(first, (line(0, 0),)).is_metered
    assert ExplainedCharge(INVOICE, (line(0, 0),)).is_metered
