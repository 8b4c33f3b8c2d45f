"""
### sync_subscriptions

Keeps tenants linked to what Stripe bills them by: every five minutes it fetches from Stripe's list what webhooks missed, and handles each
event of the inbox once. What follows is worked out anew from all events and from the objects as Stripe shows them now, so that
duplicates, losses and any order come to the same.

1. **sync** – a completed checkout links its tenant; plan changes, renewals, trials and cancellations become the tenant's timeline, which
   says by which subscription item usage is billed at every instant; subscriptions that the application linked are followed as well.
   Meter events that Stripe did not count after all are found. What does not fit together (a second checkout of a linked tenant,
   subscriptions that overlap, an event that cannot be applied) becomes a discrepancy: `python -m billing_airflow discrepancies`.

`report_usage` does the same before it freezes an hour, but for following what is new.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import CronDataIntervalTimetable, dag, task

from billing_airflow.policy import TASK_DEFAULTS


@dag(
    schedule=CronDataIntervalTimetable("*/5 * * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["billing", "stripe"],
    default_args={**TASK_DEFAULTS, "retries": 2, "execution_timeout": timedelta(minutes=30)},
)
def sync_subscriptions() -> None:
    @task(multiple_outputs=False)
    def sync() -> dict[str, int]:
        """Events handled, and tenants whose billing changed."""
        from billing_airflow import stages

        return stages.sync_subscriptions()

    sync()


sync_subscriptions()
