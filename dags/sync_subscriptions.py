"""
### sync_subscriptions

Keeps tenants linked to what Stripe bills them by: every five minutes it fetches from Stripe's list what webhooks missed, and handles each
event of the inbox once. What follows is worked out anew from all events and from the objects as Stripe shows them now, so that
duplicates, losses and any order come to the same.

1. **sync** – a completed checkout links its tenant; plan changes, renewals, trials and cancellations become the tenant's timeline, which
   says by which subscription item usage is billed at every instant; subscriptions that the application linked are followed as well.
   Meter events that Stripe did not count after all are found. What does not fit together (a second checkout of a linked tenant,
   subscriptions that overlap, an event that cannot be applied) becomes a discrepancy: `python -m billing_airflow discrepancies`.
2. **tell_of_final_invoices** – has `reconcile_invoices` run where events told of invoices that became final, or were paid or voided.
   Skipped where there are none.

`report_usage` does the same before it freezes an hour, but for following what is new.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, TriggerRule, dag, task

from billing_airflow.assets import FINAL_INVOICES
from billing_airflow.policy import TASK_DEFAULTS, ended_well


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

    @task(inlets=[FINAL_INVOICES], outlets=[FINAL_INVOICES], trigger_rule=TriggerRule.ALL_DONE)
    def tell_of_final_invoices(*, inlet_events: Any, outlet_events: Any) -> str:
        """Until when all that is known of final invoices has been told."""
        from billing_airflow import reconciling

        return reconciling.tell_of_final_invoices(inlet_events[FINAL_INVOICES], outlet_events[FINAL_INVOICES])

    synced, told = sync(), tell_of_final_invoices()
    synced >> told
    [synced, told] >> ended_well()


sync_subscriptions()
