"""Airflow task runs on the tests' own metadata database, whose connections lead to the test's world."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from sandbox.airflow_runs import AirflowRuns
from sandbox.environment import SandboxServices, airflow_environment
from world import World


@pytest.fixture(scope="session")
def runs_of() -> Iterator[Callable[[str], AirflowRuns]]:
    """The runs of a DAG by its id. What time could heal is not tried again here: a test has no time."""
    with ExitStack() as entered:

        @cache
        def runs(dag_id: str) -> AirflowRuns:
            runs = entered.enter_context(AirflowRuns(dag_id))
            for task in runs.dag.tasks:
                task.retries = 0
            return runs

        yield runs


@pytest.fixture
def airflow(
    world: World, runs_of: Callable[[str], AirflowRuns], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AirflowRuns:
    """The runs of the module's `DAG_ID`."""
    services = SandboxServices(world.dsn, "postgresql://unused", world.simulator.base_url)
    for name, value in airflow_environment(services, os.environ["AIRFLOW_HOME"], replayed=False).items():
        if name.startswith(("AIRFLOW_CONN", "BILLING")):
            monkeypatch.setenv(name, value)
    return runs_of(request.module.DAG_ID)
