"""The statement that ends a demo: per tenant, what came in, what is billed, and what Stripe counts."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

import psycopg
from rich.console import Console
from rich.table import Table

from token_billing.adapters import ledger
from token_billing.adapters.stripe_gateway import StripeTarget, stripe_gateway

#: More tenants than these are summed in one line.
SHOWN_TENANTS = 40


@dataclass(frozen=True)
class TenantLine:
    """One tenant's tokens, over all windows: of its rows, of rows marked billed, counted by Stripe, quarantined."""

    tenant_id: str
    tokens: int
    billed: int
    at_stripe: int
    quarantined: int

    @property
    def difference(self) -> int:
        """What is billed here but not counted there, or the other way round."""
        return self.billed - self.at_stripe


@dataclass(frozen=True)
class Statement:
    """All tenants, and whether the conservation law holds for each of them in every hour."""

    lines: tuple[TenantLine, ...]
    conserved: bool
    row_count: int

    @property
    def sound(self) -> bool:
        """Nothing lost, nothing doubled, nothing left over without a reason."""
        return self.conserved and all(line.difference == 0 and line.tokens == line.billed + line.quarantined for line in self.lines)


def draw_up(dsn: str, target: StripeTarget, start: datetime, end: datetime) -> Statement:
    """Asks the rows, the ledger and Stripe's meters, each for itself, about `[start, end)`."""
    with psycopg.connect(dsn) as db:
        conservation = ledger.conservation(db, start, end)
        rows = db.execute("SELECT count(*) FROM token_usage WHERE created_at >= %s AND created_at < %s", [start, end]).fetchone()
        destinations = db.execute(
            "SELECT DISTINCT tenant_id, customer_id, meter_id FROM billing.usage_report WHERE customer_id IS NOT NULL"
        ).fetchall()
    at_stripe = asyncio.run(_counted(target, destinations, start, end))
    tenants: dict[str, list[int]] = {}
    for one in conservation:
        sums = tenants.setdefault(one.tenant_id, [0, 0, 0])
        for place, tokens in enumerate((one.row_tokens, one.marked_tokens, one.quarantined_tokens)):
            sums[place] += tokens
    lines = [
        TenantLine(tenant, tokens, billed, at_stripe.get(tenant, 0), quarantined)
        for tenant, (tokens, billed, quarantined) in tenants.items()
    ]
    assert rows is not None
    return Statement(tuple(sorted(lines, key=lambda line: -line.tokens)), all(one.holds for one in conservation), rows[0])


async def _counted(target: StripeTarget, destinations: list[tuple[str, str, str]], start: datetime, end: datetime) -> dict[str, int]:
    totals: dict[str, int] = {}
    async with stripe_gateway(target) as stripe:
        for tenant, customer, meter in destinations:
            totals[tenant] = totals.get(tenant, 0) + (await stripe.summed_usage(customer, meter, start, end) or 0)
    return totals


def show(statement: Statement, console: Console) -> None:
    """Prints the statement, the largest tenants one by one."""
    table = Table(title="Statement (tokens)", padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("tenant", overflow="ellipsis", no_wrap=True, max_width=28)
    for name in ("tokens", "billed", "at Stripe", "difference", "quarantined"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(label: str, lines: tuple[TenantLine, ...], style: str | None = None) -> None:
        figures = [sum(getattr(line, name) for line in lines) for name in ("tokens", "billed", "at_stripe", "difference", "quarantined")]
        table.add_row(label, *(f"{figure:,}" for figure in figures), style=style)

    for line in statement.lines[:SHOWN_TENANTS]:
        add(line.tenant_id, (line,), None if line.difference == 0 else "red")
    if others := statement.lines[SHOWN_TENANTS:]:
        add(f"{len(others)} others", others, "dim")
    table.add_section()
    add(f"all {len(statement.lines)} tenants", statement.lines, "bold")
    console.print(table)
