"""`make bench`: the sandbox's own PostgreSQL and Stripe simulator, started for this run in a folder that goes away with it."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sandbox.environment import HOME, without_stripe

#: Where the output is no terminal, lines are as long as the table needs.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def bench(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; every figure is the best of them.")] = 5,
    rows: Annotated[
        int, typer.Option(min=100, help="Rows of the hour that is frozen and marked, in a table of five times as many.")
    ] = 1_000_000,
    reports: Annotated[int, typer.Option(min=1, help="Reports that push sends.")] = 4_000,
    job_rows: Annotated[int, typer.Option(min=100, help="Rows of the hour that is billed from end to end.")] = 100_000,
    events: Annotated[int, typer.Option(min=1, help="Meter events for the simulator alone.")] = 20_000,
) -> None:
    """Measure how fast this is, as ratios within one run; targets are told, not enforced."""
    # Nothing of the caller's leads anywhere: no key, no address, no proxy. What is sent goes to the simulator started here.
    kept = {name: value for name, value in without_stripe(os.environ).items() if not name.lower().endswith("_proxy")}
    os.environ.clear()
    os.environ.update(kept)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with this process

    from benchmarks.databases import Databases
    from benchmarks.marking import compare_marking
    from benchmarks.pushing import compare_pushing
    from benchmarks.result import show, write
    from benchmarks.simulating import rate_simulator
    from sandbox.postgres import PostgresServer
    from sandbox.stripe_simulator.process import StripeSimulator

    began = time.monotonic()

    def say(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {step}", soft_wrap=True)

    HOME.mkdir(parents=True, exist_ok=True)
    say("starting PostgreSQL, with fsync, and the Stripe simulator")
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=HOME) as folder,
        PostgresServer(Path(folder) / "postgres", durable=True) as server,
        StripeSimulator.start() as simulator,
    ):
        databases = Databases(server)
        databases.make_quiet()
        comparisons = [
            *compare_marking(databases, rows, repeats, say),
            *compare_pushing(databases, simulator, reports, job_rows, repeats, say),
            rate_simulator(simulator, events, repeats, say),
        ]
    sizes = {"repeats": repeats, "rows": rows, "reports": reports, "job_rows": job_rows, "events": events}
    write(comparisons, sizes, time.monotonic() - began, HOME / "bench.json")
    show(comparisons, console)
    missed = sum(one.is_met is False for one in comparisons)
    say(f"all rounds are in {HOME / 'bench.json'}; " + (f"[red]{missed} targets missed[/]" if missed else "[green]every target met[/]"))


if __name__ == "__main__":
    typer.run(bench)
