"""`make crash`: random histories in a PostgreSQL and Stripe simulators of their own, which go away with it."""

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psycopg
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from crash.result import FAULT, KILL, Result, sum_of
from sandbox.environment import HOME, without_stripe

if TYPE_CHECKING:
    from sandbox.postgres import PostgresServer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
#: The output stays where it is while a subject's own prints are caught; where it is no terminal, lines may be long.
console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160)

#: Failing histories that are told in full, and problems of each.
MOST_TOLD = 5

#: More than this would be too many for one PostgreSQL's connections.
MOST_PROCESSES = 8


class SubjectName(StrEnum):
    """What lives through the histories."""

    PRODUCT = "product"
    REPLACED = "replaced"


@app.command()
def crash(
    histories: Annotated[int, typer.Option(min=1, help="How many; the n-th has the seed SEED + n - 1.")] = 200,
    seed: Annotated[int, typer.Option(help="The first history's seed.")] = 1,
    subject: Annotated[SubjectName, typer.Option(help="The product, or the hourly job it replaces.")] = SubjectName.PRODUCT,
    processes: Annotated[int, typer.Option(min=0, max=MOST_PROCESSES, help="How many work at once; 0: as many as there are cores.")] = 0,
) -> None:
    """Live random histories; exit 0 only if every token was billed exactly once in all of them."""
    # Nothing of the caller's leads anywhere: no key, no address, no proxy. What is sent goes to the simulators started here.
    kept = {name: value for name, value in without_stripe(os.environ).items() if not name.lower().endswith("_proxy")}
    os.environ.clear()
    os.environ.update(kept)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with this process

    from crash.processes import lived_in_parallel
    from sandbox.postgres import PostgresServer

    failed: list[Result] = []
    figures: Counter[str] = Counter()
    lost_tokens = doubled_tokens = 0
    HOME.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="crash-", dir=HOME) as folder,
        PostgresServer(Path(folder) / "postgres", durable=False) as postgres,
        Progress(console=console) as progress,
    ):
        dsns = _databases(postgres, min(processes or os.cpu_count() or 1, MOST_PROCESSES, histories))
        bar = progress.add_task("histories", total=histories)
        started = time.monotonic()
        for result in lived_in_parallel(dsns, range(seed, seed + histories), subject.value):
            figures += result.figures
            lost_tokens, doubled_tokens = lost_tokens + result.lost_tokens, doubled_tokens + result.doubled_tokens
            if result.problems:
                failed.append(result)
                if len(failed) <= MOST_TOLD and subject is SubjectName.PRODUCT:
                    _tell(result)
            progress.advance(bar)
        seconds = time.monotonic() - started
    console.print(_table(figures))
    console.print(f"{seconds:.1f} s, {histories / seconds:.1f} histories a second in {len(dsns)} processes")
    if failed:
        console.print(
            f"{len(failed)} histories went wrong. "
            f"The first one again: {failed[0].how_to_repeat}{'' if subject is SubjectName.PRODUCT else ' SUBJECT=replaced'}",
            style="bold red",
        )
    console.print(
        f"{histories:,} histories, {figures['tokens']:,} tokens, {sum_of(figures, KILL):,} kills, "
        f"{sum_of(figures, FAULT):,} faults injected: {lost_tokens:,} tokens lost, {doubled_tokens:,} double",
        style="bold red" if failed else "bold green",
    )
    if failed:
        raise typer.Exit(1)


def _databases(postgres: "PostgresServer", count: int) -> list[str]:
    """Adopted databases, one a process: copies of one, because two cannot be made from nothing at once."""
    from sandbox.services import prepare_billing_database

    prepare_billing_database(postgres.recreate_database("crash"))
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        for number in range(count):
            admin.execute(f"CREATE DATABASE crash_{number} TEMPLATE crash")
    return [postgres.dsn(f"crash_{number}") for number in range(count)]


def _tell(result: Result) -> None:
    console.print(f"history {result.seed} went wrong; again: {result.how_to_repeat}", style="red")
    for problem in result.problems[:10]:
        console.print(f"  {problem}", markup=False, soft_wrap=True)


def _table(figures: Counter[str]) -> Table:
    table = Table(title="what happened")
    table.add_column("what")
    table.add_column("how often", justify="right")
    for name, count in sorted(figures.items()):
        table.add_row(name, f"{count:,}")
    return table


if __name__ == "__main__":
    app()
