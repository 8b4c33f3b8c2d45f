"""Held reports: typed functions over `sql/hold.sql`. None of them opens or ends a transaction; the stages do."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from token_billing.adapters.database import Connection
from token_billing.adapters.queries import queries
from token_billing.model import HeldReport, Shard
from token_billing.settings import Gates
from token_billing.windows import Window

HOLD = queries("hold.sql")


def hold_unusual(db: Connection, window: Window, shard: Shard, gates: Gates, now: datetime) -> int:
    """Holds the shard's unsent reports that a gate does not let through; returns how many."""
    parameters = {
        "window_start": window.start,
        "now": now,
        "largest_total": gates.largest_total,
        "multiple": gates.multiple_of_history,
        **shard.parameters,
    }
    return db.execute(HOLD["hold_unusual"], parameters).rowcount


def held_reports(db: Connection) -> list[HeldReport]:
    """The reports that wait for a decision."""
    return _reports(db.execute(HOLD["held_reports"]))


def take_questions(db: Connection, asked_before: datetime, now: datetime) -> list[HeldReport]:
    """The reports that nobody has been asked about since a time; from now on somebody is."""
    return _reports(db.execute(HOLD["take_questions"], {"asked_before": asked_before, "now": now}))


def decide(db: Connection, report_id: int, decision: str, by: str, now: datetime) -> bool:
    """Writes the decision down; False where there is one already, or nothing to decide."""
    parameters = {"report_id": report_id, "decision": decision, "by": by, "now": now}
    return db.execute(HOLD["decide"], parameters).fetchone() == (1,)


def decision(db: Connection, report_id: int) -> str | None:
    """What was decided about a report, and by whom, in words; None where it was never held."""
    found = db.execute(HOLD["decision"], {"report_id": report_id}).fetchone()
    return "{} by {}".format(*found) if found else None


def _reports(found: Iterable[tuple[Any, ...]]) -> list[HeldReport]:
    return [HeldReport(report_id, tenant_id, Window(start), *rest) for report_id, tenant_id, start, *rest in found]
