"""Commands for operators, with the connections that the DAGs use: `python -m billing_airflow …`."""

import logging
from datetime import UTC, datetime
from typing import Annotated

import typer

from token_billing.errors import BillingError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def billing() -> None:
    """Commands for operators of the billing pipeline."""


@app.command()
def adopt(
    cut_over: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%dT%H:%MZ", "%Y-%m-%dT%H:%M:%SZ"],
            help="The first UTC hour that is this pipeline's to bill, e.g. 2026-01-31T14:00Z.",
        ),
    ] = None,
) -> None:
    """Make the database behind connection billing_db ready to be billed from, or bring its ledger up to date."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.adopt import adopt as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(billing_db, billing_clock(), cut_over and cut_over.replace(tzinfo=UTC))
    except BillingError as refusal:
        typer.secho(f"not adopted: {refusal}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
