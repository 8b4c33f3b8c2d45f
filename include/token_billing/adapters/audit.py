"""Who decided what, and what it changed: typed functions over `sql/audit.sql`. None of them opens or ends a transaction; what is decided
is written down in the transaction that changes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from token_billing.adapters.database import Connection, storable
from token_billing.adapters.queries import queries

AUDIT = queries("audit.sql")


@dataclass(frozen=True)
class AuditEntry:
    """One decision. `subject`: what it was about, `report 4711` or `proposal 7`; `before` and `after`: what it changed of that."""

    id: int
    decided_at: datetime
    decided_by: str
    action: str
    subject: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


def write_down(
    db: Connection, action: str, subject: str, by: str, now: datetime, *, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """Keeps it for ever."""
    parameters = {"action": action, "subject": subject, "by": storable(by), "now": now, "before": _json(before), "after": _json(after)}
    db.execute(AUDIT["write_down"], parameters)


def entries(db: Connection, subject: str | None, most: int) -> list[AuditEntry]:
    """The newest first; those about one subject, or all."""
    return [AuditEntry(*row) for row in db.execute(AUDIT["entries"], {"subject": subject, "most": most})]


def _json(told: Mapping[str, Any]) -> Jsonb:
    return Jsonb({name: value.isoformat() if isinstance(value, datetime) else value for name, value in told.items()})
