"""The demo: usage billed hour by hour through real Airflow task runs, and a statement at the end."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

import psycopg
from dateutil.relativedelta import relativedelta
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sandbox.airflow_runs import AirflowProcess
from sandbox.demo_usage import demo_tenants, demo_usage
from sandbox.environment import HOME, airflow_environment
from sandbox.services import demo_services, prepare_billing_database
from sandbox.statement import Statement, draw_up, show
from sandbox.stripe_account import link_tenants
from sandbox.usage_csv import UsageRows, import_usage, read_usage
from token_billing.adapters.clock import system_clock
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.periods import LONGEST_GRACE
from token_billing.windows import HOUR, MINUTE, last_closed_window

#: A run starts so long after its hour has closed, by the simulator's clock.
RUN_DELAY = timedelta(minutes=2)

#: What follows the last hour, which ends everybody's billing period, and how long after it, by the simulator's clock: the drafts are held,
#: the meters read when they have settled, the drafts let go, and the final invoices compared.
CLOSING = (
    ("close_billing_periods", 10 * MINUTE),
    ("reconcile_meters", 7 * HOUR),
    ("close_billing_periods", 7 * HOUR + 10 * MINUTE),
    ("reconcile_invoices", 9 * HOUR),
)

#: The demo's usage is the same every time.
SEED = 20260101


@dataclass(frozen=True)
class Demo:
    """What a demo bills: usage, and the names of its tenants by id."""

    usage: UsageRows
    tenants: dict[str, str]

    @classmethod
    def of_file(cls, path: Path) -> "Demo":
        """The file's usage, re-dated by whole hours so that its last row falls in the last complete hour."""
        usage = read_usage(path).redated(system_clock())
        return cls(usage, {tenant: tenant for tenant in usage.tenants()})

    @classmethod
    def made_up(cls, hours: int, tenant_count: int) -> "Demo":
        """Usage that looks like the real thing, in the last complete hours."""
        first = last_closed_window(system_clock()).end - hours * HOUR
        return cls(demo_usage(first, hours, tenant_count, SEED), {one.id: one.name for one in demo_tenants(tenant_count, SEED)})


def run_demo(demo: Demo, console: Console) -> bool:
    """Bills the demo's usage, prints the statement and writes `demo.json`; whether everything adds up."""
    began = time.monotonic()
    start, end = demo.usage.hours()

    def say(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {step}")

    say(
        f"{len(demo.usage):,} calls of {len(demo.tenants)} tenants, {demo.usage.token_total:,} tokens,"
        f" from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
    )
    with demo_services(say, start) as (services, simulator):
        simulator.settings(invoice_grace_seconds=LONGEST_GRACE.total_seconds())  # as the runbook asks of the account
        prepare_billing_database(services.billing_dsn)
        with psycopg.connect(services.billing_dsn) as db:
            say("giving every tenant a Stripe customer and a subscription")
            ends = _first_period_ends(start, end)
            link_tenants(db, demo.tenants, services.stripe_base, services.secret_key, first_period_ends=ends)
            say("importing the usage")
            import_usage(db, demo.usage)
            db.execute("ANALYZE token_usage")
        say("starting Airflow")
        environment = {**airflow_environment(services, HOME / "demo_airflow", replayed=True), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        failed = list[str]()
        with AirflowProcess(environment, HOME / "demo_airflow" / "runs.log") as airflow:

            def run(dag_id: str, logical_date: datetime, at: datetime) -> None:
                simulator.set_clock(at)
                if airflow.run(dag_id, logical_date) != "success":
                    failed.append(f"{dag_id} of {logical_date:%Y-%m-%d %H:%M}")

            run("sync_subscriptions", start, start)
            for window_end in _hours(start, end, console):
                run("report_usage", window_end, window_end + RUN_DELAY)
            say("closing the billing period, reconciling meters and invoices")
            for dag_id, delay in CLOSING:
                run(dag_id, end + delay, end + delay)
        say("asking Stripe's meters")
        target = StripeTarget(services.secret_key, services.stripe_base, sandbox=True)
        statement = draw_up(services.billing_dsn, target, start, end)
    show(statement, console)
    seconds = time.monotonic() - began
    sound = statement.sound and not failed
    figures = _figures(statement, hours=(end - start) // HOUR, seconds=seconds)
    (HOME / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    told = f"{figures['billed_tokens']:,} of {figures['tokens']:,} tokens billed in {figures['hours']} hours, {seconds:.0f} s"
    told += f"; {figures['invoices']} invoices reconciled, {figures['discrepancies']} discrepancies"
    wrong = f"these runs failed: {', '.join(failed[:5])}, see {HOME}/demo_airflow/runs.log" if failed else "the figures above differ"
    verdict = "[green]every token is accounted for exactly once[/]" if sound else f"[red]something is wrong; {wrong}[/]"
    console.print(f"{told}\n{verdict}")
    return sound


def _first_period_ends(start: datetime, end: datetime) -> datetime:
    """So that periods of a month end with the usage: its end, or as many months before it as lie inside."""
    ends: datetime = next(end - relativedelta(months=n) for n in count() if end - relativedelta(months=n + 1) <= start)
    return ends


def _hours(start: datetime, end: datetime, console: Console) -> Iterator[datetime]:
    """The ends of the windows, in order, under a progress bar; a line now and then where the output is no terminal."""
    ends = [start + n * HOUR for n in range(1, (end - start) // HOUR + 1)]
    columns = (TextColumn("billing"), BarColumn(), MofNCompleteColumn(), TextColumn("hours"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for number, window_end in enumerate(progress.track(ends), start=1):
            yield window_end
            if not console.is_terminal and (number % 24 == 0 or number == len(ends)):
                console.print(f"          billed {number} of {len(ends)} hours")


def _figures(statement: Statement, hours: int, seconds: float) -> dict[str, float]:
    """The demo's result as `demo.json` tells it."""
    lines = statement.lines
    tokens, billed, quarantined = (sum(getattr(line, name) for line in lines) for name in ("tokens", "billed", "quarantined"))
    return {
        "rows": statement.row_count,
        "tokens": tokens,
        "billed_tokens": billed,
        "stripe_tokens": sum(line.at_stripe for line in lines),
        "unbilled_tokens": tokens - billed,
        "quarantined_tokens": quarantined,
        "tenants": len(lines),
        "hours": hours,
        "invoices": statement.invoice_count,
        "discrepancies": statement.discrepancy_count,
        "seconds": round(seconds, 1),
    }
