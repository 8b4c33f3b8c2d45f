"""Statements hold every tenant's money: nobody reads one without a login."""

import pytest
from fastapi.testclient import TestClient

from billing_airflow.statement_pages import statement_app


@pytest.mark.parametrize("path", ["/", "/1.html", "/1.csv"])
def test_nobody_reads_a_statement_without_a_login(path: str) -> None:
    """Before anything is looked up, whether or not there is such a one."""
    assert TestClient(statement_app()).get(path).status_code == 401
