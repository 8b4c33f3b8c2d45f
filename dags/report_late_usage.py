"""
### report_late_usage

Bills, every hour, what the runs of `report_usage` have not: usage that came after its hour was billed, hours that no run ever
covered, and reports that still waited for Stripe when their run had used up its tries. It finds those windows itself, at
most a hundred a run (where there are more, late rows and waiting reports take turns), and takes each through the same stages.

1. **find_future_usage** – tells of rows that are dated in hours to come; they are billed once their hour has closed.
2. **find_late_windows** – closed windows that hold rows no freeze has seen, or reports that wait.
3. **freeze** – the late rows of a window become its next revision.
4. **plan_pushes** – the shards of all windows.
5. **push** – sends the reports. Skipped where nothing is left to send, and while sending is paused.
6. **mark_billed** – marks the rows of every accepted report, also when some push failed.
7. **check_conservation** – the law of conservation for each of the windows.
8. **cancel_surplus** – beside all that: cancels what Stripe has twice, because a worker that was stopped for a day or more sent its
   report after another had sent it anew. Stripe cancels events for 24 hours only; what it refuses to cancel waits for a person.

Safe at any time, beside any other run. Usage that Stripe no longer takes, because it came more than 35 days late, is
quarantined with that reason.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import CronDataIntervalTimetable, TriggerRule, dag, task

from billing_airflow.policy import TASK_DEFAULTS, ended_well


@dag(
    schedule=CronDataIntervalTimetable("30 * * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["billing", "stripe"],
    default_args={**TASK_DEFAULTS, "retries": 2, "execution_timeout": timedelta(minutes=25)},
)
def report_late_usage() -> None:
    @task(multiple_outputs=False)
    def find_future_usage() -> dict[str, int]:
        """Tokens by tenant that are dated in hours to come."""
        from billing_airflow import stages

        return stages.future_usage()

    @task
    def find_late_windows() -> list[str]:
        """The starts of the windows to bill."""
        from billing_airflow import stages

        return stages.late_windows()

    @task(multiple_outputs=False, map_index_template="{{ task.op_kwargs['window'] }}")
    def freeze(window: str) -> dict[str, list[list[int]]]:
        """The window's shards to push, each as [number, count]."""
        from billing_airflow import stages

        return {window: stages.freeze(window)}

    @task(trigger_rule=TriggerRule.ALL_DONE)
    def plan_pushes(frozen: list[dict[str, list[list[int]]]]) -> list[dict[str, object]]:
        """One push for each shard of each window that could be frozen."""
        return [{"window": window, "shard": shard} for one in frozen for window, shards in one.items() for shard in shards]

    @task(multiple_outputs=False, map_index_template="{{ task.op_kwargs['window'] }}")
    def push(window: str, shard: list[int]) -> dict[str, int]:
        """Reports by the state they are left in."""
        from billing_airflow import stages

        return stages.push(window, shard)

    @task(multiple_outputs=False, trigger_rule=TriggerRule.ALL_DONE, map_index_template="{{ task.op_kwargs['window'] }}")
    def mark_billed(window: str) -> dict[str, int]:
        """Reports and rows marked."""
        from billing_airflow import stages

        return stages.mark_billed(window)

    @task(multiple_outputs=False, trigger_rule=TriggerRule.ALL_DONE, map_index_template="{{ task.op_kwargs['window'] }}")
    def check_conservation(window: str) -> dict[str, int]:
        """The window's tokens by what became of them."""
        from billing_airflow import stages

        return stages.check_conservation(window)

    @task(multiple_outputs=False)
    def cancel_surplus() -> int:
        """How many events Stripe no longer counts twice."""
        from billing_airflow import stages

        return stages.cancel_surplus()

    find_future_usage()
    cancel_surplus()
    windows = find_late_windows()
    frozen = freeze.expand(window=windows)
    pushed = push.expand_kwargs(plan_pushes(frozen))
    pushed >> (marked := mark_billed.expand(window=windows)) >> (checked := check_conservation.expand(window=windows))
    [frozen, pushed, marked, checked] >> ended_well()


report_late_usage()
