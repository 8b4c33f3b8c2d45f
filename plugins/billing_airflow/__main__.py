"""Commands for operators, with the connections that the DAGs use: `python -m billing_airflow …`."""

import typer

from billing_airflow.commands import discrepancies, exclusions, finance, ledger, proposals, quarantine, sending, statements

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for topic in (ledger, sending, quarantine, discrepancies, exclusions, finance, statements, proposals):
    app.add_typer(topic.app)


@app.callback()
def billing() -> None:
    """Commands for operators of the billing pipeline."""


if __name__ == "__main__":
    app()
