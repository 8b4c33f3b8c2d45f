"""What an alert says. No I/O and no Airflow: text in, text out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

#: Longest cause in an alert, in characters. Chat services refuse or split messages of 2,000 to 4,000 characters, and an SQL
#: error can quote a whole statement; the task's log has the rest.
CAUSE_LIMIT = 1_000

#: Failed tasks a run's alert names one by one; a run of mapped tasks can have hundreds.
NAMED_TASKS_LIMIT = 10

#: Said when a task failed and its process reported no exception.
KILLED_OR_LOST = (
    "killed or lost: no exception was reported (out of memory, SIGKILL, worker gone, or ended before its code began); "
    "or marked failed by hand"
)

#: Said when the task process reported a failure but Airflow handed no exception over, e.g. while preparing the task.
NO_EXCEPTION_GIVEN = "failed before or beside its own code, without an exception; its log says more"

# What must never reach a chat room, each with what stays readable so that the operator still knows which secret it was.
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Stripe's secret, restricted and publishable keys: https://docs.stripe.com/keys
    (re.compile(r"\b((?:sk|rk|pk)_(?:live|test)_)[\w*]+"), r"\1***"),
    # Stripe's webhook signing secrets: https://docs.stripe.com/webhooks/signature
    (re.compile(r"\b(whsec_)[\w+/=]+"), r"\1***"),
    # user:password@ of any URL, up to the last @ because passwords are not always quoted
    (re.compile(r"(://[^\s:/@]*):\S*@"), r"\1:***@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 ***"),
    (re.compile(r"(?i)\b(password|passwd|pwd|secret|api_?key|access_?token)(['\"]?\s*[=:]\s*)(['\"]?)[^\s'\",;]+"), r"\1\2\3***"),
)


@dataclass(frozen=True)
class Failure:
    """One finally failed task of a run, as its run's alert names it."""

    task_id: str
    #: -1 when the task is not mapped, as in Airflow
    map_index: int
    try_number: int
    cause: str

    def __str__(self) -> str:
        return f"{_task_name(self.task_id, self.map_index)}, try {self.try_number}: {self.cause}"


@dataclass(frozen=True)
class Alert:
    """One thing that failed, and what to do about it. `title` and `body` are free of secrets."""

    dag_id: str
    run_id: str
    cause: str
    next_step: str
    #: None for the alert of a whole run
    task_id: str | None = None
    map_index: int = -1
    try_number: int = 0
    data_interval: tuple[datetime, datetime] | None = None
    log_url: str | None = None
    #: distinguishes two failures of the same run, which has no try number of its own: when the run ended
    run_ended_at: datetime | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two reports of one failure, different once it was tried again."""
        return (self.dag_id, self.run_id, self.task_id, self.map_index, self.try_number, self.run_ended_at)

    @property
    def title(self) -> str:
        """One line: what failed."""
        if self.task_id is None:
            return f"Airflow run failed: {self.dag_id}"
        return f"Airflow task failed: {self.dag_id}.{_task_name(self.task_id, self.map_index)}"

    @property
    def body(self) -> str:
        """Several lines: where, why, and the operator's next step."""
        lines = [f"DAG {self.dag_id}, run {self.run_id}", f"Data interval: {_interval(self.data_interval)}"]
        if self.task_id is not None:
            mapped = f", map index {self.map_index}" if self.map_index >= 0 else ""
            lines.append(f"Task {self.task_id}{mapped}, try {self.try_number}")
        lines += [f"Cause: {self.cause}", f"Next step: {self.next_step}"]
        if self.log_url:
            lines.append(f"{'Run' if self.task_id is None else 'Log'}: {self.log_url}")
        return mask("\n".join(lines))

    @property
    def line(self) -> str:
        """Title and body on one line, for logs that are searched line by line."""
        return " | ".join([mask(self.title), *(part.strip() for part in self.body.splitlines() if part.strip())])


def mask(text: str) -> str:
    """The text without Stripe keys, webhook secrets, passwords in URLs, or bearer tokens."""
    for pattern, kept in _SECRETS:
        text = pattern.sub(kept, text)
    return text


def describe(error: BaseException | str | None) -> str:
    """What an exception says, masked and at most `CAUSE_LIMIT` characters; `NO_EXCEPTION_GIVEN` for None."""
    if error is None:
        return NO_EXCEPTION_GIVEN
    # Masked before it is cut, so that the cut cannot leave half a key that no pattern recognises.
    text = mask(error if isinstance(error, str) else f"{type(error).__name__}: {error}".rstrip(": "))
    return text if len(text) <= CAUSE_LIMIT else f"{text[:CAUSE_LIMIT]}… (cut; the log has all of it)"


def describe_run(reason: str, failures: Sequence[Failure]) -> str:
    """Why a run failed, from Airflow's reason for it and its failed tasks; masked."""
    opening = {
        "task_failure": "tasks failed" if failures else "a task it depends on failed",
        "timed_out": "the run took longer than its dagrun_timeout",
        "all_tasks_deadlocked": "no task of the run can start any more (deadlock)",
    }.get(reason, mask(reason))
    named = [f"\n- {failure}" for failure in failures[:NAMED_TASKS_LIMIT]]
    if len(failures) > NAMED_TASKS_LIMIT:
        named.append(f"\n- and {len(failures) - NAMED_TASKS_LIMIT} more")
    return opening + "".join(named)


def task_next_step(task_id: str, *, by_hand: bool) -> str:
    """What the operator does about one failed task."""
    if by_hand:
        return f"A person marked it failed. When its work is still wanted, clear task {task_id} of this run in the Airflow UI."
    return (
        f"Read the task's log and remove the cause, then clear task {task_id} with its downstream tasks in the Airflow UI. "
        "Every stage is safe to run again."
    )


def run_next_step(reason: str, failures: Iterable[Failure]) -> str:
    """What the operator does about one failed run."""
    if reason == "timed_out":
        return "Find the task that was still running and why (its log, locks in the database), then clear the run in the Airflow UI."
    if any(failure.cause == KILLED_OR_LOST for failure in failures):
        return (
            "Look for an out-of-memory kill or a restart of the worker (exit code 137, the kernel's log, the worker's log), "
            "then clear the failed tasks of this run in the Airflow UI. Every stage is safe to run again."
        )
    if reason == "all_tasks_deadlocked":
        return "Open the run's graph in the Airflow UI, find the task that waits for ever, correct the DAG, then clear the run."
    return "Remove the cause, then clear the failed tasks of this run in the Airflow UI. Every stage is safe to run again."


def _task_name(task_id: str, map_index: int) -> str:
    return task_id if map_index < 0 else f"{task_id}[{map_index}]"


def _interval(interval: tuple[datetime, datetime] | None) -> str:
    if interval is None:
        return "none (the run has no logical date)"
    start, end = interval
    return f"[{start.isoformat(timespec='minutes')}, {end.isoformat(timespec='minutes')})"
