"""freeze: the unbilled rows of one window become usage reports, fixed for ever by a fence."""

import logging

from token_billing import metering
from token_billing.adapters import ledger
from token_billing.adapters.database import Connect, repeatable_read, retry_serialization, session
from token_billing.model import Clock, FrozenWindow, QuarantineReason
from token_billing.windows import Window, require_closed

log = logging.getLogger(__name__)


@retry_serialization
def freeze(connect: Connect, window: Window, clock: Clock) -> FrozenWindow:
    """Freezes what no fence of the window has seen as its next revision, in one REPEATABLE READ transaction; where there is
    nothing new it changes nothing, but the first freeze of a window always leaves its fence. Tokens are whole, per tenant and side: an
    hour in which the billing of a tenant's usage begins, changes or ends is divided at that instant.

    Raises WindowStillOpen before the window's end, LedgerNotReady where the database holds no usable ledger."""
    require_closed(window, clock())
    with session(connect) as db:
        identity = ledger.identity(db)
        # safeguard: one snapshot to freeze
        with repeatable_read(db):
            # safeguard: the turn comes before the snapshot
            ledger.take_freezing_turn(db)  # before the snapshot: what an earlier freeze committed is seen
            revision, last_snapshot = ledger.last_fence(db, window) or (-1, None)
            divided = {tenant: window.divided(instants) for tenant, instants in ledger.boundaries(db, window).items()}
            totals = ledger.unfrozen_totals(db, window, last_snapshot, divided)
            frozen = bool(totals) or last_snapshot is None
            if frozen:
                revision += 1
                identifiers = [metering.identifier(identity.ledger_id, total.tenant_id, window, total.side, revision) for total in totals]
                # safeguard: usage before the cut-over hour
                before_adoption = identity.cut_over is not None and window.start < identity.cut_over
                reason = QuarantineReason.BEFORE_ADOPTION if before_adoption else None
                ledger.set_fence(db, window, revision, clock())
                ledger.add_reports(db, window, revision, totals, identifiers, reason, clock())
            pending_count, quarantined_count = ledger.window_counts(db, window)
    done = FrozenWindow(
        window=window,
        revision=revision if frozen else None,
        row_count=sum(total.row_count for total in totals),
        token_count=sum(total.token_count for total in totals),
        report_count=len(totals),
        quarantined_count=quarantined_count,
        pending_count=pending_count,
    )
    if totals:
        log.info("window %s: %d tokens of %d rows frozen in %d reports", window, done.token_count, done.row_count, len(totals))
    else:
        log.info("window %s holds nothing new: what it held before is frozen already, and is not billed again", window)
    return done
