"""Names the marker of tests that start servers."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: starts Airflow's servers; tens of seconds")
