"""Discrepancies: what does not fit together, and waits for a person or goes away by itself. No function opens or ends a transaction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg.types.json import Jsonb

from token_billing.adapters.database import Connection, storable
from token_billing.adapters.queries import queries
from token_billing.reconciliation import Cause, Difference, merged
from token_billing.windows import HOUR

DISCREPANCIES = queries("discrepancies.sql")

#: Reports of older windows are settled one way or the other: Stripe takes nothing of theirs any more.
FACTS_MATTER_FOR = timedelta(days=36)


@dataclass(frozen=True)
class OpenDiscrepancy:
    """One that nobody has dealt with; tokens, and the currency's minor unit, where it is about counts."""

    id: int
    cause: str
    tenant_id: str | None
    report_id: int | None
    stripe_id: str | None
    details: str
    expected_token_count: int | None
    found_token_count: int | None
    found_at: datetime
    scope: str | None
    window_start: datetime | None
    expected_cents: int | None
    found_cents: int | None
    currency: str | None


def note(db: Connection, cause: Cause, details: str, now: datetime, *, tenant_id: str | None = None, stripe_id: str | None = None) -> None:
    """Notes one about a tenant or an object at Stripe, once as long as it is open."""
    parameters = {"cause": cause, "tenant_id": tenant_id, "stripe_id": stripe_id, "details": storable(details)[:2000], "now": now}
    db.execute(DISCREPANCIES["note"], parameters)


def note_about_report(db: Connection, cause: Cause, report_id: int, stripe_id: str, details: str, now: datetime) -> None:
    """Notes one about a report, once as long as it is open."""
    parameters = {"cause": cause, "report_id": report_id, "stripe_id": stripe_id, "details": storable(details)[:2000], "now": now}
    db.execute(DISCREPANCIES["note_about_report"], parameters)


def settle_gone(db: Connection, cause: Cause, tenant_id: str, still: Collection[str], now: datetime) -> None:
    """Those of a tenant and cause that are about nothing of `still` have gone away by themselves."""
    db.execute(DISCREPANCIES["settle_gone"], {"cause": cause, "tenant_id": tenant_id, "still": list(still), "now": now})


def note_beyond_the_facts(db: Connection, changed: Mapping[str, datetime], now: datetime) -> int:
    """Notes attempted reports of tenants that do not fit what is known now of their billing since a time; returns how many are news."""
    past = {tenant_id: since for tenant_id, since in changed.items() if since < now}
    if not past:
        return 0
    since = max(min(past.values()) - HOUR, now - FACTS_MATTER_FOR)
    return db.execute(DISCREPANCIES["beyond_the_facts"], {"tenant_ids": list(past), "since": since, "now": now}).rowcount


def note_differences(db: Connection, scopes: Collection[str], found: Sequence[Difference], now: datetime) -> int:
    """Brings the discrepancies of the scopes that were compared to what was found there: what is new is noted, what is known is told
    as it stands now, what is gone is settled, and what a person has settled stays settled as long as its figures stay. Returns how
    many are news. To be called in a transaction."""
    rows = [
        {**vars(one), "details": storable(one.details)[:2000], "window_start": one.window_start and one.window_start.isoformat()}
        for one in merged(found)
    ]
    parameters = {
        "found": Jsonb(rows),
        "scopes": list(scopes),
        "now": now,
    }
    db.execute(DISCREPANCIES["settle_not_found"], parameters)
    return int((db.execute(DISCREPANCIES["note_differences"], parameters).fetchone() or (0,))[0])


def open_discrepancies(db: Connection) -> list[OpenDiscrepancy]:
    """All of them, the newest first."""
    return [OpenDiscrepancy(*row) for row in db.execute(DISCREPANCIES["open_discrepancies"])]


def settle_about_report(db: Connection, cause: Cause, report_id: int, by: str, now: datetime) -> None:
    """A person has dealt with what was said of a report."""
    db.execute(DISCREPANCIES["settle_about_report"], {"cause": cause, "report_id": report_id, "by": storable(by), "now": now})


def settle_missing_hour(db: Connection, discrepancy_id: int, usage_item_id: str | None, by: str, now: datetime) -> None:
    """A person has billed otherwise, or written off, what an invoice lacked of an hour: so is what the item's meter lacks of it."""
    parameters = {"id": discrepancy_id, "usage_item_id": usage_item_id, "by": storable(by), "now": now}
    db.execute(DISCREPANCIES["settle_missing_hour"], parameters)


def settle(db: Connection, discrepancy_id: int, by: str, now: datetime) -> bool:
    """A person has dealt with it; False where there is none such open."""
    return db.execute(DISCREPANCIES["settle"], {"id": discrepancy_id, "by": by, "now": now}).rowcount == 1
