"""Billing periods and their invoices, as far as Stripe was asked: typed functions over `sql/periods.sql`. None of them opens or ends a
transaction; the stages do."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from token_billing.adapters.database import Connection
from token_billing.adapters.queries import queries
from token_billing.model import Shard
from token_billing.periods import BillingPeriod, InvoicedPeriod
from token_billing.windows import Window

PERIODS = queries("periods.sql")


def items_outside_their_period(db: Connection, window: Window, shard: Shard, now: datetime) -> list[tuple[str, str]]:
    """Subscription items, each with its subscription, to which open reports of the shard go that may be dated outside the item's
    present period, or whose last period has ended."""
    parameters = {"window_start": window.start, "now": now, **shard.parameters}
    return db.execute(PERIODS["items_outside_their_period"], parameters).fetchall()


def invoiced_periods(db: Connection, usage_item_ids: Sequence[str], window: Window) -> list[InvoicedPeriod]:
    """What is known of the invoices that bill the items' usage in the window."""
    parameters = {"usage_item_ids": list(usage_item_ids), "window_start": window.start, "window_end": window.end}
    return [
        InvoicedPeriod(item, BillingPeriod(start, end), *rest)
        for item, start, end, *rest in db.execute(PERIODS["invoiced_periods"], parameters)
    ]


def note_invoiced_periods(db: Connection, found: Iterable[InvoicedPeriod]) -> None:
    """Remembers what Stripe said; in one order, so that two runs at once cannot wait for each other."""
    for one in sorted(found, key=lambda one: (one.usage_item_id, one.invoice_id, one.period)):
        parameters = {
            "usage_item_id": one.usage_item_id,
            "period_start": one.period.start,
            "period_end": one.period.end,
            "invoice_id": one.invoice_id,
            "status": one.status,
            "finalizes_at": one.finalizes_at,
            "seen_at": one.seen_at,
        }
        db.execute(PERIODS["note_invoiced_period"], parameters)
