"""Airflow task runs without a scheduler: what `airflow dags test` does, many times in one process."""

import gc
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class AirflowRuns:
    """Runs of one DAG in this process, for as long as the block lasts. Airflow reads its settings when it is first imported, so
    the environment must be complete by then, and the metadata database must outlast the block."""

    def __init__(self, dag_id: str) -> None:
        """Brings Airflow's metadata database up to date and loads the DAGs, once; raises RuntimeError where one does not load."""
        self.dag = _dags()[dag_id]
        self._count = 0

    def run(self, logical_date: datetime) -> Any:
        """One run with all its tasks; returns Airflow's DagRun."""
        run = self.dag.test(logical_date=logical_date)
        self._count += 1
        if self._count % 50 == 0:
            gc.collect()  # gives back the descriptors that finished runs still hold
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        from airflow.settings import dispose_orm

        dispose_orm()  # its connections would end in errors once the metadata server stops


@cache
def _dags() -> dict[str, Any]:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.utils.db import initdb

    initdb()
    bag = DagBag(dag_folder=os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    if bag.import_errors:
        raise RuntimeError(f"the DAGs do not load: {bag.import_errors}")
    return dict(bag.dags)


class AirflowProcess:
    """The same for any DAG, in a process of its own, which can be ended at any moment: while a task runs in-process, Airflow passes
    Ctrl-C and SIGTERM on to the task, that is to itself, and they are lost."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        """`log`: where Airflow's own output goes."""
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        answers, child_answers = os.pipe()
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "sandbox.airflow_runs", str(child_answers)],
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=[child_answers],
                start_new_session=True,  # Ctrl-C in the terminal is ours to handle
            )
        os.close(child_answers)
        self._answers = os.fdopen(answers)

    def run(self, dag_id: str, logical_date: datetime) -> str:
        """One run with all its tasks; returns its state. Raises RuntimeError with the log's end where Airflow has died."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{dag_id} {logical_date.isoformat()}\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, and so will not answer
        state = self._answers.readline().strip()
        if not state:
            raise RuntimeError(f"Airflow has ended ({self._log}):\n{self._log.read_text(errors='replace')[-3000:]}")
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._answers.close()
        if kind is None:
            self._child.communicate()  # end of input: it leaves the metadata database in order
        else:
            self._child.kill()
            self._child.wait()


def _serve(answers_fd: int) -> None:
    """The child: DAG and logical date a line come in, the run's state goes out."""
    with ExitStack() as entered, os.fdopen(answers_fd, "w", buffering=1) as answers:
        runs_of = cache(lambda dag_id: entered.enter_context(AirflowRuns(dag_id)))
        for line in sys.stdin:
            dag_id, logical_date = line.split()
            answers.write(f"{runs_of(dag_id).run(datetime.fromisoformat(logical_date)).state}\n")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # Airflow's in-process API server leaves threads behind that would never end
