"""Commands about tenants that nobody is billed for."""

from datetime import UTC, datetime
from getpass import getuser
from typing import Annotated

import typer

from billing_airflow.commands.terms import HOURS, refusals

app = typer.Typer()


@app.command()
def exclude(
    tenant_id: Annotated[str, typer.Argument(help="The tenant's id.")],
    reason: Annotated[str, typer.Option(help="internal or complimentary")],
    by: Annotated[str, typer.Option(help="Who excludes.", default_factory=getuser)],
    since: Annotated[datetime | None, typer.Option(formats=HOURS, help="From which UTC instant on; without it, from now.")] = None,
) -> None:
    """Bill a tenant's usage to nobody: it is kept and counted, and never sent."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.exclude import exclude as run

    with refusals("not excluded"):
        run(billing_db, tenant_id, reason, since.replace(tzinfo=UTC) if since else billing_clock()(), by)


@app.command()
def include(
    tenant_id: Annotated[str, typer.Argument(help="The tenant's id.")],
    since: Annotated[datetime | None, typer.Option(formats=HOURS, help="From which UTC instant on; without it, from now.")] = None,
) -> None:
    """Bill an excluded tenant's usage again."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.exclude import include as run

    with refusals("not included"):
        run(billing_db, tenant_id, since.replace(tzinfo=UTC) if since else billing_clock()())
