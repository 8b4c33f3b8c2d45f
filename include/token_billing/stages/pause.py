"""pause: one switch for all sending. Freezing, marking and checking go on; what waits is sent after resuming."""

import logging

from token_billing.adapters import ledger
from token_billing.adapters.database import Connect, session
from token_billing.errors import PauseRefused
from token_billing.model import Clock

log = logging.getLogger(__name__)


def pause_sending(connect: Connect, by: str, reason: str, clock: Clock) -> None:
    """Has every push, of any run, stop before its next chunk of reports. Raises PauseRefused where sending is paused already."""
    with session(connect) as db:
        ledger.identity(db)
        if not ledger.pause(db, by, reason, clock()):
            raise PauseRefused(f"sending is paused already, {ledger.current_pause(db)}; resume it first to give another reason")
    log.info("sending is paused by %s: %s", by, reason)


def resume_sending(connect: Connect, by: str, clock: Clock) -> None:
    """Lets pushes send again; what waits is sent by the runs' retries and by the DAG report_late_usage. Raises PauseRefused where
    sending is not paused."""
    with session(connect) as db:
        ledger.identity(db)
        if not ledger.resume(db, by, clock()):
            raise PauseRefused("sending is not paused, so there is nothing to resume")
    log.info("sending is resumed by %s", by)
