"""Taking back what Stripe disowned: typed functions over `sql/revoke.sql`. None of them opens or ends a transaction; the stage does."""

from datetime import datetime
from typing import Any

from token_billing.adapters.database import Connection, storable
from token_billing.adapters.queries import queries
from token_billing.model import Disowned, QuarantineReason, ReportState, RevocableReport, RevocationCause
from token_billing.windows import Side, Window

REVOKE = queries("revoke.sql")


def lock_report(db: Connection, report_id: int) -> RevocableReport | None:
    """The report as it stands, kept from being marked or revoked by anybody else; None where there is none."""
    found = db.execute(REVOKE["lock_report"], {"id": report_id}).fetchone()
    if found is None:
        return None
    found_id, tenant_id, window_start, side_start, side_end, revision, generation, identifier, state, *rest = found
    window, side = Window(window_start), Side(side_start, side_end)
    return RevocableReport(found_id, tenant_id, window, side, revision, generation, identifier, ReportState(state), *rest)


def billed_otherwise(db: Connection, report_id: int) -> int | None:
    """The proposal by which a person had the report's usage billed otherwise, or wrote it off; None where there is none."""
    found = db.execute(REVOKE["billed_otherwise"], {"id": report_id}).fetchone()
    return found[0] if found else None


def report_attempted_as(db: Connection, identifier: str) -> int | None:
    """The report that was attempted under an identifier; None where none was."""
    found = db.execute(REVOKE["report_attempted_as"], {"identifier": identifier}).fetchone()
    return found[0] if found else None


def disowned_by_error(db: Connection) -> list[Disowned]:
    """Accepted reports that an error event of Stripe's named, under the identifier they have, and that nobody has dealt with."""
    return [
        Disowned(report_id, RevocationCause.ERROR_REPORT, details, identifier)
        for report_id, details, identifier in db.execute(REVOKE["disowned_by_error"])
    ]


def held_rows(db: Connection, report: RevocableReport) -> tuple[int, int]:
    """Rows and tokens that the report's fences hold of those that are marked, or not, as its state demands."""
    return db.execute(REVOKE["held_rows"], _rows_of(report)).fetchone()  # type: ignore[return-value]


def disown(db: Connection, report: RevocableReport) -> int:
    """Revokes the report and clears the marks of its rows; returns how many rows were marked."""
    (cleared,) = db.execute(REVOKE["disown"], _rows_of(report)).fetchone() or (0,)
    return int(cleared)


def note_revocation(db: Connection, report: RevocableReport, disowned: Disowned, revoked_by: str, *, resent: bool, now: datetime) -> None:
    """Writes down who took the report's generation back, and on what evidence."""
    parameters = {
        "id": report.id,
        "generation": report.generation,
        "identifier": report.identifier,
        "cause": disowned.cause,
        "evidence": storable(disowned.evidence).strip(),
        "row_count": report.row_count,
        "token_count": report.token_count,
        "was_billed": report.was_billed,
        "resent": resent,
        "revoked_by": revoked_by,
        "now": now,
    }
    db.execute(REVOKE["note_revocation"], parameters)


def begin_generation(db: Connection, report: RevocableReport, identifier: str, reason: QuarantineReason | None, now: datetime) -> None:
    """Lets the revoked report be sent under the new identifier, or quarantines it where a reason is given."""
    db.execute(REVOKE["begin_generation"], {"id": report.id, "identifier": identifier, "reason": reason, "now": now})


def _rows_of(report: RevocableReport) -> dict[str, Any]:
    return {
        "id": report.id,
        "tenant_id": report.tenant_id,
        "side_start": report.side.start,
        "side_end": report.side.end,
        "was_billed": report.was_billed,
        "snapshot": report.snapshot,
        "earlier_snapshot": report.earlier_snapshot,
    }
