"""late usage: which closed windows hold something that no run will come back to, and which rows are ahead of their time.

Found windows are billed by the stages that bill every other window: what no fence has seen becomes the next revision."""

import logging
from datetime import timedelta

from token_billing.adapters import ledger
from token_billing.adapters.database import Connect, session
from token_billing.model import Clock
from token_billing.windows import HOUR, Window, last_closed_window

log = logging.getLogger(__name__)

#: As long as the run that froze a report goes on trying, it needs no help.
RUN_IS_OVER_AFTER = timedelta(hours=1)

#: Stripe takes nothing after 35 days; what waits for longer waits for a person.
WAITING_IS_HOPELESS_AFTER = timedelta(days=60)

#: Windows that one run takes on; each is a mapped task a stage.
MOST_WINDOWS = 100


def late_windows(connect: Connect, clock: Clock, most: int = MOST_WINDOWS) -> list[Window]:
    """Closed windows that hold rows no fence has seen (they came late, or no run ever covered the window), or reports whose run is
    over and that still wait to be sent, settled or marked; oldest first. Where there are more than `most`, at least half the places
    are for either kind, so that reports that wait for days hold no new rows up, nor each other. Reads every unbilled row's time once."""
    with session(connect) as db:
        ledger.identity(db)
        now = clock()
        # safeguard: only closed windows are late
        found = ledger.late_windows(db, last_closed_window(now).end, now - RUN_IS_OVER_AFTER, now - WAITING_IS_HOPELESS_AFTER, most)
    log.info("%d windows hold something left to bill%s", len(found), f", from {found[0]} on" if found else "")
    return found


def future_usage(connect: Connect, clock: Clock) -> dict[str, tuple[int, int]]:
    """Rows and tokens by tenant that are dated later than the running hour. They are billed when their hour has closed; that there
    are any says that some clock is wrong."""
    with session(connect) as db:
        ledger.identity(db)
        found = ledger.future_usage(db, last_closed_window(clock()).end + HOUR)
    for tenant_id, (rows, tokens) in found.items():
        log.warning("tenant %r: %d rows of %d tokens are dated in the future; look at the clock that dates them", tenant_id, rows, tokens)
    return found
