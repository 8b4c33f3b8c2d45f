"""Commands about what comparisons of invoices found."""

from pathlib import Path
from typing import Annotated

import typer

from billing_airflow.commands.terms import refusals

app = typer.Typer()


@app.command()
def statements() -> None:
    """List the statements, the newest first."""
    from billing_airflow.connections import billing_db
    from token_billing.stages.statements import newest_statements

    with refusals("not listed"):
        for one in newest_statements(billing_db):
            typer.echo(f"{one.id}: {one.title}, {one.discrepancy_count} differences")


@app.command()
def statement(
    statement_id: Annotated[int | None, typer.Argument(help="The statement's number; without it, the newest.")] = None,
    as_html: Annotated[bool, typer.Option("--html/--csv", help="A page for people, or CSV with amounts in the minor unit.")] = False,
    output: Annotated[Path | None, typer.Option("-o", help="The file to write it to; without it, it is printed.")] = None,
) -> None:
    """Show what a comparison of final invoices with our rows found."""
    from billing_airflow.connections import billing_db
    from token_billing.stages.statements import statement as read

    with refusals("not shown"):
        text = read(billing_db, statement_id, "html" if as_html else "csv")
        if output is None:
            typer.echo(text, nl=False)
        else:
            output.write_text(text, encoding="utf-8")
