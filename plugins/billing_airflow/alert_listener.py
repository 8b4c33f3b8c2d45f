"""Tells of every finally failed task and every failed run of every DAG, killed ones included.

A task's own failure is told from the process that ran it. A task that was killed fires no task hook there, so each failed run
is told too, from the scheduler, and names its failed tasks. The two alerts of one failure meet in an XCom: the task's process
leaves the cause it told under `CAUSE_XCOM_KEY`, and a failed task without one was killed or lost.

Airflow calls these hooks in three kinds of processes, and with different objects; see `on_task_instance_failed`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.listeners import hookimpl
from airflow.utils.state import TaskInstanceState

from billing_airflow import alert_delivery
from billing_airflow.alerts import KILLED_OR_LOST, Alert, Failure, describe, describe_run, run_next_step, task_next_step

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
    from sqlalchemy.orm import Session

#: Where a task's process leaves what it told, for its run's alert. Airflow deletes it when the task is tried again.
CAUSE_XCOM_KEY = "failure_cause"

#: Failures remembered as told. Airflow repeats a hook within seconds, so a few thousand span any burst.
REMEMBERED_LIMIT = 5_000

log = logging.getLogger("token_billing.alerts")


class _Told:
    """Which failures this process has told; a second report of one of them is dropped."""

    def __init__(self) -> None:
        self._identities: dict[tuple[object, ...], None] = {}
        self._lock = threading.Lock()

    def first_time(self, alert: Alert) -> bool:
        with self._lock:
            if alert.identity in self._identities:
                return False
            self._identities[alert.identity] = None
            if len(self._identities) > REMEMBERED_LIMIT:
                del self._identities[next(iter(self._identities))]
            return True


_told = _Told()


@hookimpl
def on_task_instance_failed(
    previous_state: Any, task_instance: RuntimeTaskInstance | TaskInstance, error: BaseException | str | None
) -> None:
    """Tells of a task that will not be tried again. Never raises.

    Called in the task's process (exception raised), in the scheduler (task and supervisor lost) and in the API server (marked
    failed by hand); the hook also fires for tasks that go to retry, which are not told.
    """
    try:
        if task_instance.state != TaskInstanceState.FAILED:
            return
        # Servers pass the database's row, a task's process passes its own plain object.
        in_server = hasattr(task_instance, "_sa_instance_state")
        alert = _task_alert(task_instance, error, in_server=in_server)
        if not _told.first_time(alert):
            return
        if in_server:
            alert_delivery.tell_from_server(alert)
            return
        alert_delivery.tell_from_task(alert)
        _leave_cause(task_instance, alert.cause)
    except Exception:
        log.exception("%s | a failed task could not be described", alert_delivery.NOT_SENT_PREFIX)


@hookimpl
def on_dag_run_failed(dag_run: DagRun, msg: str) -> None:
    """Tells of a failed run and names its failed tasks. Never raises.

    Called in the scheduler and, for a run marked failed by hand, in the API server, inside a transaction of theirs.
    """
    try:
        alert = _run_alert(dag_run, msg)
        if _told.first_time(alert):
            alert_delivery.tell_from_server(alert)
    except Exception:
        log.exception("%s | a failed run could not be described", alert_delivery.NOT_SENT_PREFIX)


def _task_alert(task_instance: Any, error: BaseException | str | None, *, in_server: bool) -> Alert:
    by_hand = isinstance(error, str) and "manually set" in error
    map_index = task_instance.map_index
    return Alert(
        dag_id=task_instance.dag_id,
        run_id=task_instance.run_id,
        task_id=task_instance.task_id,
        map_index=-1 if map_index is None else map_index,
        try_number=task_instance.try_number,
        data_interval=_known(lambda: _interval(task_instance.dag_run if in_server else task_instance.get_template_context()["dag_run"])),
        cause=describe(error if by_hand or not in_server else f"killed or lost: {error or 'no exception was reported'}"),
        next_step=task_next_step(task_instance.task_id, by_hand=by_hand),
        log_url=_known(lambda: task_instance.log_url),
    )


def _run_alert(dag_run: DagRun, reason: str) -> Alert:
    failures = _failures(dag_run)
    return Alert(
        dag_id=dag_run.dag_id,
        run_id=dag_run.run_id,
        data_interval=_interval(dag_run),
        cause=describe_run(reason, failures),
        next_step=run_next_step(reason, failures),
        log_url=_known(lambda: _run_url(dag_run)),
        run_ended_at=dag_run.end_date,
    )


def _failures(dag_run: DagRun) -> list[Failure]:
    """The run's failed tasks with the causes their processes told.

    Reads in the session that the caller's run belongs to: `create_session()` would hand out that same session, commit it and
    crash the scheduler. Under `dag.test()` the run belongs to none; then in a session of its own, beside the thread's.
    """
    from airflow import settings
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is not None:
        return _failures_in(session, dag_run)
    assert settings.NonScopedSession is not None
    with settings.NonScopedSession() as own:
        return _failures_in(own, dag_run)


def _failures_in(session: Session, dag_run: DagRun) -> list[Failure]:
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    failed = dag_run.get_task_instances(state=[TaskInstanceState.FAILED], session=session)
    if not failed:
        return []
    told = session.execute(
        select(XComModel.task_id, XComModel.map_index, XComModel.value).where(
            XComModel.dag_id == dag_run.dag_id, XComModel.run_id == dag_run.run_id, XComModel.key == CAUSE_XCOM_KEY
        )
    )
    causes = {(task_id, map_index): cause for task_id, map_index, cause in told}
    return [
        Failure(ti.task_id, ti.map_index, ti.try_number, describe(str(causes.get((ti.task_id, ti.map_index), KILLED_OR_LOST))))
        for ti in failed
    ]


def _leave_cause(task_instance: Any, cause: str) -> None:
    try:
        task_instance.xcom_push(key=CAUSE_XCOM_KEY, value=cause)
    except Exception:
        log.warning("the run's alert will not know why task %s failed: its cause could not be stored", task_instance.task_id, exc_info=True)


def _interval(dag_run: Any) -> tuple[datetime, datetime] | None:
    start, end = dag_run.data_interval_start, dag_run.data_interval_end
    return None if start is None or end is None else (start, end)


def _run_url(dag_run: DagRun) -> str:
    from airflow.configuration import conf

    base_url = conf.get("api", "base_url", fallback="http://localhost:8080").rstrip("/")
    return f"{base_url}/dags/{dag_run.dag_id}/runs/{quote(dag_run.run_id)}"


def _known(read: Callable[[], Any]) -> Any:
    """What `read` answers, or None: an alert without its link or interval is better than none."""
    try:
        return read()
    except Exception:
        return None
