"""Tenants that are excluded from billing for a time. No function opens or ends a transaction."""

from datetime import datetime

from token_billing.adapters.database import Connection
from token_billing.adapters.queries import queries

EXCLUDED = queries("excluded.sql")


def add_exclusion(db: Connection, tenant_id: str, reason: str, since: datetime, by: str) -> None:
    """Excludes a tenant from that time on."""
    db.execute(EXCLUDED["add_exclusion"], {"tenant_id": tenant_id, "reason": reason, "since": since, "by": by})


def end_exclusion(db: Connection, tenant_id: str, until: datetime) -> bool:
    """Ends a tenant's present exclusion; False where there is none that began before."""
    return db.execute(EXCLUDED["end_exclusion"], {"tenant_id": tenant_id, "until": until}).rowcount == 1
