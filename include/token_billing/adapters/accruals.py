"""What had been used before an instant: a typed function over `sql/accruals.sql`. It opens and ends no transaction; the stage does."""

from datetime import datetime
from typing import Any

from token_billing.accruals import Standing, UsedBefore
from token_billing.adapters.database import Connection
from token_billing.adapters.price_rows import price_of_row
from token_billing.adapters.queries import queries
from token_billing.periods import FINAL_STATUSES, NOT_CLOSING, BillingPeriod

ACCRUALS = queries("accruals.sql")


def used_before(db: Connection, instant: datetime) -> list[UsedBefore]:
    """All usage before the instant, by tenant and bill, in tokens by its standing at the instant."""
    parameters = {"instant": instant, "final_statuses": sorted(FINAL_STATUSES), "not_closing": sorted(NOT_CLOSING)}
    found: dict[tuple[Any, ...], dict[Standing, int]] = {}
    terms_of: dict[str, tuple[Any, ...]] = {}
    for tenant_id, item, plan, start, end, is_billing_period, standing, tokens, price_id, *terms in db.execute(
        ACCRUALS["used_before"], parameters
    ):
        bill = tenant_id, item, plan, price_id, BillingPeriod(start, end), is_billing_period
        found.setdefault(bill, {})[Standing(standing)] = tokens
        terms_of[price_id] = tuple(terms)
    prices = {price_id: price_of_row(price_id, *terms) for price_id, terms in terms_of.items() if price_id is not None}
    return [
        UsedBefore(tenant_id, item, plan, prices.get(price_id), period, is_billing_period, tokens)
        for (tenant_id, item, plan, price_id, period, is_billing_period), tokens in found.items()
    ]
