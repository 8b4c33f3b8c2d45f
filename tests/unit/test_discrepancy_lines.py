"""How discrepancies read."""

from datetime import UTC, datetime

from billing_airflow.discrepancy_lines import as_line
from token_billing.adapters.discrepancies import OpenDiscrepancy

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def test_a_line_tells_what_differs_in_tokens_and_money() -> None:
    one = OpenDiscrepancy(7, "duplicate", "a", None, "in_1", "twice", 5, 5000, NOON, "in_1", NOON, 1, 1250, "usd")
    assert as_line(one) == (
        "7: duplicate, tenant a, Stripe's in_1, from 2026-03-10T12:00Z: twice; 5 tokens expected, 5,000 found; "
        "0.01 USD expected, 12.50 USD found (2026-03-10T12:00Z)"
    )


def test_a_line_tells_no_figures_where_there_are_none() -> None:
    one = OpenDiscrepancy(8, "link_conflict", None, 12, None, "", 5, None, NOON, None, None, None, None, None)
    assert as_line(one) == "8: link_conflict, report 12: see the runbook (2026-03-10T12:00Z)"
