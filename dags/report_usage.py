"""
### report_usage

Bills one UTC hour of token usage, every hour: what `token_usage` holds for the hour is frozen into one usage report per
tenant, each report is sent to Stripe exactly once, and the rows of accepted reports are marked billed.

1. **await_facts** – waits until it is known which subscriptions began, changed or ended up to the end of the hour: a minute, as a rule.
   After five it fails, which alerts, and the run goes on with what is known.
2. **freeze** – fixes which rows belong to which report, one for each side of an instant at which a tenant's billing period, plan or
   subscription begins or ends; nothing is sent yet.
3. **push** – sends the reports, large hours in a few shards. Skipped where nothing is left to send, and while sending is paused.
4. **mark_billed** – marks the rows of every accepted report, also when some push failed.
5. **check_conservation** – the tokens of the rows are the sum of what is billed, pending and quarantined, or the run fails.

A run bills its data interval. Running it again – retry, clear, backfill, by hand, at the same time – is safe: what is billed
is not billed twice, and usage that arrived late is billed as the next revision. What comes after the run is `report_late_usage`'s
to bill. When a task fails, its message says the next step; clearing it goes on from where it stopped.
"""

from datetime import UTC, datetime

from airflow.sdk import CronDataIntervalTimetable, TriggerRule, dag, get_current_context, task

from billing_airflow.policy import TASK_DEFAULTS


@dag(
    schedule=CronDataIntervalTimetable("0 * * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=4,
    doc_md=__doc__,
    tags=["billing", "stripe"],
    default_args=TASK_DEFAULTS,
)
def report_usage() -> None:
    @task.sensor(mode="reschedule", poke_interval=30, timeout=3600)
    def await_facts() -> bool:
        """Whether the facts are known."""
        from billing_airflow import stages

        return stages.await_facts(stages.run_window(get_current_context()))

    @task(trigger_rule=TriggerRule.ALL_DONE)
    def freeze() -> list[list[int]]:
        """The shards to push, as [number, count]."""
        from billing_airflow import stages

        return stages.freeze(stages.run_window(get_current_context()))

    @task(multiple_outputs=False, map_index_template="shard {{ task.op_kwargs['shard'][0] + 1 }} of {{ task.op_kwargs['shard'][1] }}")
    def push(shard: list[int]) -> dict[str, int]:
        """Reports by the state they are left in."""
        from billing_airflow import stages

        return stages.push(stages.run_window(get_current_context()), shard)

    @task(multiple_outputs=False, trigger_rule=TriggerRule.ALL_DONE)
    def mark_billed() -> dict[str, int]:
        """Reports and rows marked."""
        from billing_airflow import stages

        return stages.mark_billed(stages.run_window(get_current_context()))

    @task(multiple_outputs=False, trigger_rule=TriggerRule.NONE_FAILED)
    def check_conservation() -> dict[str, int]:
        """The hour's tokens by what became of them."""
        from billing_airflow import stages

        return stages.check_conservation(stages.run_window(get_current_context()))

    frozen = freeze()
    await_facts() >> frozen
    pushed = push.expand(shard=frozen)
    pushed >> mark_billed() >> (checked := check_conservation())
    pushed >> checked


report_usage()
