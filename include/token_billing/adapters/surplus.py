"""What Stripe has too much: typed functions over `sql/surplus.sql`. None of them opens or ends a transaction; the stages do."""

from collections.abc import Sequence
from datetime import datetime

from token_billing import metering
from token_billing.adapters.database import Connection, storable
from token_billing.adapters.queries import queries
from token_billing.model import AttemptResult
from token_billing.surplus import Cancellation, Cancelled, GivenUpReport, NotCancellable, StillSurplus, Surplus

SURPLUS = queries("surplus.sql")


def note_late_answers(db: Connection, accepted: Sequence[AttemptResult], now: datetime) -> None:
    """Notes those of the accepted attempts whose reports have gone on under another identifier, once each."""
    parameters = {"ids": [result.report_id for result in accepted], "identifiers": [result.identifier for result in accepted], "now": now}
    db.execute(SURPLUS["note_late_answers"], parameters)


def given_up_reports(db: Connection, now: datetime, most: int) -> list[GivenUpReport]:
    """The reports whose minutes are due to be read for a surplus, at most so many."""
    parameters = {
        "oldest_event": now - metering.OLDEST_EVENT - metering.CANCEL_WINDOW,
        "settling_since": now - metering.SETTLING,
        "closely_since": now - metering.CLOSE_WATCH,
        "closely_looked_before": now - metering.LOOK_EVERY,
        "looked_before": now - metering.LOOK_LATER_EVERY,
        "most": most,
    }
    return [GivenUpReport(*row) for row in db.execute(SURPLUS["given_up_reports"], parameters)]


def note_look(db: Connection, report: GivenUpReport, surplus_count: int, unexplained_tokens: int, now: datetime) -> None:
    """Stripe counts so many of the report's given-up identifiers, and so many tokens that those do not explain."""
    found = {"report_id": report.id, "now": now}
    db.execute(SURPLUS["note_look"], {**found, "unexplained": unexplained_tokens})
    if surplus_count:
        db.execute(SURPLUS["note_surplus"], {**found, "identifiers": report.identifiers[:surplus_count]})
    elif not unexplained_tokens:
        db.execute(SURPLUS["dismiss_late_answers"], {**found, "found_before": now - metering.SETTLING})


def surplus_to_cancel(db: Connection) -> list[Surplus]:
    """What is certainly too much and not yet cancelled, those tried least first."""
    return [Surplus(*row) for row in db.execute(SURPLUS["surplus_to_cancel"])]


def note_cancellation(db: Connection, surplus: Surplus, now: datetime) -> None:
    """Writes down that Stripe may have been asked to cancel it."""
    db.execute(SURPLUS["note_cancellation"], {"id": surplus.id, "now": now})


def record_cancellation(db: Connection, surplus: Surplus, ended: Cancellation, now: datetime) -> None:
    """Writes down what Stripe did."""
    match ended:
        case Cancelled():
            outcome, message, new_key = "cancelled", None, False
        case NotCancellable(message):
            outcome, new_key = "not_cancellable", False
        case StillSurplus(message, _, new_key):
            outcome = "still_surplus"
    parameters = {"id": surplus.id, "outcome": outcome, "message": message and storable(message), "new_key": new_key, "now": now}
    db.execute(SURPLUS["record_cancellation"], parameters)


def given_up_tokens(db: Connection) -> dict[str, int]:
    """Tokens by tenant that Stripe counts too much, will not cancel, and nobody has settled yet."""
    return dict(db.execute(SURPLUS["given_up_tokens"]).fetchall())
