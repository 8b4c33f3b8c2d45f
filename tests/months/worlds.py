"""Worlds lived and judged, each in a database and a simulator of its own: a clean one, and one in which errors are planted."""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import psycopg

from months import oracle
from months.life import Life
from months.planner import BEGIN, make_plan
from months.plantings import KINDS
from months.result import Result
from sandbox.postgres import PostgresServer
from sandbox.services import prepare_billing_database
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.settings import ReconcileSettings

Kind = Literal["clean", "planted"]


class World(NamedTuple):
    """What is to be lived. `active`: the share of hours that hold usage of anybody; `buys_within`: when those buy in whose billing errors
    are planted. With planted errors (`kinds`), each has one of the tenants for itself."""

    kind: Kind
    months: int
    tenants: int
    seed: int
    active: float = 0.12
    buys_within: timedelta = timedelta(days=3)
    kinds: tuple[str, ...] = tuple(KINDS)
    longest_hold: timedelta = ReconcileSettings().longest_hold


def lived(world: World, dsn: str, simulator: StripeSimulator) -> Result:
    """The world's months in an adopted database, judged."""
    result = Result(world.kind, world.seed)
    began = time.monotonic()
    kinds = world.kinds if world.kind == "planted" else ()
    ordinary = max(2, world.tenants - len(kinds))
    plan = make_plan(world.seed, world.months, ordinary, active=world.active, kinds=kinds, buys_within=world.buys_within)
    with TemporaryDirectory(prefix="months-") as folder, Life(dsn, simulator, Path(folder), plan, world.longest_hold) as life:
        life.live()
        with psycopg.connect(dsn) as db:
            judgement = oracle.judge(db, life.account, life.truth())
            result.planted, others = life.saboteur.found(oracle.flagged(db), oracle.tenants_of_reports(db))
        meant = life.saboteur.names_of_all()
        result.figures = life.figures + judgement.figures
        result.problems = [
            *life.runs.problems,
            *(f"{whose}: {wrong}" for whose, wrong in judgement.problems if whose not in meant),
            *(str(one) for one in others if not life.is_called_for(one, judgement.lacking)),
            *(f"not planted: {one.kind}" for one in life.saboteur.waiting),
            *(
                f"planted: {one.kind} ({one.tenant}), found as {one.found}, not as {one.wanted}"
                for one in result.planted
                if not one.is_right
            ),
        ]
    result.seconds = time.monotonic() - began
    return result


def lived_in_parallel(worlds: Sequence[World], postgres: PostgresServer) -> list[Result]:
    """Each in a process of its own."""
    places = []
    for number in range(len(worlds)):
        dsn = postgres.recreate_database(f"months_{number}")
        prepare_billing_database(dsn, lambda: BEGIN)
        places.append(dsn)
    with ProcessPoolExecutor(len(worlds), get_context("spawn")) as processes:
        return list(processes.map(_live, worlds, places))


def _live(world: World, dsn: str) -> Result:
    with StripeSimulator.start() as simulator:
        return lived(world, dsn, simulator)
