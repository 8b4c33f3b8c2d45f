"""Invoices that close billing periods, and what is missing on them: typed functions over `sql/closing.sql`. None of them opens or ends a
transaction."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from token_billing.adapters.database import Connection, storable
from token_billing.adapters.discrepancies import FACTS_MATTER_FOR
from token_billing.adapters.queries import queries
from token_billing.closing import DECIDED_REASONS, LAST_WINDOW_WAITS, Closing, ClosingInvoice, Missing, Step, Why

CLOSING = queries("closing.sql")


def billed_items(db: Connection) -> dict[str, list[str]]:
    """The subscriptions that bill tenants of ours, each with the items that do, or did."""
    return dict(db.execute(CLOSING["billed_items"]).fetchall())


def listed_until(db: Connection) -> datetime | None:
    """Until when every invoice that Stripe made was looked at; None before the first time."""
    found = db.execute(CLOSING["listed_until"]).fetchone()
    return found[0] if found else None


def note_listed(db: Connection, until: datetime) -> None:
    """Every invoice made until then was looked at."""
    db.execute(CLOSING["note_listed"], {"until": until})


def note_appeared(db: Connection, invoice: ClosingInvoice) -> None:
    """Keeps an invoice as it was when it was first seen."""
    parameters = {
        "invoice_id": invoice.invoice_id,
        "subscription_id": invoice.subscription_id,
        "appeared_at": invoice.appeared_at,
        "planned_for": invoice.finalizes_at,
    }
    db.execute(CLOSING["note_appeared"], parameters)


def open_closings(db: Connection, now: datetime) -> list[Closing]:
    """Those not known to be final, but for old ones that a person has settled, and those of which somebody was told that they lack usage;
    the oldest first."""
    return [_closing(*row) for row in db.execute(CLOSING["open_closings"], {"since": now - FACTS_MATTER_FOR})]


def newest_draft(db: Connection) -> Closing | None:
    """The one that appeared last, of those that were seen as drafts."""
    found = db.execute(CLOSING["newest_draft"]).fetchone()
    return _closing(*found) if found else None


def missing_usage(db: Connection, final_at: Mapping[str, datetime | None], now: datetime) -> dict[str, list[Missing]]:
    """What is not known to be on the invoices, by their ids; `final_at`: since when each is final. To be called in a REPEATABLE READ
    transaction: what is frozen meanwhile would else be seen neither as rows nor as a report. Reads every unbilled row of the invoices'
    periods once."""
    missing: dict[str, list[Missing]] = {invoice_id: [] for invoice_id in final_at}
    parameters = {
        "invoice_ids": list(final_at),
        "final_ats": list(final_at.values()),
        "decided": list(DECIDED_REASONS),
        "waits": LAST_WINDOW_WAITS,
        "now": now,
    }
    for invoice_id, window_start in db.execute(CLOSING["open_hours"], parameters):
        missing[invoice_id].append(Missing(Why.HOUR_OPEN, "", window_start, 1, 0))
    for invoice_id, *rest in db.execute(CLOSING["unfrozen_usage"], parameters):
        missing[invoice_id].append(Missing(Why.NOT_FROZEN, *rest))
    for invoice_id, why, *rest in db.execute(CLOSING["missing_reports"], parameters):
        missing[invoice_id].append(Missing(Why(why), *rest))
    return missing


def note_step(db: Connection, invoice_id: str, step: Step, missing: Sequence[Missing], final_at: datetime | None) -> None:
    """Keeps what was found missing, what is about to be done, and since when the invoice is final."""
    parameters = {
        "invoice_id": invoice_id,
        "missing": storable("; ".join(map(str, missing))) or None,
        "is_told": step.is_told,
        "move_to": step.move_to,
        "released_as": step.released_as,
        "final_at": final_at,
    }
    db.execute(CLOSING["note_step"], parameters)


def note_moved(db: Connection, invoice_id: str, moved_to: datetime, now: datetime) -> None:
    """Keeps the time that Stripe says it set; whoever pushes usage of the invoice's periods knows it from now on."""
    db.execute(CLOSING["note_moved"], {"invoice_id": invoice_id, "moved_to": moved_to, "now": now})


def take_news(db: Connection, now: datetime, moment: timedelta, told_again: timedelta) -> list[str]:
    """What somebody has to be told of invoices that lack usage: what is new, what was begun to be told within a moment, and what stands
    for `told_again` since."""
    parameters = {"now": now, "moment": moment, "told_again": told_again}
    return [details for (details,) in db.execute(CLOSING["tell"], parameters)]


def _closing(
    invoice_id: str,
    subscription_id: str,
    appeared_at: datetime,
    planned_for: datetime | None,
    moved_to: list[datetime],
    released_as: str | None,
    final_at: datetime | None,
) -> Closing:
    return Closing(invoice_id, subscription_id, appeared_at, planned_for, tuple(moved_to), released_as, final_at)
