"""Commands about what does not fit together."""

import json
from dataclasses import asdict
from getpass import getuser
from typing import Annotated

import typer

from billing_airflow.commands.terms import refusals

app = typer.Typer()


@app.command()
def discrepancies(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List what does not fit together and waits for a person."""
    from billing_airflow.connections import billing_db
    from billing_airflow.discrepancy_lines import as_line
    from token_billing.stages.discrepancies import open_discrepancies

    with refusals("not listed"):
        found = open_discrepancies(billing_db)
        if as_json:
            typer.echo(json.dumps([asdict(one) for one in found], indent=2, default=str))
        for one in [] if as_json else found:
            typer.echo(as_line(one))


@app.command()
def settle(
    discrepancy_id: Annotated[int, typer.Argument(help="The discrepancy's number.")],
    by: Annotated[str, typer.Option(help="Who dealt with it.", default_factory=getuser)],
) -> None:
    """Note that a person has dealt with a discrepancy."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.discrepancies import settle as run

    with refusals("not settled"):
        run(billing_db, discrepancy_id, by, billing_clock())
