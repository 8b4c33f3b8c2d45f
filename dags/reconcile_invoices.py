"""
### reconcile_invoices

Holds every final invoice against our own rows, to the token and to the cent: daily at six, and as soon as `sync_subscriptions` learns of
invoices that became final, or were paid or voided.

1. **read_invoices** – Stripe's invoices and their lines, as they are now.
2. **compare** – each metered charge against what we reported of its item and period: quantities exactly, amounts rated anew, line by
   line. What differs becomes a discrepancy with its cause, and what is gone goes away by itself. A statement is kept: page *Billing
   statements* in the menu *Browse*, or `python -m billing_airflow statement`.
3. **check_discrepancies** – fails, which alerts, while a discrepancy goes beyond the tolerance (`BILLING_TOLERANCE_TOKENS`,
   `BILLING_TOLERANCE_CENTS`; zero unless set) and nobody has dealt with it. The runbook says what to do about each cause.

Safe at any time, beside any other run. An invoice that was compared is compared again while anything on it differs, and daily for three
days after it became final.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import AssetOrTimeSchedule, CronDataIntervalTimetable, dag, task

from billing_airflow.assets import FINAL_INVOICES
from billing_airflow.policy import TASK_DEFAULTS


@dag(
    schedule=AssetOrTimeSchedule(timetable=CronDataIntervalTimetable("0 6 * * *", timezone="UTC"), assets=[FINAL_INVOICES]),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["billing", "stripe", "reconciliation"],
    default_args={**TASK_DEFAULTS, "retries": 2, "execution_timeout": timedelta(hours=2)},
)
def reconcile_invoices() -> None:
    @task
    def read_invoices() -> int:
        """How many invoices were read."""
        from billing_airflow import reconciling

        return reconciling.read_invoices()

    @task(multiple_outputs=False)
    def compare() -> dict[str, int]:
        """Invoices, charges and differences."""
        from billing_airflow import reconciling

        return reconciling.compare_invoices()

    @task
    def check_discrepancies() -> int:
        """How many discrepancies are within the tolerance."""
        from billing_airflow import reconciling

        return reconciling.check_invoice_discrepancies()

    read_invoices() >> compare() >> check_discrepancies()


reconcile_invoices()
