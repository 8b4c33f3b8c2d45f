"""What counts as surplus at Stripe, and what Stripe's answers to a cancellation mean."""

from datetime import UTC, datetime
from typing import Any

import pytest

from token_billing import metering
from token_billing.model import Answer, NoAnswer
from token_billing.surplus import Cancelled, GivenUpReport, NotCancellable, StillSurplus

REPORT = GivenUpReport(1, "a", 5, "cus_a", "mtr_a", datetime(2026, 1, 31, 14, 7, tzinfo=UTC), ["g1", "g0"], 8, False, 0)


@pytest.mark.parametrize(
    ("counted", "found"),
    [(0, (0, 0)), (5, (0, 0)), (8, (0, 0)), (13, (1, 0)), (18, (2, 0)), (23, (0, 15)), (9, (0, 1)), (12, (0, 4)), (14, (0, 6))],
)
def test_only_whole_reports_beyond_what_the_minute_must_hold_are_ours(counted: int, found: tuple[int, int]) -> None:
    """As many as identifiers were given up; all else is not ours to cancel, and less than expected is no surplus."""
    assert metering.surplus_in(REPORT, counted) == found


def test_nothing_is_concluded_while_other_reports_of_the_minute_are_in_doubt() -> None:
    """One of them may have arrived."""
    assert metering.surplus_in(REPORT._replace(others_in_doubt=True), 13) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (Answer(200), Cancelled()),
        (Answer(400, message="The meter event with identifier i is already cancelled."), Cancelled()),
        (Answer(400, message="Event already canceled"), Cancelled()),
        (Answer(400, message="too late"), NotCancellable("too late")),
        (Answer(404, message="No such event"), NotCancellable("No such event")),
        (Answer(400, "idempotency_error", message="key"), StillSurplus("key", 400)),
        (Answer(401, message="bad key"), StillSurplus("bad key", 401)),
        (Answer(403, message="may not"), StillSurplus("may not", 403)),
        (Answer(409, message="busy"), StillSurplus("busy", 409)),
        (Answer(429, message="slow down"), StillSurplus("slow down", 429)),
        (Answer(500), StillSurplus("HTTP 500", 500)),
        (Answer(500, message="kept", replayed=True), StillSurplus("kept", 500, new_key=True)),
        (Answer(200, replayed=True), Cancelled()),
        (NoAnswer("reset", never_left=False), StillSurplus("reset")),
        (NoAnswer("refused", never_left=True), StillSurplus("refused")),
    ],
)
def test_unknown_is_never_given_up(answer: Any, meaning: Any) -> None:
    """Only Stripe's own refusal of this very cancellation ends it without success."""
    assert metering.classify_cancellation(answer) == meaning


def test_a_cancellation_has_a_key_of_its_own() -> None:
    """The same for every try, until an error was replayed under it; never the key the event itself was sent with."""
    keys = {metering.cancellation_key("i", 0), metering.cancellation_key("i", 1), metering.idempotency_key("i", 0)}
    assert len(keys) == 3
    assert len(metering.cancellation_key("i" * metering.IDENTIFIER_LIMIT, 10**6)) <= 255
