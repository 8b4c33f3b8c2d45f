"""
### close_billing_periods

Holds the draft of every ended billing period until all usage of the period is on it, then lets it go. Every ten minutes, because a draft
of an account that has set no rule lives for an hour.

1. **hold_and_release** – looks at all drafts of our subscriptions. One whose usage is not all frozen, accepted by Stripe and confirmed
   by its meters, or quarantined and acknowledged, is held; one that is complete is finalised half an hour later. After 48 hours
   (`BILLING_HOLD_HOURS`) somebody is told, and three hours later the draft goes as it is.
2. **check_closings** – fails, which alerts, with the list of what is missing, where an invoice is about to be finalised without all of
   its usage, or was: at once, then once a day until somebody has settled it (`python -m billing_airflow discrepancies`).

A draft whose time somebody set by hand at Stripe, or which is not finalised by itself, is left alone; whether it lacks something is told
all the same. A warning, `short_grace`, stands as long as the account is not known to keep its drafts for 72 hours: an outage of an hour
around a period's end would else finalise a draft that nobody could hold.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import CronDataIntervalTimetable, TriggerRule, dag, task

from billing_airflow.policy import TASK_DEFAULTS, ended_well


@dag(
    schedule=CronDataIntervalTimetable("*/10 * * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["billing", "stripe"],
    default_args={**TASK_DEFAULTS, "retries": 2, "execution_timeout": timedelta(minutes=30)},
)
def close_billing_periods() -> None:
    @task(multiple_outputs=False)
    def hold_and_release() -> dict[str, int]:
        """Invoices that are drafts, and those held, let go, and told of as incomplete now."""
        from billing_airflow import stages

        return stages.hold_and_release()

    @task(trigger_rule=TriggerRule.ALL_DONE)
    def check_closings() -> None:
        """Fails where somebody has to know."""
        from billing_airflow import stages

        stages.check_closings()

    held, checked = hold_and_release(), check_closings()
    held >> checked
    [held, checked] >> ended_well()


close_billing_periods()
