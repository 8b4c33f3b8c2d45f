"""Quarantined usage: typed functions over `sql/quarantined.sql`. None of them opens or ends a transaction; the stages do."""

from datetime import datetime
from typing import Any

from token_billing.adapters.database import Connection
from token_billing.adapters.price_rows import price_of_row
from token_billing.adapters.queries import queries
from token_billing.model import Shard
from token_billing.periods import BillingPeriod
from token_billing.quarantine import QuarantinedUsage
from token_billing.windows import Window

QUARANTINED = queries("quarantined.sql")


def quarantined_usage(db: Connection) -> list[QuarantinedUsage]:
    """All of it."""
    return _found(db, {"window_start": None, "since": None, **Shard(0, 1).parameters})


def newly_quarantined_usage(db: Connection, window: Window, shard: Shard, since: datetime) -> list[QuarantinedUsage]:
    """What was quarantined of a window's shard since a time."""
    return _found(db, {"window_start": window.start, "since": since, **shard.parameters})


def _found(db: Connection, parameters: dict[str, Any]) -> list[QuarantinedUsage]:
    return [_usage(*row) for row in db.execute(QUARANTINED["quarantined_usage"], parameters)]


def _usage(
    reason: str,
    tenant_id: str,
    usage_item_id: str | None,
    start: datetime,
    end: datetime,
    is_billing_period: bool,
    standing: str,
    hour_count: int,
    token_count: int,
    billed_tokens: int,
    price_id: str | None,
    *terms: Any,
) -> QuarantinedUsage:
    price = None if price_id is None else price_of_row(price_id, *terms)
    period = BillingPeriod(start, end)
    return QuarantinedUsage(
        reason, tenant_id, usage_item_id, period, is_billing_period, hour_count, token_count, billed_tokens, price, standing=standing
    )
