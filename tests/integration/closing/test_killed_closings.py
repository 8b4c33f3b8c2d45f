"""kill -9 at every statement and request of a closing run: the next one does what was left, and nobody goes untold meanwhile."""

from datetime import timedelta
from random import Random

import pytest

from crash.kill_points import different, run_in_child
from month_end import PERIOD_END, MonthEnd

#: Of some forty in each run; `make closings` kills at random ones.
PLACES = 12

HOUR = 60
HELD_UNTIL = 72 * HOUR - 30


@pytest.mark.parametrize(
    ("run", "minutes", "before", "after"),
    [
        ("holds", 5, HOUR, HELD_UNTIL),
        ("lets what is complete go", 3 * HOUR, HELD_UNTIL, 3 * HOUR + 30),
        ("lets an incomplete draft go", 48 * HOUR, HELD_UNTIL, 51 * HOUR),
    ],
)
def test_a_closing_run_killed_anywhere_is_finished_by_the_next(month: MonthEnd, run: str, minutes: int, before: int, after: int) -> None:
    """A draft that is about to go incomplete has its alert at every instant."""
    if run != "lets what is complete go":
        month.use(5)
    month.at(5)
    if before != HOUR:
        month.close()
    month.at(minutes)
    kept = month.world.sql("SELECT planned_for, moved_to, released_as FROM billing.closing")
    invoice = month.invoice().id

    def begin_again() -> None:
        month.shop.client.invoices.update(
            invoice, {"automatically_finalizes_at": int((PERIOD_END + timedelta(minutes=before)).timestamp())}
        )
        month.world.sql("TRUNCATE billing.closing, billing.discrepancy CASCADE")
        for planned_for, moved_to, released_as in kept:
            month.world.sql(
                "INSERT INTO billing.closing (invoice_id, subscription_id, appeared_at, planned_for, moved_to, released_as) "
                "VALUES (%s, %s, %s, %s, %s, %s)",
                *(invoice, month.subscription, PERIOD_END, planned_for, moved_to, released_as),
            )

    places = different(run_in_child(month.close, None) or [])
    assert month.finalises_after() == after and len(places) > 20
    for place in Random(1).sample(places, PLACES):
        begin_again()
        if run_in_child(month.close, place) is None and "incomplete" in run:
            assert month.told() or month.finalises_after() == before, place
        month.close()
        assert month.finalises_after() == after, place
        assert len(month.told()) == ("incomplete" in run), place
