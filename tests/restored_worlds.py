"""A billing database in a cluster of its own, and the ways in which it may come back: from a copy of its volume, or from a dump."""

import subprocess
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from sandbox.postgres import PostgresServer, find_binaries
from token_billing.errors import BillingError, RestoredDatabase
from token_billing.stages.kept_mark import require_newest
from token_billing.stages.late_usage import late_windows
from token_billing.stages.recover import recover
from world import World


def restore(world: World, elsewhere: PostgresServer) -> World:
    """The world's database, dumped and restored in the other cluster."""
    programs, dsn = find_binaries(), elsewhere.recreate_database("billing")
    dumped = subprocess.run([programs / "pg_dump", "-Fc", world.dsn], check=True, capture_output=True).stdout
    subprocess.run([programs / "pg_restore", "-d", dsn, "--exit-on-error"], input=dumped, check=True)
    return replace(world, dsn=dsn)


def burn_ids(dsn: str, count: int = 3000) -> None:
    """Lets the cluster's transaction ids run on."""
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(f"DO $$ BEGIN FOR i IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")


def recover_by_command(world: World) -> None:
    with pytest.raises(RestoredDatabase, match="billing_airflow recover"):
        require_newest(world.connect, world.keeper)
    recover(world.connect, world.keeper, world.clock, recovered_by="ops")
    require_newest(world.connect, world.keeper)


def bill_for_days(world: World, days: float = 2.5) -> None:
    """Runs every twelve hours, whatever becomes of them, late usage included."""
    start = world.clock()
    for hours in range(0, int(days * 24) + 1, 12):
        world.set_time(start + timedelta(hours=hours))
        for window in {world.window, *late_windows(world.connect, world.clock)}:
            run = replace(world, window=window)
            run.freeze()
            with suppress(BillingError):
                run.push()
            run.mark_billed()


def sent(world: World) -> list[int]:
    return sorted(world.received())
