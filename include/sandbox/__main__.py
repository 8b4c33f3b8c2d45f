"""The sandbox's commands, as the Makefile calls them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sandbox.usage_csv import UsageFileError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False)


@app.callback()
def sandbox() -> None:
    """A PostgreSQL, a Stripe simulator and an Airflow on this machine, for trying the product out."""


@app.command()
def demo(
    usage: Annotated[Path | None, typer.Option(help="A usage CSV (.csv or .csv.gz) to bill instead of made-up usage.")] = None,
    hours: Annotated[int, typer.Option(min=1)] = 24,
    tenants: Annotated[int, typer.Option(min=1)] = 40,
) -> None:
    """Bill usage hour by hour through Airflow and print a statement; exit 0 only if every token is accounted for."""
    from sandbox.demo import Demo, run_demo

    try:
        what = Demo.of_file(usage) if usage else Demo.made_up(hours, tenants)
    except UsageFileError as refusal:
        console.print(str(refusal), style="red", markup=False)
        raise typer.Exit(2) from None
    raise typer.Exit(0 if run_demo(what, console) else 1)


if __name__ == "__main__":
    app()
