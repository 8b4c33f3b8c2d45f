"""DAGs that fail by an exception, run by `dag.test()`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import CronDataIntervalTimetable, dag, get_current_context, task

HOURLY = CronDataIntervalTimetable("0 * * * *", timezone="UTC")
START = datetime(2026, 1, 1, tzinfo=UTC)


@dag(schedule=HOURLY, start_date=START, catchup=False)
def fails_with_secrets():
    """Fails with an exception that quotes everything an alert must not."""

    @task
    def push():
        key = "sk_live_" + "a1B2c3D4" * 3
        raise ValueError(f"Stripe refused key {key} and postgres://billing:hunter2@db/ledger; check the key, then clear this task")

    push()


@dag(schedule=HOURLY, start_date=START, catchup=False)
def fails_after_a_retry():
    """Fails twice: the first failure is retried, the second is final."""

    @task(retries=1, retry_delay=timedelta(0))
    def push():
        raise RuntimeError(f"no luck at try {get_current_context()['ti'].try_number}")

    push()


@dag(schedule=HOURLY, start_date=START, catchup=False)
def fails_in_one_shard():
    """Three mapped tasks of which the second fails."""

    @task
    def push(shard: int):
        if shard == 1:
            raise RuntimeError("shard 1 is broken")

    push.expand(shard=[0, 1, 2])


@dag(schedule=None, start_date=START)
def fails_plainly():
    """Fails with an exception."""

    @task
    def push():
        raise RuntimeError("plain failure")

    push()


fails_with_secrets()
fails_after_a_retry()
fails_in_one_shard()
fails_plainly()
