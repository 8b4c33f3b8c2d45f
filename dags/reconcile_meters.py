"""
### reconcile_meters

Holds what Stripe's meters count against what Stripe accepted from us, every hour: each customer and hour, to the token; tenants may share a
customer. What agrees is *confirmed*.

1. **compare** – reads the hours that wait for it: those of which nothing was accepted for six hours, those that a draft invoice is about
   to bill, those that differed, and as many others as a run has room for. A difference says nothing before it has settled for six hours;
   then its cause is looked for in the minutes of our reports. Once after its end, each billing period is compared as a whole, which
   finds what others reported in hours without usage of ours. Usage records are compared by billing period.
2. **check_discrepancies** – fails while a difference beyond the tolerance (`BILLING_TOLERANCE_TOKENS`, zero) is open that nobody has
   settled: `missing_at_stripe`, `surplus_at_stripe`, `rejected_asynchronously`, `foreign_identifier`, `unknown_customer`.

It stays inside Stripe's read limits (`BILLING_STRIPE_READS_PER_SECOND`) and reads for twenty minutes at most; the next run goes on
with what has waited longest. Safe at any time, beside any other run. `python -m billing_airflow discrepancies` lists what was found.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import CronDataIntervalTimetable, TriggerRule, dag, task

from billing_airflow.policy import TASK_DEFAULTS, ended_well


@dag(
    schedule=CronDataIntervalTimetable("45 * * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["billing", "stripe", "reconciliation"],
    default_args={**TASK_DEFAULTS, "retries": 2, "execution_timeout": timedelta(minutes=40)},
)
def reconcile_meters() -> None:
    @task(multiple_outputs=False)
    def compare() -> dict[str, int]:
        """Reads, reports confirmed, and hours by what was found."""
        from billing_airflow import stages

        return stages.reconcile_meters()

    @task(trigger_rule=TriggerRule.ALL_DONE)
    def check_discrepancies() -> int:
        """How many differences are open within the tolerance."""
        from billing_airflow import stages

        return stages.require_meters_agree()

    compared, checked = compare(), check_discrepancies()
    compared >> checked
    [compared, checked] >> ended_well()


reconcile_meters()
