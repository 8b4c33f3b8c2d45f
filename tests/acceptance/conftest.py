"""Airflow's connections lead to the test's world."""

import os

import pytest

from sandbox.environment import SandboxServices, airflow_environment
from world import World


@pytest.fixture
def airflow_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    services = SandboxServices(world.dsn, "postgresql://unused", world.simulator.base_url)
    for name, value in airflow_environment(services, os.environ["AIRFLOW_HOME"], replayed=False).items():
        if name.startswith(("AIRFLOW_CONN", "BILLING")):
            monkeypatch.setenv(name, value)
