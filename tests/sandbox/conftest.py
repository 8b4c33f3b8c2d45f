"""One throw-away PostgreSQL for the tests that put usage into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sandbox import APPLICATION_SQL
from sandbox.postgres import PostgresServer


@pytest.fixture(scope="session")
def usage_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres") / "data", durable=False) as server:
        yield server


@pytest.fixture
def usage_database(usage_server: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """A connection, committing by itself, to a database with nothing but the application's empty tables."""
    with psycopg.connect(usage_server.recreate_database("usage"), autocommit=True) as connection:
        connection.execute(APPLICATION_SQL.read_bytes())
        yield connection


@pytest.fixture(scope="session")
def real_usage() -> Path:
    """The folder of usage from real services, which is not part of the project."""
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the folder of real usage ({folder}) is not here")
    return folder
