"""Commands about what could be done, what is decided about it, and who decided what."""

import json
from dataclasses import asdict
from getpass import getuser
from typing import Annotated

import typer

from billing_airflow.commands.terms import refusals
from token_billing.proposals import Decision

app = typer.Typer()

Reports = Annotated[list[int], typer.Argument(help="Ids of reports in billing.usage_report.")]
By = Annotated[str, typer.Option(help="Who decides.", default_factory=getuser)]


@app.command()
def proposals(
    everything: Annotated[bool, typer.Option("--all", help="Those that were decided, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs, with amounts in the minor unit.")] = False,
) -> None:
    """List what could be done about late usage, overbilled invoices, absent reports and mended quarantines."""
    from billing_airflow.connections import billing_clock, newest_billing_db
    from token_billing.stages.propose import propose

    with refusals("not listed"):
        found = propose(newest_billing_db(), billing_clock(), "all" if everything else "open")
        if as_json:
            typer.echo(json.dumps([{**asdict(one), "choices": one.what.choices} for one in found], indent=2, default=str))
        for one in [] if as_json else found:
            about = one.what.tenant_id or one.what.customer_id or one.what.invoice_id
            typer.echo(f"{one.id}: {one.what.kind} of {about}, {one.what.worth}: {one.what.evidence}\n    {one.standing}")


@app.command()
def decide_proposal(
    number: Annotated[int, typer.Argument(help="The proposal's number.")],
    decision: Annotated[Decision, typer.Option("--as", help="What is to be done; `proposals` says what a proposal takes.")],
    by: By,
) -> None:
    """Decide about a proposal, and carry the decision out."""
    from billing_airflow.connections import billing_clock, newest_billing_db, stripe_target
    from token_billing.settings import PushSettings
    from token_billing.stages.apply_proposals import apply_proposals
    from token_billing.stages.decide_proposals import decide as run

    with refusals("not decided, or not carried out"):
        connect, clock = newest_billing_db(), billing_clock()
        decided = run(connect, number, decision, by, clock)
        if decided.applied_at is None and decision != Decision.DECLINED:
            target = stripe_target()
            apply_proposals(connect, target, clock, PushSettings.from_environment(target.secret_key), only=number)


@app.command()
def resolve_proposal(
    number: Annotated[int, typer.Argument(help="The proposal's number.")],
    reason: Annotated[str, typer.Option(help="What was seen at Stripe; it is kept.")],
    by: By,
    made_as: Annotated[str | None, typer.Option(help="The invoice item (ii_…) or credit note (cn_…) that it was made as.")] = None,
    not_made: Annotated[bool, typer.Option("--not-made", help="Nothing was made; the next run makes it.")] = False,
) -> None:
    """Tell what was made at Stripe of a proposal in doubt, where Stripe does not list it."""
    from billing_airflow.connections import billing_clock, newest_billing_db
    from token_billing.stages.decide_proposals import resolve as run

    if not_made is (made_as is not None):
        raise typer.BadParameter("say either --made-as with the object's id, or --not-made")
    with refusals("not resolved"):
        typer.echo(run(newest_billing_db(), number, made_as, by, reason, billing_clock()).standing)


@app.command()
def release(
    reports: Reports,
    reason: Annotated[str, typer.Option(help="Why; it is kept.")],
    by: By,
) -> None:
    """Let quarantined reports be sent, whose cause is gone."""
    from billing_airflow.connections import billing_clock, newest_billing_db
    from token_billing.stages.release import release as run

    with refusals("not released"):
        run(newest_billing_db(), reports, by=by, reason=reason, clock=billing_clock())


@app.command()
def acknowledge(
    reports: Reports,
    reason: Annotated[str, typer.Option(help="Why it may be let be; it is kept.")],
    by: By,
) -> None:
    """Note that quarantined or rejected reports were seen and are let be: no draft invoice waits for them."""
    from billing_airflow.connections import billing_clock, newest_billing_db
    from token_billing.stages.release import acknowledge as run

    with refusals("not acknowledged"):
        run(newest_billing_db(), reports, by=by, reason=reason, clock=billing_clock())


@app.command()
def audit(
    subject: Annotated[str | None, typer.Argument(help="What it is about: `report 4711` or `proposal 7`; without it, everything.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List who decided what, when, and what it changed; the newest first."""
    from billing_airflow.connections import billing_db
    from token_billing.stages.release import audit_trail

    with refusals("not listed"):
        found = audit_trail(billing_db, subject)
        if as_json:
            typer.echo(json.dumps([asdict(one) for one in found], indent=2, default=str))
        for one in [] if as_json else found:
            changed = f"{json.dumps(one.before)} -> {json.dumps(one.after)}"
            typer.echo(f"{one.decided_at:%Y-%m-%dT%H:%M:%SZ} {one.decided_by}: {one.action} {one.subject}: {changed}")
