"""`make closings`: random histories around the ends of billing periods, in a PostgreSQL and Stripe simulators of their own, which go away
with it."""

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sandbox.environment import HOME, without_stripe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160)

#: Failing histories that are told in full.
MOST_TOLD = 5


@app.command()
def closings(
    histories: Annotated[int, typer.Option(min=1, help="How many; the n-th has the seed SEED + n - 1.")] = 200,
    seed: Annotated[int, typer.Option(help="The first history's seed.")] = 1,
    processes: Annotated[int, typer.Option(min=0, max=8, help="How many work at once; 0: as many as there are cores.")] = 0,
) -> None:
    """Live histories; exit 0 only if nobody went untold of an invoice that is final without usage, and nothing else was told."""
    # Nothing of the caller's leads anywhere: no key, no address, no proxy. What is sent goes to the simulators started here.
    kept = {name: value for name, value in without_stripe(os.environ).items() if not name.lower().endswith("_proxy")}
    os.environ.clear()
    os.environ.update(kept)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with this process

    from closings.histories import lived_in_parallel
    from sandbox.postgres import PostgresServer

    figures, failed = Counter[str](), []
    HOME.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="closings-", dir=HOME) as folder,
        PostgresServer(Path(folder) / "postgres", durable=False) as postgres,
    ):
        for result in lived_in_parallel(postgres, range(seed, seed + histories), min(processes or os.cpu_count() or 1, histories)):
            figures += result.figures
            if result.problems:
                failed.append(result.seed)
                if len(failed) <= MOST_TOLD:
                    console.print(f"history {result.seed} went wrong; again: make closings HISTORIES=1 SEED={result.seed}", style="red")
                    for problem in result.problems:
                        console.print(f"  {problem}", markup=False, soft_wrap=True)
    seconds = time.monotonic() - started
    table = Table(title="what happened")
    table.add_column("what")
    table.add_column("how often", justify="right")
    for name, count in sorted(figures.items()):
        table.add_row(name, f"{count:,}")
    console.print(table)
    console.print(
        f"{histories:,} histories in {seconds:.0f} s ({seconds / histories:.2f} s each), {figures['final invoices']:,} final invoices, "
        f"{figures['final and incomplete']:,} of them incomplete, {figures['told before it was final']:,} of which were told of before: "
        f"{len(failed):,} histories went wrong",
        style="bold red" if failed else "bold green",
    )
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
