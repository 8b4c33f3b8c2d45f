"""Commands for whoever must prove a bill, and for the books."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from billing_airflow.commands.terms import HOURS, refusals

app = typer.Typer()


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="il_… or in_…, report:4711 or usage-…, or row:123456")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs, with amounts in the minor unit.")] = False,
    rows: Annotated[bool, typer.Option("--rows", help="Every row id, not only each report's first and last.")] = False,
) -> None:
    """Trace an invoice or one of its lines to its reports and their rows, or a row or a report to the line that bills it."""
    from billing_airflow.connections import billing_db
    from billing_airflow.explanation_table import as_record, as_text
    from token_billing.stages.explain import explain as run

    with refusals("not explained"):
        explanation = run(billing_db, name, with_row_ids=rows)
        typer.echo(json.dumps(as_record(explanation), indent=2) if as_json else as_text(explanation, with_row_ids=rows))


@app.command()
def accruals(
    at: Annotated[datetime, typer.Option(formats=HOURS, help="The UTC instant that ends the month, e.g. 2026-02-01T00:00Z.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file to write; without it, to the terminal.")] = None,
) -> None:
    """Write as CSV what each tenant had used before an instant and no final invoice had billed: accrued, unbilled and quarantined."""
    from billing_airflow.accruals_csv import as_csv
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.accruals import accruals as run

    with refusals("not worked out"):
        text = as_csv(run(billing_db, at.replace(tzinfo=UTC), billing_clock()))
        if output is None:
            typer.echo(text, nl=False)
        else:
            output.write_text(text, encoding="utf-8", newline="")
