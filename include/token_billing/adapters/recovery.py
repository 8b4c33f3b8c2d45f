"""Recovering a restored database: what its transaction ids mean here, and what it may have forgotten."""

from datetime import datetime

import psycopg
from psycopg import sql

from token_billing.adapters.database import Connection
from token_billing.adapters.discrepancies import FACTS_MATTER_FOR
from token_billing.adapters.queries import queries
from token_billing.errors import CannotRecover
from token_billing.model import LedgerMark

RECOVER = queries("recover.sql")


def lock_usage(db: Connection) -> None:
    """Nothing is recorded, frozen or marked until the transaction ends; raises CannotRecover where long transactions are in the way."""
    db.execute(RECOVER["wait_briefly"])
    try:
        db.execute(RECOVER["lock_usage"])
    except psycopg.errors.LockNotAvailable as busy:
        raise CannotRecover("token_usage was in use for more than 5 s by a long transaction; nothing was changed, try again") from busy


def last_carried_row(db: Connection) -> int | None:
    """The highest id of the rows that came with the copy; None where that cannot be told, because the table
    has neither index nor trigger."""
    (found,) = db.execute(RECOVER["last_carried_row"]).fetchone() or (None,)
    return None if found is None else int(found)


def rows_of_unknown_origin(db: Connection, last_carried: int) -> list[int]:
    """Rows above that id which do not look as if they had been recorded here."""
    return [row for (row,) in db.execute(RECOVER["rows_of_unknown_origin"], {"last_carried_row": last_carried})]


def raise_ids(db: Connection, last_carried: int) -> int:
    """Sees to it that what is recorded here has higher transaction ids than all that came with the copy; returns by how much this
    cluster's had to be raised for that, beyond what they were raised by before."""
    (missing,) = db.execute(RECOVER["missing_shift"], {"last_carried_row": last_carried}).fetchone() or (0,)
    shift = int(missing)
    if shift:
        (shift_so_far,) = db.execute(RECOVER["shift_so_far"]).fetchone() or (0,)
        values = {"shift": sql.Literal(shift), "last_carried_row": sql.Literal(last_carried)}
        db.execute(sql.SQL(RECOVER["shift_rows"]).format(**values))
        db.execute(sql.SQL(RECOVER["shift_ids"]).format(shift=sql.Literal(int(shift_so_far) + shift)))
    return shift


def reports_without_their_rows(db: Connection) -> list[int]:
    """Unbilled reports that do not find the rows they were frozen with, ten at most."""
    return [report for (report,) in db.execute(RECOVER["reports_without_their_rows"])]


def doubt_attempted(db: Connection) -> None:
    """Every open report that was attempted may have been attempted again since."""
    db.execute(RECOVER["doubt_attempted"])


def take_back_confirmations(db: Connection, now: datetime) -> None:
    """Has reconciliation compare again what Stripe may have disowned since the copy was made."""
    db.execute(RECOVER["take_back_confirmations"], {"since": now - FACTS_MATTER_FOR})


def begin_epoch(db: Connection, mark: LedgerMark, shift: int, cause: str, recovered_by: str, now: datetime) -> tuple[int, int]:
    """Makes this copy the one that bills, at least as far as the mark; returns the whole shift and the number of doubtful reports."""
    parameters = {
        "epoch": mark.epoch,
        "noted_attempts": mark.noted_attempts,
        "shift": shift,
        "cause": cause,
        "recovered_by": recovered_by,
        "now": now,
    }
    whole_shift, doubtful = db.execute(RECOVER["begin_epoch"], parameters).fetchone() or (0, 0)
    return int(whole_shift), doubtful
