"""Trying a mutant: a copy of the repository with one safeguard disabled, in which the tests named for it must fail."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mutation.mutants import Mutant, disabled
from sandbox.environment import without_stripe

#: A test that fails for one of these tells of a mutant that is no program, not of a missing safeguard.
_NO_PROGRAM = re.compile(r"^E +(?:[\w.]+\.)?(?:\w*SyntaxError|NameError|AttributeError|Undefined\w+|IndeterminateDatatype)\b", re.MULTILINE)

_FAILED = re.compile(r"^FAILED ([^\s\[]+)", re.MULTILINE)

_NOT_COPIED = (".git", ".venv", ".sandbox", ".cache", ".*_cache", ".hypothesis", "__pycache__")


class Ending(StrEnum):
    """What became of a mutant."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    #: Neither: the tests could not be collected or set up, or failed because the mutated code cannot run.
    BROKEN = "broken"


@dataclass(frozen=True)
class Trial:
    """How a mutant ended, by which test, and what pytest printed."""

    ending: Ending
    caught_by: str
    seconds: float
    output: str


def copy_repository(source: Path, target: Path) -> None:
    """Everything but the history, the environment, and what is made by running."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_NOT_COPIED))


def try_mutant(mutant: Mutant, original: Path) -> Trial:
    """Runs the mutant's tests in a copy of the original in which its safeguard is disabled. Raises MutantDoesNotFit."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "repository"
        copy_repository(original, copy)
        file, text = disabled(mutant, copy)
        file.write_text(text, encoding="utf-8")
        status, output = run_tests(copy, mutant.caught_by)
    failed = _FAILED.search(output)
    if status == 0:
        ending = Ending.SURVIVED
    elif status == 1 and failed and not _NO_PROGRAM.search(output):
        ending = Ending.CAUGHT
    else:
        ending = Ending.BROKEN
    return Trial(ending, failed[1] if failed and ending is Ending.CAUGHT else "", time.monotonic() - began, output)


def run_tests(repository: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit status and output for tests of a copy of the repository, until the first fails. Nothing of the caller's Stripe."""
    environment = {
        **without_stripe(os.environ),
        "PYTHONPATH": os.pathsep.join(str(repository / folder) for folder in ("include", "plugins", "tests", ".")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = ["-n", "0", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-o", "timeout=200"]
    if all(test.startswith("tests/unit/") for test in tests):
        options.append("--noconftest")  # pure rules need no servers
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout
