"""The stages of reconciliation as Airflow tasks call them. A module of its own: its stages import pandas, which no push needs."""

from datetime import datetime
from typing import Any

from airflow.sdk.exceptions import AirflowSkipException

from billing_airflow.connections import billing_clock, newest_billing_db, stripe_target
from token_billing.reconciliation import OF_INVOICES
from token_billing.settings import ReconcileSettings, price_overrides
from token_billing.stages import discrepancies, invoice_news
from token_billing.stages import read_invoices as reading


def read_invoices() -> int:
    """Reads Stripe's invoices; returns how many."""
    return reading.read_invoices(newest_billing_db(), stripe_target(), billing_clock())


def compare_invoices() -> dict[str, int]:
    """Compares final invoices with our rows; returns how many invoices, charges, differences, and new ones among them."""
    from token_billing.stages.reconcile_invoices import compare_invoices as compare

    return compare(newest_billing_db(), stripe_target(), billing_clock(), price_overrides())


def check_invoice_discrepancies() -> int:
    """How many discrepancies of invoices are open within the tolerance; fails where one goes beyond it."""
    return discrepancies.require_none(newest_billing_db(), OF_INVOICES, ReconcileSettings.from_environment().tolerance)


def tell_of_final_invoices(told: Any, telling: Any) -> str:
    """Until when events about final invoices are told of by this; skipped where there are none since what was `told` last. What is told
    carries that time, so that telling and remembering are one."""
    last = next(iter(told.ascending(False).limit(1)), None)
    until = invoice_news.final_until(newest_billing_db(), last and datetime.fromisoformat(last.extra["until"]), billing_clock())
    if until is None:
        raise AirflowSkipException("no invoice became final, or was paid or voided, since that was told last")
    telling.extra = {"until": until.isoformat()}
    return until.isoformat()
