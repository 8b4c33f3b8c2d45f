"""Runs DAGs of `failing_dags/` with `dag.test()` on request: one JSON line in, one JSON line out.

A process of its own, so that Airflow's process-wide state stays out of pytest's. In: `{"dag_id": …, "alerts": <the connection as
JSON text, or null>}`. Out: `{"run": <state>, "tasks": {<task id>: <state>}, "log": [<lines of the logger token_billing.alerts>]}`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

HOUR = datetime(2026, 1, 2, 5, tzinfo=UTC)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever Airflow prints goes to stderr, so that stdout carries answers only

    from airflow.dag_processing.dagbag import DagBag

    from billing_airflow import alert_delivery

    dags = DagBag(Path(__file__).parent / "failing_dags").dags
    heard = Lines()
    logging.getLogger("token_billing.alerts").addHandler(heard)
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.pop("AIRFLOW_CONN_ALERTS", None)
        if request["alerts"] is not None:
            os.environ["AIRFLOW_CONN_ALERTS"] = request["alerts"]
        heard.lines = []
        run = dags[request["dag_id"]].test(logical_date=HOUR)
        alert_delivery._outbox.flush(within_s=20)
        tasks = {f"{ti.task_id}[{ti.map_index}]": str(ti.state) for ti in run.get_task_instances()}
        answers.write(json.dumps({"run": str(run.state), "tasks": tasks, "log": heard.lines}) + "\n")


if __name__ == "__main__":
    main()
