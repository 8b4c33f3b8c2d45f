"""The sandbox's commands, as the Makefile calls them."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sandbox.postgres import PostgresError
from sandbox.usage_csv import UsageFileError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


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
    from sandbox.services import SandboxBusy

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started is stopped, as after Ctrl-C
    try:
        what = Demo.of_file(usage) if usage else Demo.made_up(hours, tenants)
        sound = run_demo(what, console)
    except UsageFileError as refusal:
        console.print(str(refusal), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except (PostgresError, SandboxBusy) as failure:
        console.print(str(failure), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if sound else 1)


@app.command()
def up(
    port: Annotated[int | None, typer.Option(envvar="PORT", min=1, max=65535, help="Airflow's port on 127.0.0.1 (default 8080).")] = None,
) -> None:
    """Start Airflow with the sandbox in the background, usage arriving; returns when everything is healthy."""
    from sandbox import stack

    try:
        url = stack.up(_say, port)
    except (stack.StackFailed, PostgresError) as failure:
        console.print(str(failure), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    console.print(f"\n  Airflow     [bold]{url}[/]  (no login)\n  its logs    {stack.LOGS}\n  to stop it  make down\n", soft_wrap=True)


@app.command()
def down() -> None:
    """Stop everything that `up` started."""
    from sandbox import stack

    try:
        console.print("stopped" if stack.down(_say) else "nothing was running")
    except (stack.StackFailed, PostgresError) as failure:
        console.print(str(failure), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


@app.command()
def status() -> None:
    """Say which parts of the sandbox run; exit 0 only if it is up."""
    from sandbox import stack

    raise typer.Exit(0 if stack.status(_say) else 1)


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
