"""exclude: usage of internal and complimentary tenants is kept and counted, and never sent."""

from datetime import datetime

import psycopg

from token_billing.adapters import ledger
from token_billing.adapters.database import Connect, session
from token_billing.adapters.excluded import add_exclusion, end_exclusion
from token_billing.errors import ExclusionRefused


def exclude(connect: Connect, tenant_id: str, reason: str, since: datetime, by: str) -> None:
    """Keeps the tenant's usage from that time on from being sent. What was attempted before stays. Raises ExclusionRefused for a tenant
    that is excluded then already, or a reason that is none."""
    with session(connect) as db:
        ledger.identity(db)
        try:
            add_exclusion(db, tenant_id, reason, since, by)
        except psycopg.errors.ExclusionViolation:
            raise ExclusionRefused(f"tenant {tenant_id!r} is excluded from billing at {since:%Y-%m-%dT%H:%MZ} or later already") from None
        except psycopg.errors.CheckViolation:
            raise ExclusionRefused(f"{reason!r} is no reason to exclude a tenant; it is internal or complimentary") from None


def include(connect: Connect, tenant_id: str, since: datetime) -> None:
    """Bills the tenant's usage again from that time on. Raises ExclusionRefused where it is not excluded."""
    with session(connect) as db:
        ledger.identity(db)
        if not end_exclusion(db, tenant_id, since):
            raise ExclusionRefused(f"tenant {tenant_id!r} is not excluded from billing, or only since later")
