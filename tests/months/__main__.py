"""`make months`: months of billing on a virtual clock, in a PostgreSQL and Stripe simulators of their own, which go away with it."""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sandbox.environment import HOME, without_stripe

if TYPE_CHECKING:
    from months.result import Result

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160)

#: Problems of one world that are told in full.
MOST_TOLD = 30


@app.command()
def months(
    months: Annotated[int, typer.Option(min=1, help="How many months of usage.")] = 6,
    tenants: Annotated[int, typer.Option(min=1, help="How many tenants.")] = 50,
    seed: Annotated[int, typer.Option(help="Draws what happens.")] = 1,
) -> None:
    """Live the months twice, as they come and with planted errors; exit 0 only if every final invoice is explained to the cent, every
    planted error is found with its cause, and nothing else is flagged."""
    # Nothing of the caller's leads anywhere: no key, no address, no proxy. What is sent goes to the simulators started here.
    kept = {name: value for name, value in without_stripe(os.environ).items() if not name.lower().endswith("_proxy")}
    os.environ.clear()
    os.environ.update(kept)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with this process

    from months.worlds import World, lived_in_parallel
    from sandbox.postgres import PostgresServer

    HOME.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="months-", dir=HOME) as folder,
        PostgresServer(Path(folder) / "postgres", durable=False) as postgres,
    ):
        results = lived_in_parallel([World(kind, months, tenants, seed) for kind in ("clean", "planted")], postgres)
    for result in results:
        _tell(result)
    if any(result.problems for result in results):
        raise typer.Exit(1)


def _tell(result: "Result") -> None:
    table = Table(title=f"{result.world}: what happened")
    table.add_column("what")
    table.add_column("how often", justify="right")
    for name, count in sorted(result.figures.items()):
        table.add_row(name, f"{count:,}")
    console.print(table)
    if result.planted:
        planted = Table(title="planted errors")
        for column in ("what", "found as", "in the billing of"):
            planted.add_column(column)
        for one in result.planted:
            planted.add_row(one.kind, ", ".join(one.found), one.tenant, style=None if one.is_right else "red")
        console.print(planted)
    for problem in result.problems[:MOST_TOLD]:
        console.print(f"  {problem}", markup=False, soft_wrap=True, style="red")
    figures = result.figures
    console.print(
        f"{result.world}: {figures['rows']:,} rows, {figures['tokens of rows']:,} tokens, {figures['final invoices']:,} final "
        f"invoices with {figures['metered lines']:,} metered lines, {figures['charges explained to the cent']:,} charges explained to the "
        f"cent, {sum(one.is_right for one in result.planted)} of {len(result.planted)} planted errors found, {len(result.problems):,} "
        f"problems, {result.seconds:.0f} s",
        style="bold red" if result.problems else "bold green",
    )


if __name__ == "__main__":
    app()
