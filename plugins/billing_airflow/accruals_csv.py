"""What is to be accrued, as spreadsheets read it."""

import csv
from collections.abc import Iterable
from io import StringIO

from token_billing.accruals import OPEN, Accrual, Standing
from token_billing.rating import major_units

COLUMNS = [
    "tenant_id",
    "plan",
    "price_id",
    "usage_item_id",
    "period_start",
    "period_end",
    "period_is",
    "currency",
    "is_list_price",
    "invoiced_tokens",
    *(f"{standing}_{what}" for standing in OPEN for what in ("tokens", "minor_units", "amount")),
    "excluded_tokens",
]


def as_csv(accruals: Iterable[Accrual]) -> str:
    """One line a tenant, plan and period of which something is open: tokens, and money both in whole minor units and as decimal text.
    Empty amounts are not known: the price was never read."""
    text = StringIO()
    lines = csv.writer(text)
    lines.writerow(COLUMNS)
    for one in accruals:
        usage, price = one.usage, one.usage.price
        if not usage.is_open:
            continue
        parts: list[object] = []
        for standing in OPEN:
            cents = one.cents and one.cents[standing]
            amount = "" if cents is None or price is None else f"{major_units(cents, price.currency):f}"
            parts += [usage.tokens.get(standing, 0), "" if cents is None else cents, amount]
        lines.writerow(
            [
                _as_text(usage.tenant_id),
                usage.plan or "",
                price.id if price and not usage.is_list_price else "",
                usage.usage_item_id or "",
                usage.period.start.isoformat(),
                usage.period.end.isoformat(),
                "billing_period" if usage.is_billing_period else "calendar_month",
                price.currency if price else "",
                str(usage.is_list_price).lower(),
                usage.tokens.get(Standing.INVOICED, 0),
                *parts,
                usage.tokens.get(Standing.EXCLUDED, 0),
            ]
        )
    return text.getvalue()


def _as_text(tenant_id: str) -> str:
    """A spreadsheet would take a name that begins like a formula for one."""
    return f"'{tenant_id}" if tenant_id[:1] in ("=", "+", "-", "@", "\t", "\r") else tenant_id
