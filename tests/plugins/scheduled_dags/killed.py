"""DAGs for a live scheduler: three whose task waits to be killed, and one that fails by an exception."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from airflow.sdk import dag, get_current_context, task

START = datetime(2026, 1, 1, tzinfo=UTC)


def wait_to_be_killed() -> None:
    """Writes the process ids of the task and of its supervisor to a file named after the DAG, then waits."""
    pids = Path(os.environ["PIDS_FOLDER"]) / get_current_context()["dag"].dag_id
    unfinished = pids.with_suffix(".unfinished")
    unfinished.write_text(f"{os.getpid()} {os.getppid()}")
    unfinished.rename(pids)
    time.sleep(300)


@dag(schedule="@once", start_date=START)
def is_killed():
    @task
    def push():
        wait_to_be_killed()

    push()


@dag(schedule="@once", start_date=START)
def is_killed_with_its_supervisor():
    @task
    def push():
        wait_to_be_killed()

    push()


@dag(schedule="@once", start_date=START)
def is_marked_failed():
    @task
    def push():
        wait_to_be_killed()

    push()


@dag(schedule=None, start_date=START)
def fails_plainly():
    @task
    def push():
        raise RuntimeError("plain failure")

    push()


is_killed()
is_killed_with_its_supervisor()
is_marked_failed()
fails_plainly()
