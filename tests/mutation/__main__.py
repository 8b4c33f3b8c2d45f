"""`make mutation`: disables every safeguard in turn; the tests must catch each."""

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from mutation.mutants import Mutant, mutants
from mutation.trial import Ending, Trial, copy_repository, run_tests, try_mutant
from sandbox.environment import ROOT

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

#: Of what pytest printed about a mutant that was not caught, so much is shown.
MOST_TOLD_CHARACTERS = 3000


@app.command()
def mutation(
    only: Annotated[str, typer.Option(help="Only safeguards whose names hold this text.")] = "",
    sample: Annotated[int, typer.Option(min=0, help="So many of them, drawn by the seed; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Draws the sample.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Mutants tried at once; 0: as many as there are cores.")] = 0,
) -> None:
    """Exit 0 only if the named tests pass on the code as it is and catch every mutant of it."""
    chosen = [mutant for mutant in mutants() if only in mutant.safeguard]
    if sample:
        chosen = Random(seed).sample(chosen, min(sample, len(chosen)))
    tests = sorted({test for mutant in chosen for test in mutant.caught_by})
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder, ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        original = Path(folder) / "original"
        copy_repository(ROOT, original)  # whoever edits meanwhile edits another one
        unchanged = pool.submit(run_tests, original, tests)
        print(f"{'safeguard':56} {'seconds':>7}  caught by", flush=True)
        trials: list[Trial] = []
        for mutant, trial in zip(chosen, pool.map(lambda mutant: try_mutant(mutant, original), chosen), strict=True):
            trials.append(trial)
            _tell(mutant, trial)
        status, output = unchanged.result()
    if status != 0:
        sys.exit(f"{output[-MOST_TOLD_CHARACTERS:]}\nthe named tests fail on the code as it is, so nothing can be said about its mutants")
    caught = sum(trial.ending is Ending.CAUGHT for trial in trials)
    print(f"{len(tests)} named tests pass on the code as it is")
    print(f"{caught} of {len(trials)} caught: {len({mutant.safeguard for mutant in chosen})} safeguards")
    sys.exit(0 if trials and caught == len(trials) else 1)


def _tell(mutant: Mutant, trial: Trial) -> None:
    print(f"{mutant.safeguard:56} {trial.seconds:7.1f}  {trial.caught_by or trial.ending.upper()}", flush=True)
    if trial.ending is not Ending.CAUGHT:
        print(f"    {mutant}\n{trial.output[-MOST_TOLD_CHARACTERS:]}", flush=True)


if __name__ == "__main__":
    app()
