"""recover: a restored or copied database takes the place of the one that was billed from, and bills nothing twice.

An older copy has forgotten attempts, and in another cluster its fences mean other rows: both are recovered from by the same command."""

import logging

from token_billing.adapters import ledger, recovery
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.keeper import Keeper, read_mark, write_mark
from token_billing.errors import CannotRecover, NothingToRecover
from token_billing.model import Clock, LedgerMark, Recovery
from token_billing.stages.kept_mark import how_it_is_behind

log = logging.getLogger(__name__)


def recover(connect: Connect, keeper: Keeper, clock: Clock, *, recovered_by: str) -> Recovery:
    """Makes this database the one that is billed from; every other copy is refused from then on.

    Rows keep their reports: where the cluster's transaction ids do not lie above those that came with the copy, they are raised by a
    constant from now on. What may have been sent without this database's knowledge, all that is open of hours that have ended, is read
    back from Stripe's summary of its hour before anything is sent.

    Raises, with nothing changed, NothingToRecover, and CannotRecover where rows and reports do not fit together. Killed halfway, it can
    be run again."""
    with session(connect) as db:
        copy = ledger.this_copy(db)
        kept = read_mark(keeper, copy.identity.ledger_id)
        cause = how_it_is_behind(copy, kept)
        if cause is None:
            raise NothingToRecover("this database is the one that was billed from last; there is nothing to recover")
        mark = LedgerMark(
            epoch=max(copy.mark.epoch, kept.epoch if kept else 0) + 1,
            noted_attempts=max(copy.mark.noted_attempts, kept.noted_attempts if kept else 0),
        )
        # Before anything is locked, since there may be millions; a recovery that then fails has only made reconciliation look again.
        # safeguard: confirmations are older than the copy
        recovery.take_back_confirmations(db, clock())
        with db.transaction():
            # safeguard: nothing is recorded during a recovery
            recovery.lock_usage(db)
            shift = _raise_ids(db) if copy.pinned_cluster != copy.this_cluster else 0
            # safeguard: rows and reports of one copy
            if without := recovery.reports_without_their_rows(db):
                raise CannotRecover(
                    f"reports {', '.join(map(str, without))} do not find the rows they were frozen with, so it cannot be told which rows "
                    "were billed; nothing was changed. Restore token_usage and schema billing from one and the same copy"
                )
            # safeguard: attempts after the copy
            recovery.doubt_attempted(db)
            whole_shift, doubtful = recovery.begin_epoch(db, mark, shift, cause, recovered_by, clock())
        while read_mark(keeper, copy.identity.ledger_id) != mark:  # a push on the copy that was replaced may write over it once more
            write_mark(keeper, copy.identity.ledger_id, mark)
    log.info("epoch %d: %s. Recovered by %s; %d reports are read back before they are sent", mark.epoch, cause, recovered_by, doubtful)
    return Recovery(cause, mark.epoch, whole_shift, doubtful)


def _raise_ids(db: Connection) -> int:
    last_carried = recovery.last_carried_row(db)
    if last_carried is None:
        raise CannotRecover(
            "token_usage has neither index nor trigger, so it cannot be told which rows came with the copy; restore the table whole, as "
            "pg_restore does by itself"
        )
    # safeguard: rows of unknown origin
    if unknown := recovery.rows_of_unknown_origin(db, last_carried):
        raise CannotRecover(
            f"rows {', '.join(map(str, unknown))} of token_usage were neither restored before the table's triggers nor recorded since; "
            "restore the copy anew with pg_restore, which orders both, and recover before anything else writes to the table"
        )
    return recovery.raise_ids(db, last_carried)
