"""Leaving quarantine, or staying there for good: typed functions over `sql/releases.sql`. None of them opens or ends a transaction; the
stages do."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from token_billing.adapters.database import Connection, storable
from token_billing.adapters.queries import queries
from token_billing.model import ReportState, Sink
from token_billing.releases import AsideReport
from token_billing.windows import Side, Window

RELEASES = queries("releases.sql")


def lock_aside(db: Connection, report_ids: Sequence[int], now: datetime) -> list[AsideReport]:
    """The reports as they stand, kept from being moved by anybody else; those that there are."""
    return [_aside(*row) for row in db.execute(RELEASES["lock_aside"], {"ids": list(report_ids), "now": now})]


def release(db: Connection, report_id: int, identifier: str | None, now: datetime) -> bool:
    """Lets a quarantined report wait to be sent, under a new identifier where one is given; False where it is not quarantined. The
    transaction needs its audit row."""
    return db.execute(RELEASES["release_report"], {"id": report_id, "identifier": identifier, "now": now}).rowcount == 1


def acknowledge(db: Connection, report_id: int, by: str, reason: str, now: datetime) -> bool:
    """Notes that somebody lets it be; False where a proposal has settled it."""
    parameters = {"id": report_id, "by": storable(by), "reason": storable(reason), "now": now}
    return db.execute(RELEASES["acknowledge_report"], parameters).rowcount == 1


def settle(db: Connection, report_ids: Sequence[int], proposal_id: int, by: str, reason: str, now: datetime) -> int:
    """Notes quarantined reports as settled by a proposal; returns how many of them are."""
    parameters = {"ids": list(report_ids), "proposal_id": proposal_id, "by": storable(by), "reason": reason, "now": now}
    return db.execute(RELEASES["settle_reports"], parameters).rowcount


def unsettle(db: Connection, proposal_id: int) -> None:
    """Nothing came of what the proposal was to do."""
    db.execute(RELEASES["unsettle_reports"], {"proposal_id": proposal_id})


def _aside(
    report_id: int,
    tenant_id: str,
    window_start: datetime,
    side_start: datetime,
    side_end: datetime,
    revision: int,
    generation: int,
    state: str,
    sink: str | None,
    *rest: Any,
) -> AsideReport:
    window, side = Window(window_start), Side(side_start, side_end)
    known_sink = None if sink is None else Sink(sink)
    return AsideReport(report_id, tenant_id, window, side, revision, generation, ReportState(state), known_sink, *rest)
