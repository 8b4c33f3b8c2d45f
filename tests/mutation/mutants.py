"""Safeguards, as markers in the product's code name them, and mutants: the code with one of them disabled.

A marker is a comment `# safeguard: name`, in SQL `-- safeguard: name`, on the line of the safeguard or right above it. The mutants stand
in `mutants/*.toml`: exact text near the marker, what stands there instead, and the tests that must fail then."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.environment import ROOT

#: Where safeguards stand.
GUARDED = ("include", "plugins/billing_airflow", "dags")

_MARKER = re.compile(r"(?:#|--) safeguard: (.+)$")

#: Lines from the marker on in which its safeguard stands, unless the next marker comes first.
REACH = 14


@dataclass(frozen=True)
class Marker:
    """Where a safeguard stands: a file, relative to the repository, and the marker's line in it, from 0."""

    safeguard: str
    file: str
    line: int


@dataclass(frozen=True)
class Mutant:
    """One way to disable a safeguard: `exact` text becomes `instead`, and one of `caught_by` (pytest's names of tests) must fail."""

    safeguard: str
    exact: str
    instead: str
    caught_by: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.safeguard}: {' '.join(self.exact.split())!r} → {' '.join(self.instead.split())!r}"


class MutantDoesNotFit(Exception):
    """The code near the marker is not what the mutant says."""


def markers(root: Path = ROOT) -> list[Marker]:
    """Every marker in the code."""
    files = sorted(file for folder in GUARDED for kind in ("*.py", "*.sql") for file in (root / folder).rglob(kind))
    return [
        Marker(found[1].strip(), str(file.relative_to(root)), number)
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines())
        if (found := _MARKER.search(line))
    ]


def mutants() -> list[Mutant]:
    """Every mutant, in the order of the files."""
    tables = [tomllib.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(__file__).with_name("mutants").glob("*.toml"))]
    return [Mutant(**{**one, "caught_by": tuple(one["caught_by"])}) for table in tables for one in table["mutant"]]


def disabled(mutant: Mutant, root: Path = ROOT, everywhere: Sequence[Marker] = ()) -> tuple[Path, str]:
    """The file with the mutant's safeguard, and its text without the safeguard; raises MutantDoesNotFit. `everywhere`: the root's
    markers, where they were read already."""
    everywhere = everywhere or markers(root)
    places = [marker for marker in everywhere if marker.safeguard == mutant.safeguard]
    if len(places) != 1:
        raise MutantDoesNotFit(f"{len(places)} markers are called {mutant.safeguard!r}; there must be one")
    name, start = places[0].file, places[0].line
    file = root / name
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    end = min([start + REACH, *(marker.line for marker in everywhere if marker.file == name and marker.line > start)])
    near = "".join(lines[start:end])
    if near.count(mutant.exact) != 1:
        raise MutantDoesNotFit(f"{name}:{start + 1}: found {near.count(mutant.exact)} times near the marker: {mutant.exact!r}")
    return file, "".join([*lines[:start], near.replace(mutant.exact, mutant.instead), *lines[end:]])
