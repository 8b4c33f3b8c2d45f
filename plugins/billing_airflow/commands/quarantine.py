"""Commands about usage that is kept aside."""

import json
from typing import Annotated

import typer

from billing_airflow.commands.terms import refusals

app = typer.Typer()


@app.command()
def quarantined(as_json: Annotated[bool, typer.Option("--json", help="For programs, with amounts in the minor unit.")] = False) -> None:
    """List what is kept aside, in tokens and in what it would add to its period's bill."""
    from billing_airflow.connections import billing_db
    from billing_airflow.quarantined_table import as_records, as_table
    from token_billing.stages.quarantined import quarantined_usage

    with refusals("not listed"):
        usages = quarantined_usage(billing_db)
        typer.echo(json.dumps(as_records(usages), indent=2) if as_json else as_table(usages))
