"""Commands for operators, with the connections that the DAGs use: `python -m billing_airflow …`."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from getpass import getuser
from typing import Annotated

import typer

from token_billing.errors import BillingError

_HOURS = ["%Y-%m-%dT%H:%MZ", "%Y-%m-%dT%H:%M:%SZ"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def billing() -> None:
    """Commands for operators of the billing pipeline."""


@app.command()
def adopt(
    cut_over: Annotated[
        datetime | None,
        typer.Option(
            formats=_HOURS,
            help="The first UTC hour that is this pipeline's to bill, e.g. 2026-01-31T14:00Z.",
        ),
    ] = None,
) -> None:
    """Make the database behind connection billing_db ready to be billed from, or bring its ledger up to date."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.adopt import adopt as run

    with _refusals("not adopted"):
        run(billing_db, billing_clock(), cut_over and cut_over.replace(tzinfo=UTC))


@app.command()
def recover(by: Annotated[str, typer.Option(help="Who recovers.", default_factory=getuser)]) -> None:
    """Let a restored or copied database take the place of the one that was billed from. Every other copy is refused from then on."""
    from billing_airflow.connections import billing_clock, billing_db
    from billing_airflow.variables import AirflowVariables
    from token_billing.stages.recover import recover as run

    with _refusals("not recovered"):
        run(billing_db, AirflowVariables(), billing_clock(), recovered_by=by)


@app.command()
def pause(
    reason: Annotated[str, typer.Option(help="Why; whoever finds a push skipped reads it.")],
    by: Annotated[str, typer.Option(help="Who pauses.", default_factory=getuser)],
) -> None:
    """Pause all sending to Stripe. Freezing and marking go on, nothing is lost by waiting."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.pause import pause_sending

    with _refusals("not paused"):
        pause_sending(billing_db, by, reason, billing_clock())


@app.command()
def resume(by: Annotated[str, typer.Option(help="Who resumes.", default_factory=getuser)]) -> None:
    """Let pushes send again."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.pause import resume_sending

    with _refusals("not resumed"):
        resume_sending(billing_db, by, billing_clock())


@app.command()
def revoke(
    report_id: Annotated[int, typer.Argument(help="The report's id in billing.usage_report.")],
    evidence: Annotated[str, typer.Option(help="How it is known that Stripe disowned it: Stripe's own code and message, for instance.")],
    by: Annotated[str, typer.Option(help="Who revokes.", default_factory=getuser)],
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Keep it aside instead of sending it anew.")] = False,
    missing_in_summary: Annotated[
        bool, typer.Option("--missing-in-summary", help="Stripe's summary was looked at, as the runbook says, and lacks its tokens.")
    ] = False,
) -> None:
    """Give back the rows of a report that Stripe accepted and disowned later, and send it anew under another identifier."""
    from billing_airflow.connections import billing_clock, newest_billing_db
    from token_billing.model import Disowned, RevocationCause
    from token_billing.stages.revoke import revoke as run

    with _refusals("not revoked"):
        cause = RevocationCause.SETTLED_SUMMARY if missing_in_summary else RevocationCause.OPERATOR
        disowned = Disowned(report_id, cause, evidence)
        run(newest_billing_db(), disowned, billing_clock(), revoked_by=by, resend=not quarantine)


@app.command()
def quarantined(as_json: Annotated[bool, typer.Option("--json", help="For programs, with amounts in the minor unit.")] = False) -> None:
    """List what is kept aside, in tokens and in what it would add to its period's bill."""
    from billing_airflow.connections import billing_db
    from billing_airflow.quarantined_table import as_records, as_table
    from token_billing.stages.quarantined import quarantined_usage

    with _refusals("not listed"):
        usages = quarantined_usage(billing_db)
        typer.echo(json.dumps(as_records(usages), indent=2) if as_json else as_table(usages))


@app.command()
def discrepancies(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List what does not fit together and waits for a person."""
    from billing_airflow.connections import billing_db
    from token_billing.stages.discrepancies import open_discrepancies

    with _refusals("not listed"):
        found = open_discrepancies(billing_db)
        if as_json:
            typer.echo(json.dumps([asdict(one) for one in found], indent=2, default=str))
        for one in [] if as_json else found:
            named = {"tenant": one.tenant_id, "report": one.report_id, "Stripe's": one.stripe_id}
            about = ", ".join(f"{what} {name}" for what, name in named.items() if name)
            typer.echo(f"{one.id}: {one.cause}, {about}: {one.details or 'see the runbook'} ({one.found_at:%Y-%m-%dT%H:%MZ})")


@app.command()
def settle(
    discrepancy_id: Annotated[int, typer.Argument(help="The discrepancy's number.")],
    by: Annotated[str, typer.Option(help="Who dealt with it.", default_factory=getuser)],
) -> None:
    """Note that a person has dealt with a discrepancy."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.discrepancies import settle as run

    with _refusals("not settled"):
        run(billing_db, discrepancy_id, by, billing_clock())


@app.command()
def exclude(
    tenant_id: Annotated[str, typer.Argument(help="The tenant's id.")],
    reason: Annotated[str, typer.Option(help="internal or complimentary")],
    by: Annotated[str, typer.Option(help="Who excludes.", default_factory=getuser)],
    since: Annotated[datetime | None, typer.Option(formats=_HOURS, help="From which UTC instant on; without it, from now.")] = None,
) -> None:
    """Bill a tenant's usage to nobody: it is kept and counted, and never sent."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.exclude import exclude as run

    with _refusals("not excluded"):
        run(billing_db, tenant_id, reason, since.replace(tzinfo=UTC) if since else billing_clock()(), by)


@app.command()
def include(
    tenant_id: Annotated[str, typer.Argument(help="The tenant's id.")],
    since: Annotated[datetime | None, typer.Option(formats=_HOURS, help="From which UTC instant on; without it, from now.")] = None,
) -> None:
    """Bill an excluded tenant's usage again."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.exclude import include as run

    with _refusals("not included"):
        run(billing_db, tenant_id, since.replace(tzinfo=UTC) if since else billing_clock()())


@app.command()
def held() -> None:
    """List the reports that wait for a decision before they are sent."""
    from billing_airflow.connections import billing_db
    from token_billing.stages.hold import held_reports

    with _refusals("not listed"):
        for one in held_reports(billing_db):
            typer.echo(
                f"report {one.report_id}: {one.tenant_id!r}, {one.window}, {one.token_count} tokens; {one.reason}, "
                f"{one.limit_tokens} allowed"
            )


@app.command()
def decide(
    report_id: Annotated[int, typer.Argument(help="The held report.")],
    approve: Annotated[bool, typer.Option("--approve/--refuse", help="Send it, or quarantine it.")],
    by: Annotated[str, typer.Option(help="Who decides.", default_factory=getuser)],
) -> None:
    """Approve or refuse a held report."""
    from billing_airflow.connections import billing_clock, newest_billing_db
    from token_billing.stages.hold import decide as run

    with _refusals("not decided"):
        run(newest_billing_db(), report_id, approve=approve, by=by, clock=billing_clock())


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """A refusal ends the command with its message."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        yield
    except BillingError as refusal:
        typer.secho(f"{what}: {refusal}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
