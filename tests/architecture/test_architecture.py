"""The shape of the code: who may import whom, how long a file may be, where SQL lives."""

import os
import re
import subprocess
import sys
from pathlib import Path

from sandbox.environment import ROOT
from token_billing.adapters.queries import queries, sql_path

OURS = [path for folder in ("dags", "include", "plugins", "tests", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]


def test_imports_run_one_way() -> None:
    """The contracts stand in pyproject.toml."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/include:{ROOT}/plugins"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_file_grows_beyond_one_idea() -> None:
    """Not much over 400 lines."""
    too_long = {str(path.relative_to(ROOT)): lines for path in OURS if (lines := len(path.read_text().splitlines())) > 450}
    assert too_long == {}


def test_no_module_is_named_after_nothing() -> None:
    """A concept lives in a place named after it."""
    assert [path for path in OURS if path.stem in {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}] == []


def test_the_products_sql_lives_in_named_files_each_query_with_its_sentence() -> None:
    """Python holds none of it, and no query is dead."""
    code = "\n".join(path.read_text() for path in (ROOT / "include" / "token_billing").rglob("*.py"))
    assert re.findall(r'"""?\s*(SELECT|INSERT|UPDATE|DELETE)\b', code) == []
    for file in sql_path("").glob("*.sql"):
        for name, text in queries(file.name).items():
            assert text.startswith("-- ") and text.splitlines()[0].endswith("."), f"{file.name}: {name} has no sentence"
            assert f'["{name}"]' in code, f"{file.name}: {name} is used nowhere"


def test_the_project_pins_what_the_contracts_name() -> None:
    """Airflow 3.3.2, its Postgres provider 7.1.1, stripe 16.1.0, pandas 3, psycopg 3; every pin with its hashes."""
    for lock in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / lock).read_text()
        for pin in ("apache-airflow==3.3.2", "apache-airflow-providers-postgres==7.1.1", "stripe==16.1.0", "pandas==3.", "psycopg==3."):
            assert f"\n{pin}" in text, f"{lock} does not pin {pin}"
        requirements = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", text, re.MULTILINE | re.DOTALL)
        assert all("--hash=sha256:" in requirement for requirement in requirements)
