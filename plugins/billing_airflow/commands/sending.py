"""Commands about what is sent to Stripe."""

from getpass import getuser
from typing import Annotated

import typer

from billing_airflow.commands.terms import refusals

app = typer.Typer()


@app.command()
def pause(
    reason: Annotated[str, typer.Option(help="Why; whoever finds a push skipped reads it.")],
    by: Annotated[str, typer.Option(help="Who pauses.", default_factory=getuser)],
) -> None:
    """Pause all sending to Stripe. Freezing and marking go on, nothing is lost by waiting."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.pause import pause_sending

    with refusals("not paused"):
        pause_sending(billing_db, by, reason, billing_clock())


@app.command()
def resume(by: Annotated[str, typer.Option(help="Who resumes.", default_factory=getuser)]) -> None:
    """Let pushes send again."""
    from billing_airflow.connections import billing_clock, billing_db
    from token_billing.stages.pause import resume_sending

    with refusals("not resumed"):
        resume_sending(billing_db, by, billing_clock())


@app.command()
def held() -> None:
    """List the reports that wait for a decision before they are sent."""
    from billing_airflow.connections import billing_db
    from token_billing.stages.hold import held_reports

    with refusals("not listed"):
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

    with refusals("not decided"):
        run(newest_billing_db(), report_id, approve=approve, by=by, clock=billing_clock())


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

    with refusals("not revoked"):
        cause = RevocationCause.SETTLED_SUMMARY if missing_in_summary else RevocationCause.OPERATOR
        disowned = Disowned(report_id, cause, evidence)
        run(newest_billing_db(), disowned, billing_clock(), revoked_by=by, resend=not quarantine)
