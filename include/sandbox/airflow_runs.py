"""Airflow task runs without a scheduler: what `airflow dags test` does, many times in one process."""

import gc
import os
from datetime import datetime
from types import TracebackType
from typing import Any, Self


class AirflowRuns:
    """Runs of one DAG, for as long as the block lasts. Airflow reads its settings when it is first imported, so the environment
    must be complete by then, and the metadata database must outlast the block."""

    def __init__(self, dag_id: str) -> None:
        """Brings Airflow's metadata database up to date and loads the DAG; raises RuntimeError where it does not load."""
        from airflow.dag_processing.dagbag import DagBag
        from airflow.utils.db import initdb

        initdb()
        bag = DagBag(dag_folder=os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
        if bag.import_errors:
            raise RuntimeError(f"the DAGs do not load: {bag.import_errors}")
        self.dag = bag.dags[dag_id]
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
