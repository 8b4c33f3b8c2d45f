"""The application that has users: demo usage arrives while the sandbox is up, every few seconds what those seconds brought.

`python -m sandbox.live_usage DSN` runs until SIGTERM. How far usage has arrived is kept beside it, in one transaction with the
usage: a kill neither loses nor doubles a call, and what was missed while nothing ran arrives with the next tick.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import FrameType

import psycopg

from sandbox.demo_usage import demo_tenants, fresh_usage
from sandbox.usage_csv import import_usage
from token_billing.adapters.clock import system_clock
from token_billing.windows import HOUR, Window, last_closed_window

#: The same tenants and the same usage in every sandbox.
TENANT_COUNT, SEED = 40, 20260101

#: Complete hours of usage that a new sandbox begins with, so that there is something to bill at once.
FIRST_HOURS = 6

#: After a longer pause only so much of the missed usage arrives: enough to see the hours being billed late.
MOST_MISSED = timedelta(hours=24)

#: Ticks lie on multiples of this, so that one lies on every full hour and a window's usage is complete when its run begins.
TICK = timedelta(seconds=5)

_CURSOR = """
CREATE SCHEMA IF NOT EXISTS sandbox;
CREATE TABLE IF NOT EXISTS sandbox.live_usage (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    arrived_until timestamptz NOT NULL  -- every call before this instant is in token_usage
)
"""


def live_tenants() -> dict[str, str]:
    """The tenants whose usage arrives: names by id."""
    return {tenant.id: tenant.name for tenant in demo_tenants(TENANT_COUNT, SEED)}


def first_window(now: datetime) -> Window:
    """The window in which the usage of a sandbox that is new at `now` begins."""
    return Window(last_closed_window(now).start - (FIRST_HOURS - 1) * HOUR)


def let_usage_arrive(connection: psycopg.Connection, now: datetime) -> int:
    """Inserts the usage between the last call of this and `now`, in one transaction, and returns how many rows; a new sandbox
    begins with `FIRST_HOURS` complete hours. At once in two processes it inserts nothing twice."""
    with connection.transaction():
        # Before the first read, and until the end: the other process must see how far this one got.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('sandbox.live_usage'))")
        connection.execute(_CURSOR)
        kept = connection.execute("SELECT arrived_until FROM sandbox.live_usage").fetchone()
        begin = first_window(now).start if kept is None else max(kept[0], Window(_hour(now - MOST_MISSED)).start)
        if begin >= now:
            return 0
        rows = fresh_usage(begin, now, TENANT_COUNT, SEED)
        import_usage(connection, rows)
        connection.execute(
            "INSERT INTO sandbox.live_usage (arrived_until) VALUES (%s)"
            " ON CONFLICT (only_row) DO UPDATE SET arrived_until = excluded.arrived_until",
            [now],
        )
    return len(rows)


def run(dsn: str, sleep: Callable[[float], None] = time.sleep) -> None:
    """Lets usage arrive at every tick; a database that cannot be reached is tried again at the next."""
    while True:
        now = system_clock()
        tick = _EPOCH + ((now - _EPOCH) // TICK + 1) * TICK
        sleep((tick - now).total_seconds())
        try:
            with psycopg.connect(dsn, connect_timeout=10) as connection:
                count = let_usage_arrive(connection, tick)
        except psycopg.OperationalError as error:
            print(f"{tick:%H:%M:%S} no usage arrives: {str(error).strip()}", flush=True)
        else:
            if count > 100 or tick.minute % 10 == tick.second == 0:
                print(f"{tick:%H:%M:%S} {count} calls", flush=True)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m sandbox.live_usage", description=__doc__)
    parser.add_argument("dsn", help="the sandbox's billing database")
    signal.signal(signal.SIGTERM, _end)
    run(parser.parse_args().dsn)
