"""`make bench-explain`: from an invoice line to its rows and back, in a table of so many rows over six months, beside a bare reading of one
month's rows; in an adopted table, and in the sandbox's layout."""

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.databases import APPLICATION_MADE_SQL, Databases
from benchmarks.months_of_usage import make_months
from sandbox.environment import HOME
from sandbox.postgres import PostgresServer
from token_billing.adapters.database import Connect
from token_billing.stages.explain import explain

#: The month that is explained is the first one: where in the table it lies makes no difference.
MONTH, NEXT_MONTH = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)

#: From an adopted table to the sandbox's layout: half-full pages, and an index of every row's time.
OWN_LAYOUT = (
    "ALTER TABLE token_usage SET (fillfactor = 50)",
    "DROP INDEX token_usage_billing_time, token_usage_unbilled",
    "VACUUM FULL token_usage",
    "CREATE INDEX token_usage_created_at ON token_usage (created_at)",
    "VACUUM ANALYZE token_usage",
)

# It reads what an explanation of the month must read at least, and nothing else.
BESIDE = "bare sum over the month's rows"
BARE = "SELECT sum(input_tokens + output_tokens) FROM token_usage WHERE created_at >= %s AND created_at < %s"

#: The month's lines by the size of their charges: the largest, one in the middle, the smallest.
LINES = """
SELECT min(line_id), row_number() OVER (ORDER BY sum(quantity) DESC)
FROM billing.invoice_line WHERE period_start = %s GROUP BY invoice_id
"""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def bench(
    rows: Annotated[int, typer.Option(min=10_000, help="Rows of token_usage.")] = 2_000_000,
    days: Annotated[int, typer.Option(min=31, help="In so many days; six months, unless told otherwise.")] = 181,
    tenants: Annotated[int, typer.Option(min=3, help="Tenants.")] = 10_000,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; every figure is their median.")] = 5,
) -> None:
    """Measure explanations; figures are told, not enforced."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with this process

    began = time.monotonic()

    def say(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {step}", soft_wrap=True)

    HOME.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="bench-explain-", dir=HOME) as folder,
        PostgresServer(Path(folder) / "postgres", durable=False) as server,
    ):
        databases = Databases(server)
        databases.make_quiet()
        connect = databases.create("months", APPLICATION_MADE_SQL)
        make_months(connect, MONTH, days * 24, rows, tenants, say)
        table = Table(title=f"{rows:,} rows of {tenants:,} tenants in {days} days", show_edge=False, padding=(0, 0, 0, 1))
        for name in ("what", "adopted table", "sandbox's layout"):
            table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
        say("explaining in the adopted table")
        adopted = _measure(connect, repeats)
        say("the same rows in the sandbox's layout")
        with connect() as db:
            db.autocommit = True
            for step in OWN_LAYOUT:
                db.execute(step)
        own = _measure(connect, repeats)
    for what in adopted:
        table.add_row(what, *(f"{one[what]:.3f} s  {one[what] / one[BESIDE]:.2f} ×" for one in (adopted, own)))
    console.print(table)


def _measure(connect: Connect, repeats: int) -> dict[str, float]:
    """The median round of each explanation, and of what they are compared with, in seconds; all of them in turn in each round."""
    with connect() as db:
        lines = {place: line for line, place in db.execute(LINES, [MONTH])}
        [(report, row)] = db.execute("SELECT max(id) / 2, (SELECT max(id) / 2 FROM token_usage) FROM billing.usage_report").fetchall()
    names = {
        "line of the largest tenant": lines[1],
        "line of the median tenant": lines[len(lines) // 2],
        "line of the smallest tenant": lines[len(lines)],
        "report, to its line and rows": f"report:{report}",
        "row, to its report and line": f"row:{row}",
    }
    seconds: dict[str, list[float]] = {BESIDE: [], **{what: [] for what in names}}
    for _ in range(repeats):
        with connect() as db:
            seconds[BESIDE].append(_timed(lambda: db.execute(BARE, [MONTH, NEXT_MONTH]).fetchall()))
        for what, name in names.items():
            seconds[what].append(_timed(partial(_explained, connect, name)))
    return {what: statistics.median(taken) for what, taken in seconds.items()}


def _explained(connect: Connect, name: str) -> None:
    explanation = explain(connect, name)
    # A fast wrong answer is no answer.
    if explanation.differences or not explanation.charges:
        raise AssertionError(f"{name}: {explanation.differences}")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(bench)
