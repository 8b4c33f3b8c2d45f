"""The mark kept outside the database: which copy of the ledger is the one that was billed from last."""

from token_billing.adapters import ledger
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.keeper import Keeper, read_mark, write_mark
from token_billing.errors import KeptMarkLost, RestoredDatabase
from token_billing.model import LedgerCopy, LedgerMark

#: Pushes at once overwrite each other's marks a few times at most.
MOST_WRITES = 100


def require_newest(connect: Connect, keeper: Keeper) -> None:
    """Raises RestoredDatabase where the database is not the one that was billed from last; one that holds no ledger yet is new."""
    with session(connect) as db:
        if not ledger.exists(db):
            return
        copy = ledger.this_copy(db)
        # safeguard: the kept mark before each stage
        _require(db, copy, read_mark(keeper, copy.identity.ledger_id))


def keep_mark(db: Connection, keeper: Keeper) -> None:
    """Sees to it that the kept mark covers every attempt noted so far; called before any of them is sent.

    What is kept is looked at after writing: of two that write at once, the one with the older news finds out. Raises RestoredDatabase
    where another copy took this one's place."""
    for _ in range(MOST_WRITES):
        copy = ledger.this_copy(db)
        kept = read_mark(keeper, copy.identity.ledger_id)
        if kept is not None and (kept.epoch != copy.mark.epoch or kept.noted_attempts >= copy.mark.noted_attempts):
            # safeguard: another copy's mark ends a push
            return _require(db, copy, kept)
        # safeguard: the kept mark is looked at after writing
        write_mark(keeper, copy.identity.ledger_id, copy.mark)
    raise KeptMarkLost("the mark of the ledger that Airflow's Variable holds does not stay as written; see who else writes to it")


def how_it_is_behind(copy: LedgerCopy, kept: LedgerMark | None) -> str | None:
    """How it shows that the database is not the one that was billed from last; None where it is."""
    here = copy.mark
    if copy.pinned_cluster != copy.this_cluster:
        return f"the ledger was made in database cluster {copy.pinned_cluster} and lies in {copy.this_cluster}"
    if kept is None:
        return None
    # safeguard: the epoch of the kept mark
    if here.epoch != kept.epoch:
        return f"the database is at epoch {here.epoch} and what is kept outside it at epoch {kept.epoch}, which a recovery began"
    # safeguard: the attempts of the kept mark
    if here.noted_attempts < kept.noted_attempts:
        return f"the database knows of {here.noted_attempts} attempts to send, but {kept.noted_attempts} were made: it is an older copy"
    return None


def _require(db: Connection, copy: LedgerCopy, kept: LedgerMark | None) -> None:
    # What seems behind is read again: between the two looks others may have noted attempts, and kept that.
    if how_it_is_behind(copy, kept) and (cause := how_it_is_behind(ledger.this_copy(db), kept)):
        raise RestoredDatabase(f"{cause}. {ledger.RECOVER}")
