"""Commands about the database that is billed from."""

from datetime import UTC, datetime
from getpass import getuser
from typing import Annotated

import typer

from billing_airflow.commands.terms import HOURS, refusals

app = typer.Typer()


@app.command()
def adopt(
    cut_over: Annotated[
        datetime | None,
        typer.Option(
            formats=HOURS,
            help="The first UTC hour that is this pipeline's to bill, e.g. 2026-01-31T14:00Z.",
        ),
    ] = None,
) -> None:
    """Make the database behind connection billing_db ready to be billed from, or bring its ledger up to date."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.adopt import adopt as run

    with refusals("not adopted"):
        run(billing_db, billing_clock(), cut_over and cut_over.replace(tzinfo=UTC))


@app.command()
def recover(by: Annotated[str, typer.Option(help="Who recovers.", default_factory=getuser)]) -> None:
    """Let a restored or copied database take the place of the one that was billed from. Every other copy is refused from then on."""
    from billing_airflow.connections import billing_clock, billing_db
    from billing_airflow.variables import AirflowVariables
    from token_billing.stages.recover import recover as run

    with refusals("not recovered"):
        run(billing_db, AirflowVariables(), billing_clock(), recovered_by=by)
