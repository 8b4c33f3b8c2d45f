"""The few calls to Airflow's REST API that the sandbox makes; no login, because everybody on this machine is its administrator."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from token_billing.windows import Window

#: Airflow answers within milliseconds, or its server is still starting.
CALL_SECONDS = 20.0


class AirflowRefused(Exception):
    """Airflow answered with an error; the message holds it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class AirflowApi:
    """The API of the server at `url`. Every call raises OSError where nothing answers, and AirflowRefused for an error."""

    url: str

    def heartbeats(self) -> dict[str, datetime]:
        """When scheduler, dag_processor and triggerer last said that they live; those that never did are missing."""
        health = self.call("GET", "/monitor/health")
        beats = {name: health.get(name, {}).get(f"latest_{name}_heartbeat") for name in ("scheduler", "dag_processor", "triggerer")}
        return {name: datetime.fromisoformat(beat).astimezone(UTC) for name, beat in beats.items() if beat}

    def is_paused(self, dag_id: str) -> bool | None:
        """Whether the DAG is paused; None where Airflow has not read it yet."""
        try:
            return bool(self.call("GET", f"/dags/{urllib.parse.quote(dag_id)}")["is_paused"])
        except AirflowRefused as refusal:
            if refusal.status == 404:
                return None
            raise

    def import_errors(self) -> dict[str, str]:
        """What each DAG file that does not load died of, by file name."""
        return {error["filename"]: error["stack_trace"] for error in self.call("GET", "/importErrors")["import_errors"]}

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The DAG's latest runs, at most a hundred."""
        found: list[dict[str, Any]] = self.call("GET", f"/dags/{urllib.parse.quote(dag_id)}/dagRuns?order_by=-logical_date&limit=100")[
            "dag_runs"
        ]
        return found

    def run_window(self, dag_id: str, window: Window, note: str) -> bool:
        """Starts the run that bills the window, as the scheduler would have; False where the window has had one."""
        body = {
            "dag_run_id": f"catch_up__{window.end.isoformat()}",  # the scheduler names runs by their window's end, too
            # A run's logical date is taken once, so it must be the scheduler's own: the start of the window, not the default, its end.
            "logical_date": window.start.isoformat(),
            "data_interval_start": window.start.isoformat(),
            "data_interval_end": window.end.isoformat(),
            "run_after": window.end.isoformat(),  # the UI sorts by it
            "note": note,
        }
        try:
            self.call("POST", f"/dags/{urllib.parse.quote(dag_id)}/dagRuns", body)
        except AirflowRefused as refusal:
            if refusal.status == 409:
                return False
            raise
        return True

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call to `/api/v2`; JSON in, JSON out."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v2{path}", data, {"Content-Type": "application/json"}, method=method)
        # Never through a proxy: the server is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=CALL_SECONDS) as response:
                answer: dict[str, Any] = json.loads(response.read())
                return answer
        except urllib.error.HTTPError as error:
            raise AirflowRefused(f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:1000]}", error.code) from error
