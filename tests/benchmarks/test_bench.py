"""`make bench` runs, at any size and whatever the caller's environment holds; what it measures is told, never asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

ROWS = {
    "mark_adopted",
    "mark_own_layout",
    "mark_adopted_30_unresolved",
    "mark_adopted_30_unresolved_to_all",
    "mark_own_layout_30_unresolved",
    "mark_own_layout_30_unresolved_to_all",
    "push",
    "reconcile_meters",
    "end_to_end",
    "simulator",
}

#: A real account, another database and a proxy to nowhere: had any of it an effect, the run would fail or end elsewhere.
FOREIGN = {
    "STRIPE_SECRET_KEY": "sk_live_nobody",
    "AIRFLOW_CONN_STRIPE_DEFAULT": '{"conn_type": "generic", "password": "sk_live_nobody"}',
    "PGHOST": "192.0.2.1",
    "PGDATABASE": "nowhere",
    "HTTP_PROXY": "http://192.0.2.1:9",
    "HTTPS_PROXY": "http://192.0.2.1:9",
    "ALL_PROXY": "http://192.0.2.1:9",
}


def test_every_row_runs_and_is_written_down_whatever_the_environment_holds(tmp_path: Path) -> None:
    """A tiny run tells its targets, writes every round of every row, and leaves nothing but bench.json behind."""
    sizes = {"repeats": 1, "rows": 2000, "reports": 40, "job_rows": 1000, "events": 200}
    options = [word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    environment = {**os.environ, **FOREIGN, "PYTHONPATH": "include:plugins", "BILLING_SANDBOX_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert "≤ 1.40 ×" in run.stdout and "≥ 0.80 ×" in run.stdout
    assert [left.name for left in tmp_path.iterdir()] == ["bench.json"]

    written = json.loads((tmp_path / "bench.json").read_text())
    assert set(written) == {"sizes", "rows", "seconds"}
    assert written["sizes"] == sizes
    assert {row["key"] for row in written["rows"]} == ROWS
    for row in written["rows"]:
        assert row["figure"] > 0, row
        assert len(row["ours_seconds"]) == 1, row
        assert len(row["beside_seconds"]) == (row["key"] != "simulator"), row
        assert (row["met"] is None) == (row["target"] is None), row


def test_explanations_are_measured_in_both_layouts(tmp_path: Path) -> None:
    """Lines large and small, a report and a row, each held against a bare reading; nothing is left behind."""
    environment = {**os.environ, **FOREIGN, "PYTHONPATH": "include:plugins", "BILLING_SANDBOX_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.explaining", "--rows", "10000", "--days", "31", "--tenants", "20", "--repeats", "1"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    figures = [line for line in run.stdout.splitlines() if line.count("×") == 2]
    assert len(figures) == 6 and "adopted table" in run.stdout and "sandbox's layout" in run.stdout
    assert list(tmp_path.iterdir()) == []
