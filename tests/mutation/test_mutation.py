"""Every safeguard in the code is disabled by some mutant, and the trial tells whether the tests notice."""

import re
from dataclasses import replace

import pytest

from mutation.mutants import disabled, markers, mutants
from mutation.trial import Ending, try_mutant
from sandbox.environment import ROOT

MUTANTS = mutants()

#: One that the pure rules' tests catch and one that a database catches; `make mutation` tries all of them.
SAMPLE = ("20 hours", "who recorded a row")


def test_every_marked_safeguard_has_a_mutant_and_every_mutant_a_marker() -> None:
    """A new safeguard is marked where it stands, and then cannot be forgotten here."""
    marked = [marker.safeguard for marker in markers()]
    assert len(marked) == len(set(marked)), "two safeguards have one name"
    assert set(marked) == {mutant.safeguard for mutant in MUTANTS}


def test_every_trigger_is_a_marked_safeguard() -> None:
    """So are those to come."""
    unmarked = [
        line
        for file in (ROOT / "include/token_billing/sql/migrations").glob("*.sql")
        for before, line in zip(["", *file.read_text().splitlines()], file.read_text().splitlines(), strict=False)
        if re.match(r"CREATE (CONSTRAINT )?TRIGGER", line) and "safeguard:" not in before
    ]
    assert unmarked == []


def test_every_mutant_changes_what_stands_at_its_marker() -> None:
    """Its exact text is there once, and nobody else disables the same in the same way."""
    everywhere = markers()
    for mutant in MUTANTS:
        file, text = disabled(mutant, everywhere=everywhere)
        assert text != file.read_text(), mutant
    assert len(MUTANTS) == len({(mutant.safeguard, mutant.exact, mutant.instead) for mutant in MUTANTS})


def test_the_tests_that_must_catch_a_mutant_exist() -> None:
    for test in {test for mutant in MUTANTS for test in mutant.caught_by}:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file() and f"def {name.split('[')[0]}" in (ROOT / path).read_text(), test


@pytest.mark.parametrize("safeguard", SAMPLE)
def test_a_disabled_safeguard_is_caught(safeguard: str) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.safeguard == safeguard)
    trial = try_mutant(mutant, ROOT)
    assert trial.ending is Ending.CAUGHT, trial.output
    assert trial.caught_by in mutant.caught_by


def test_a_mutant_that_no_test_notices_has_survived() -> None:
    """So the trial can fail."""
    mutant = next(mutant for mutant in MUTANTS if mutant.safeguard == "20 hours")
    assert try_mutant(replace(mutant, caught_by=("tests/unit/test_windows.py",)), ROOT).ending is Ending.SURVIVED


@pytest.mark.parametrize("instead", ["return nonsense", "return ("])
def test_a_mutant_that_is_no_program_is_not_taken_for_a_caught_one(instead: str) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.safeguard == "20 hours")
    line = "return report.first_attempted_at is not None and now < report.first_attempted_at + RESEND_LIMIT"
    assert try_mutant(replace(mutant, exact=line, instead=instead), ROOT).ending is Ending.BROKEN
