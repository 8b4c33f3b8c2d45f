"""`make demo` as its user meets it, smaller."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox.environment import ROOT

FIGURES = {
    "rows",
    "tokens",
    "billed_tokens",
    "stripe_tokens",
    "unbilled_tokens",
    "quarantined_tokens",
    "tenants",
    "hours",
    "invoices",
    "discrepancies",
    "seconds",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sandbox")


def start(home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command as the Makefile calls it; the shell exports a live account."""
    return subprocess.Popen(
        [sys.executable, "-m", "sandbox", "demo", *arguments],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": "include:plugins",
            "BILLING_SANDBOX_HOME": str(home),
            "STRIPE_SECRET_KEY": "sk_live_never",
            "STRIPE_API_KEY": "sk_live_never",
            "AIRFLOW_CONN_STRIPE_DEFAULT": '{"conn_type": "generic", "password": "sk_live_never"}',
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_demo_starts_over_and_bills_everything(home: Path) -> None:
    """kill -9 in the middle of the runs; the next one is complete. A live account in the shell has no effect on either."""
    killed = start(home, "--hours", "30", "--tenants", "6")
    assert killed.stdout is not None
    for line in killed.stdout:
        if "starting Airflow" in line:
            break
    time.sleep(8)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    demo = start(home, "--hours", "3", "--tenants", "6")
    told, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, told
    assert "every token is accounted for exactly once" in told
    figures = json.loads((home / "demo.json").read_text())
    assert set(figures) == FIGURES
    assert figures["tokens"] == figures["billed_tokens"] == figures["stripe_tokens"] > 0
    assert (figures["hours"], figures["unbilled_tokens"], figures["discrepancies"]) == (3, 0, 0)
    assert figures["invoices"] == 2 * figures["tenants"]  # the one that begins a subscription, and that of the period's end


def test_a_usage_file_is_billed_to_the_token(home: Path, tmp_path: Path) -> None:
    """Awkward tenants, rows on the hour and just before it, zero, the largest count, identical rows, two hours of it."""
    rows = [
        "2025-10-01T00:00:00Z,plain,m,1,2",
        "2025-10-01T00:59:59.999999Z,plain,m,10,20",
        "2025-10-01T01:00:00Z,plain,m,100,200",
        "2025-10-01T01:10:00Z,plain,m,7,0",
        "2025-10-01T01:10:00Z,plain,m,7,0",
        '2025-10-01T01:20:00Z,"with, comma and ""quotes""",m,2147483647,2147483647',
        f"2025-10-01T01:30:00Z,{'x' * 120},m,5,5",
        "2025-10-01T01:40:00Z,株式会社,m,0,0",
    ]
    file = tmp_path / "usage.csv"
    file.write_text("\n".join(["created_at,tenant_id,model,prompt_tokens,completion_tokens", *rows]) + "\n")
    demo = start(home, "--usage", str(file))
    told, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, told
    figures = json.loads((home / "demo.json").read_text())
    expected = 3 + 30 + 300 + 14 + 2 * (2**31 - 1) + 10
    assert figures["tokens"] == figures["billed_tokens"] == figures["stripe_tokens"] == expected
    assert (figures["rows"], figures["tenants"], figures["hours"]) == (8, 4, 2)


def test_a_faulty_usage_file_is_refused_with_line_and_reason(home: Path, tmp_path: Path) -> None:
    """Before anything is started."""
    file = tmp_path / "usage.csv"
    file.write_text("created_at,tenant_id,model,prompt_tokens,completion_tokens\n2025-10-01T00:00:00Z,a,m,-1,0\n")
    demo = start(home, "--usage", str(file))
    told, _ = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert "usage.csv" in told and "line 2" in told
