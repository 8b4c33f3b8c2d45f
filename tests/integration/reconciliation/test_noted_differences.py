"""Discrepancies follow what comparisons find, and a person's word."""

from dataclasses import replace

import pytest

from meters import Meters
from token_billing.adapters import discrepancies
from token_billing.errors import DiscrepanciesFound
from token_billing.reconciliation import EXACT, OF_METERS, Cause, Difference, Tolerance
from token_billing.stages.discrepancies import require_none, settle

MISSING = Difference(
    Cause.MISSING_AT_STRIPE, "cus mtr hour", "an hour lacks five", tenant_id="a", stripe_id="cus", expected_tokens=5, found_tokens=0
)


def note(meters: Meters, *found: Difference, scopes: tuple[str, ...] = (MISSING.scope,)) -> int:
    with meters.world.connect() as db, db.transaction():
        return discrepancies.note_differences(db, scopes, found, meters.world.clock())


def settle_all(meters: Meters) -> None:
    for (number,) in meters.world.sql("SELECT id FROM billing.discrepancy WHERE resolved_at IS NULL"):
        settle(meters.world.connect, number, "ann", meters.world.clock)


def test_what_is_found_again_is_no_news(meters: Meters) -> None:
    """It is told as it stands now."""
    assert note(meters, MISSING) == 1
    assert note(meters, replace(MISSING, found_tokens=1)) == 0
    assert meters.found() == [("missing_at_stripe", "a", 5, 1)]


def test_what_is_gone_settles_itself_in_the_scopes_that_were_compared(meters: Meters) -> None:
    note(meters, MISSING)
    note(meters, scopes=("cus mtr another hour",))
    assert meters.found() == [("missing_at_stripe", "a", 5, 0)]
    note(meters)
    assert meters.found() == []
    assert note(meters, MISSING) == 1, "what settled itself may come back"


def test_two_figures_of_one_thing_are_told_together(meters: Meters) -> None:
    """What one of them comes to is not lost behind the other."""
    assert note(meters, MISSING, replace(MISSING, details="and seven", expected_tokens=7, found_tokens=None)) == 1
    assert meters.found() == [("missing_at_stripe", "a", 12, 0)]
    assert meters.world.sql("SELECT details FROM billing.discrepancy") == [("an hour lacks five; and seven",)]


def test_two_meters_of_a_customer_differ_each_for_itself(meters: Meters) -> None:
    other = replace(MISSING, scope="cus other-meter hour", found_tokens=3)
    assert note(meters, MISSING, other, scopes=(MISSING.scope, other.scope)) == 2
    note(meters, other, scopes=(MISSING.scope, other.scope))
    assert meters.found() == [("missing_at_stripe", "a", 5, 3)]


def test_what_a_person_settled_stays_settled_until_its_figures_change(meters: Meters) -> None:
    note(meters, MISSING)
    settle_all(meters)
    assert note(meters, MISSING) == 0 and meters.found() == []
    assert note(meters, replace(MISSING, found_tokens=2)) == 1
    assert meters.found() == [("missing_at_stripe", "a", 5, 2)]


def test_what_was_settled_about_a_report_comes_back_with_its_next_generation(billed: Meters) -> None:
    """Lost again after it was sent anew: the same figures, another event."""
    billed.lose("a")
    billed.conclude()
    settle_all(billed)
    billed.at(7)
    billed.revoke("a")
    billed.world.bill()
    billed.lose("a")
    for hours in (7.5, 13.6):
        billed.at(hours)
        billed.compare()
    assert billed.found() == [("missing_at_stripe", "a", 50, 0)]


def test_an_open_discrepancy_fails_the_run_until_somebody_has_dealt_with_it(meters: Meters) -> None:
    """It names it, and says what to do."""
    note(meters, MISSING)
    with pytest.raises(DiscrepanciesFound, match=r"1 missing_at_stripe. missing_at_stripe a: an hour lacks five.*runbook"):
        meters.require_none()
    settle_all(meters)
    assert meters.require_none() == 0


def test_the_tolerance_lets_a_small_one_pass(meters: Meters) -> None:
    note(meters, MISSING)
    assert require_none(meters.world.connect, OF_METERS, Tolerance(tokens=5)) == 1
    with pytest.raises(DiscrepanciesFound):
        require_none(meters.world.connect, OF_METERS, Tolerance(tokens=4))
    assert require_none(meters.world.connect, (Cause.DUPLICATE,), EXACT) == 0, "another comparison's"
