"""Frames keep integers whole, and a statement shows names as names."""

import io
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from token_billing.invoice_frames import COLUMNS, compared_frame, statement, totals
from token_billing.invoice_reconciliation import Compared
from token_billing.invoices import Invoice
from token_billing.periods import BillingPeriod
from token_billing.reconciliation import Cause, Difference

NOW = datetime(2026, 4, 10, 11, tzinfo=UTC)
INVOICE = Invoice("in_1", "cus_1", "sub_1", "subscription_cycle", "paid", "usd", NOW, None, NOW, 0, NOW)
#: No float holds it.
LARGE = 2**53 + 1


def compared(**more: Any) -> Compared:
    whole = {
        "currency": "usd",
        "stripe_tokens": LARGE,
        "stripe_cents": LARGE,
        "our_tokens": LARGE,
        "our_cents": LARGE,
        "tenants": ("acme",),
    }
    return Compared(INVOICE, "il_1", BillingPeriod(datetime(2026, 3, 10, tzinfo=UTC), NOW), **{**whole, **more})


def test_integers_stay_integers_also_beyond_2_to_the_53_and_beside_missing_ones() -> None:
    frame = compared_frame([compared(), compared(our_tokens=None, our_cents=None, stripe_tokens=None)])
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS
    assert frame["our_tokens"].tolist() == [LARGE, pd.NA] and frame["token_difference"].tolist() == [0, pd.NA]
    [total] = totals(compared_frame([compared(), compared(stripe_tokens=LARGE + 2)])).to_dict("records")
    assert (total["our_tokens"], total["stripe_tokens"], total["charges"]) == (2 * LARGE, 2 * LARGE + 2, 2)


def test_totals_are_by_currency() -> None:
    """Yen are not added to dollars, and what nothing is known of is in no sum."""
    sums = totals(
        compared_frame([compared(), compared(currency="jpy", stripe_cents=7, our_cents=5), compared(our_tokens=None, our_cents=None)])
    )
    assert sums[["currency", "charges", "our_cents", "stripe_cents"]].values.tolist() == [["jpy", 1, 5, 7], ["usd", 1, LARGE, LARGE]]


def test_a_statement_shows_names_as_names() -> None:
    """Whatever a tenant calls itself; and the CSV has every integer whole."""
    tenant = '<script>alert("x")</script>'
    difference = Difference(Cause.DUPLICATE, "in_1", f"{tenant} & more", tenant, "il_1", found_cents=5, expected_cents=0, currency="usd")
    made = statement(compared_frame([compared(tenants=(tenant,), differences=(difference,), is_tie=True)]), [difference], [], NOW)
    assert "<script>" not in made.html and "&lt;script&gt;" in made.html and "&amp; more" in made.html
    assert f"{LARGE:,}" in made.html and "rounding tie" in made.html and "90,071,992,547,409.93 USD" in made.html
    [row] = pd.read_csv(io.StringIO(made.csv), dtype="string").to_dict("records")
    assert (row["tenant"], row["our_tokens"], row["cause"], row["period_end"]) == (tenant, str(LARGE), "duplicate", "2026-04-10T11:00:00Z")
    assert (made.title, made.discrepancy_count) == ("Invoices compared at 2026-04-10 11:00 UTC", 1)
