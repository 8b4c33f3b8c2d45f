"""adopt: makes a database that holds the application's tables ready to be billed from."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from token_billing.adapters import ledger
from token_billing.adapters.database import Connect, session
from token_billing.adapters.migrations import migrate
from token_billing.errors import LedgerNotReady
from token_billing.model import Clock
from token_billing.stages.freeze import freeze
from token_billing.windows import Window

log = logging.getLogger(__name__)

_INTEGERS = ("smallint", "integer", "bigint")

#: The application's columns this product relies on, and the types it can bill from.
_COLUMNS: Mapping[str, Mapping[str, Sequence[str] | None]] = {
    "token_usage": {
        "id": _INTEGERS,
        "tenant_id": ("text", "character varying"),
        "model": None,
        "input_tokens": _INTEGERS,
        "output_tokens": _INTEGERS,
        "billed": ("boolean",),
        "created_at": ("timestamp with time zone",),
    },
    "tenants": {
        "id": ("text", "character varying"),
        "stripe_customer_id": ("text", "character varying"),
        "stripe_subscription_id": ("text", "character varying"),
        "stripe_usage_item_id": ("text", "character varying"),
    },
}


def adopt_if_new(connect: Connect, clock: Clock) -> None:
    """Adopts a database that has no ledger yet; LedgerNotReady, telling what to do, where another job has billed from it."""
    with session(connect) as db:
        adopted = ledger.exists(db)
    if not adopted:
        adopt(connect, clock)


def adopt(connect: Connect, clock: Clock, cut_over: datetime | None = None) -> None:
    """Creates or updates the ledger and adopts the usage table. Doing it again changes nothing.

    `cut_over`: the first hour that is ours to bill; unbilled rows before it are quarantined "before adoption". It must be given
    where another job has billed from the table (some row is billed), because only its owner knows where that job stopped.
    Raises LedgerNotReady, with nothing changed, for tables that cannot be billed from."""
    start = None if cut_over is None else Window(cut_over).start
    with session(connect) as db:
        ledger.check_application_tables(db, _COLUMNS)
        if not ledger.exists(db):
            ledger.check_rows(db, start)
    migrate(connect)
    with session(connect) as db:
        ledger.create(db, start, clock())
        pinned = ledger.identity(db)
        if start not in (None, pinned.cut_over):
            raise LedgerNotReady(f"this ledger was adopted with cut-over {pinned.cut_over}, which stands; leave --cut-over out")
        with db.transaction():
            ledger.ensure_time_index(db)
        before = ledger.windows_before(db, pinned.cut_over) if pinned.cut_over else []
    for window in before:
        freeze(connect, window, clock)
    log.info("ledger %s is ready; %d windows before the cut-over hour are quarantined", pinned.ledger_id, len(before))
