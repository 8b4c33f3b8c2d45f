"""The statement that ends a demo: per tenant, what came in, what is billed, what Stripe counts, and what its invoices ask for."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

import psycopg
from rich.console import Console
from rich.table import Table

from token_billing.adapters import ledger
from token_billing.adapters.stripe_gateway import StripeTarget, stripe_gateway
from token_billing.catalog import CURRENCY
from token_billing.rating import money

#: What the final invoices bill of each tenant's usage, in tokens and the currency's minor unit.
_INVOICED = """
SELECT tenant.id, sum(line.quantity)::bigint, sum(line.amount_cents)::bigint, min(line.currency)
FROM billing.invoice_line line
JOIN billing.invoice USING (invoice_id)
JOIN tenants tenant ON tenant.stripe_usage_item_id = line.usage_item_id
WHERE line.kind = 'usage' AND invoice.compared_at IS NOT NULL
GROUP BY tenant.id
"""
_COUNTS = """
SELECT (SELECT count(*) FROM token_usage WHERE created_at >= %s AND created_at < %s),
       (SELECT count(*) FROM billing.invoice WHERE compared_at IS NOT NULL),
       (SELECT count(*) FROM billing.discrepancy WHERE resolved_at IS NULL)
"""

#: More tenants than these are summed in one line.
SHOWN_TENANTS = 40


@dataclass(frozen=True)
class TenantLine:
    """One tenant's tokens, over all windows: of its rows, of rows marked billed, counted by Stripe, quarantined, and on final invoices;
    and what those ask for, in the currency's minor unit."""

    tenant_id: str
    tokens: int
    billed: int
    at_stripe: int
    quarantined: int
    invoiced: int
    amount_cents: int
    currency: str

    @property
    def difference(self) -> int:
        """What is billed here but not counted there or not invoiced, or the other way round."""
        return self.billed - self.at_stripe or self.billed - self.invoiced


@dataclass(frozen=True)
class Statement:
    """All tenants, and whether the conservation law holds for each of them in every hour."""

    lines: tuple[TenantLine, ...]
    conserved: bool
    row_count: int
    invoice_count: int
    open_discrepancies: int

    @property
    def discrepancy_count(self) -> int:
        """What the reconciliations found, and what the statement itself finds."""
        return self.open_discrepancies + sum(line.difference != 0 for line in self.lines) + (not self.conserved)

    @property
    def sound(self) -> bool:
        """Nothing lost, nothing doubled, nothing left over without a reason."""
        return not self.discrepancy_count and all(line.tokens == line.billed + line.quarantined for line in self.lines)


def draw_up(dsn: str, target: StripeTarget, start: datetime, end: datetime) -> Statement:
    """Asks the rows, the ledger and Stripe's meters, each for itself, about `[start, end)`."""
    with psycopg.connect(dsn) as db:
        conservation = ledger.conservation(db, start, end)
        rows, invoices, discrepancies = db.execute(_COUNTS, [start, end]).fetchone() or (0, 0, 0)
        invoiced = {tenant: of_tenant for tenant, *of_tenant in db.execute(_INVOICED)}
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
        TenantLine(tenant, tokens, billed, at_stripe.get(tenant, 0), quarantined, *invoiced.get(tenant, (0, 0, CURRENCY)))
        for tenant, (tokens, billed, quarantined) in tenants.items()
    ]
    by_size = tuple(sorted(lines, key=lambda line: -line.tokens))
    return Statement(by_size, all(one.holds for one in conservation), rows, invoices, discrepancies)


async def _counted(target: StripeTarget, destinations: list[tuple[str, str, str]], start: datetime, end: datetime) -> dict[str, int]:
    totals: dict[str, int] = {}
    async with stripe_gateway(target) as stripe:
        for tenant, customer, meter in destinations:
            totals[tenant] = totals.get(tenant, 0) + (await stripe.summed_usage(customer, meter, start, end) or 0)
    return totals


def show(statement: Statement, console: Console) -> None:
    """Prints the statement, the largest tenants one by one."""
    names = ("tokens", "billed", "at_stripe", "invoiced", "quarantined")
    table = Table(title="Statement (tokens, and what the invoices ask for them)", padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("tenant", overflow="ellipsis", no_wrap=True, max_width=21)
    for name in (*names, "amount"):
        table.add_column(name.replace("_s", " S"), justify="right", no_wrap=True)

    def add(label: str, lines: tuple[TenantLine, ...], style: str | None = None) -> None:
        amounts = Counter[str]()
        for line in lines:
            amounts[line.currency] += line.amount_cents
        figures = [f"{sum(getattr(line, name) for line in lines):,}" for name in names]
        table.add_row(label, *figures, " ".join(money(cents, currency) for currency, cents in amounts.items()), style=style)

    for line in statement.lines[:SHOWN_TENANTS]:
        add(line.tenant_id, (line,), None if line.difference == 0 else "red")
    if others := statement.lines[SHOWN_TENANTS:]:
        add(f"{len(others)} others", others, "dim")
    table.add_section()
    add(f"all {len(statement.lines)} tenants", statement.lines, "bold")
    console.print(table)
    for line in statement.lines:
        if line.difference:
            console.print(
                f"{line.tenant_id}: billed, at Stripe and invoiced differ by {line.difference:,} tokens", style="red", markup=False
            )
