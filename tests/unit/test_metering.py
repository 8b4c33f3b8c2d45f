"""Identity, age and the meaning of Stripe's answers."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_billing import metering
from token_billing.doubtful import DoubtfulReport, ReadBack
from token_billing.model import (
    Accepted,
    Answer,
    Destination,
    Meter,
    NoAnswer,
    QuarantineReason,
    Rejected,
    SendableReport,
    Sink,
    Undelivered,
    Unresolved,
)
from token_billing.periods import BillingPeriod
from token_billing.windows import Side, Window

WINDOW = Window(datetime(2026, 3, 1, 10, tzinfo=UTC))
NOW = WINDOW.end

REPORT = SendableReport(
    id=1,
    side=WINDOW.whole,
    identifier="i",
    token_count=5,
    destination=Destination("cus_1", "si_1", Meter("mtr_1", "tokens", "stripe_customer_id", "value")),
    attempt_count=0,
    first_attempted_at=None,
    may_have_arrived=False,
    event_time=None,
    used_event_times=(),
    key_number=0,
)


@given(tenant=st.text(min_size=1, max_size=300))
def test_an_identifier_fits_whatever_the_tenant_is_called(tenant: str) -> None:
    """At most 100 printable ASCII characters without '#', which marks a further idempotency key."""
    identifier = metering.identifier("ledger", tenant, WINDOW, WINDOW.whole, 0)
    assert len(identifier) <= metering.IDENTIFIER_LIMIT
    assert identifier.isascii() and identifier.isprintable() and "#" not in identifier and " " not in identifier


def test_the_same_report_has_the_same_identifier_and_no_other_has_it() -> None:
    """Each part of a report's identity counts, also where parts could run into each other."""
    later = Side(WINDOW.start + timedelta(minutes=10), WINDOW.end)
    base: tuple[Any, ...] = ("ledger", "tenant", WINDOW, WINDOW.whole, 0, 0)
    others: list[tuple[Any, ...]] = [
        ("ledger2", *base[1:]),
        ("ledger", "tenant2", *base[2:]),
        ('ledger", "tenant', "", *base[2:]),
        (*base[:2], Window(WINDOW.end), *base[3:]),
        (*base[:3], later, 0, 0),
        (*base[:4], 1, 0),
        (*base[:5], 1),
        (*base[:4], 10, 0),
    ]
    identifiers = [metering.identifier(*parts) for parts in (base, *others)]
    assert metering.identifier(*base) == identifiers[0]
    assert len(set(identifiers)) == len(identifiers)


def test_an_idempotency_key_leads_back_to_its_report() -> None:
    """The first key is the identifier itself; later ones begin with it."""
    assert metering.idempotency_key("usage-1", 0) == "usage-1"
    assert metering.idempotency_key("usage-1", 2) == "usage-1#2"


@pytest.mark.parametrize(
    ("answer", "first", "after_unknown"),
    [
        (Answer(200), Accepted, Accepted),
        (Answer(200, replayed=True), Accepted, Accepted),
        (Answer(400, "invalid_request_error", None, "An event already exists with identifier X."), Unresolved, Accepted),
        (Answer(400, "invalid_request_error", None, 'No active meter found for event name "x"'), Rejected, Unresolved),
        (Answer(400, "idempotency_error", None, "Keys for idempotent requests…"), Unresolved, Unresolved),
        (Answer(404, "invalid_request_error", "resource_missing", "No such customer"), Rejected, Unresolved),
        (Answer(401, "invalid_request_error", None, "Invalid API Key provided"), Undelivered, Undelivered),
        (Answer(403, "invalid_request_error", None, "not allowed"), Undelivered, Undelivered),
        (Answer(409, "invalid_request_error", None, "in progress"), Unresolved, Unresolved),
        (Answer(429, "invalid_request_error", "rate_limit", "Too many requests"), Undelivered, Undelivered),
        (Answer(500, "api_error", None, "oops"), Unresolved, Unresolved),
        (Answer(500, "api_error", None, "oops", replayed=True), Unresolved, Unresolved),
        (Answer(302, None, None, "moved"), Unresolved, Unresolved),
        (NoAnswer("timeout", never_left=False), Unresolved, Unresolved),
        (NoAnswer("connection refused", never_left=True), Undelivered, Undelivered),
    ],
)
def test_unknown_is_never_failed(answer: Answer | NoAnswer, first: type, after_unknown: type) -> None:
    """What each answer means to a first request, and to one after a request without a known answer."""
    assert type(metering.classify(answer, may_have_arrived=False)) is first
    assert type(metering.classify(answer, may_have_arrived=True)) is after_unknown


@pytest.mark.parametrize("may_have_arrived", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, "invalid_request_error", None, "An event already exists with identifier X."),
        Answer(400, "idempotency_error", None, "Keys for idempotent requests…"),
        Answer(500, "api_error", None, "oops", replayed=True),
    ],
)
def test_an_answer_about_somebody_elses_request_is_no_attempt_of_ours(answer: Answer, may_have_arrived: bool) -> None:
    """A duplicate refusal, a reused key and a replayed error tell of another request: they make nothing of ours more likely to
    have arrived, so that the next duplicate refusal is not taken for our own."""
    outcome = metering.classify(answer, may_have_arrived=may_have_arrived)
    if isinstance(outcome, Unresolved):
        assert outcome.may_have_arrived is may_have_arrived


def test_a_replayed_error_asks_for_another_key() -> None:
    """Stripe would go on replaying it under the same one."""
    replayed = metering.classify(Answer(500, "api_error", None, "oops", replayed=True), may_have_arrived=True)
    assert isinstance(replayed, Unresolved) and replayed.new_key


def test_a_report_older_than_35_days_is_not_sent() -> None:
    """The limit, less a margin for the way to Stripe."""
    limit = NOW - metering.OLDEST_EVENT
    assert metering.cannot_be_sent(5, limit + timedelta(minutes=6), NOW) is None
    assert metering.cannot_be_sent(5, limit + timedelta(minutes=4), NOW) is QuarantineReason.TOO_OLD


def test_a_value_of_more_digits_than_stripe_counts_is_not_sent() -> None:
    """Fifteen digits are the most."""
    assert metering.cannot_be_sent(999_999_999_999_999, NOW, NOW) is None
    assert metering.cannot_be_sent(1_000_000_000_000_000, NOW, NOW) is QuarantineReason.TOO_MANY_DIGITS


def test_a_report_that_may_have_arrived_is_resent_only_while_stripe_surely_knows_its_identifier() -> None:
    """Twenty hours after its first attempt, not after its last."""
    attempted = REPORT._replace(attempt_count=1, first_attempted_at=NOW)
    before, after = NOW + timedelta(hours=19, minutes=59), NOW + timedelta(hours=20)
    assert metering.may_be_sent(attempted, WINDOW.start, True, before)
    assert not metering.may_be_sent(attempted, WINDOW.start, True, after)
    assert metering.may_be_sent(attempted, WINDOW.start, False, after), "nothing has arrived, so there is nothing to recognise"


def test_a_usage_record_is_sent_again_at_any_age() -> None:
    """It is set at a second of its own, and whether its period is over is for Stripe to say."""
    record = REPORT._replace(destination=Destination("cus_1", "si_1", None), attempt_count=1, first_attempted_at=NOW)
    assert metering.may_be_sent(record, WINDOW.start, True, NOW + timedelta(days=300))
    assert metering.cannot_be_sent(metering.LARGEST_VALUE + 1, NOW, NOW, Sink.USAGE_RECORDS) is QuarantineReason.TOO_MANY_DIGITS


DOUBTFUL = DoubtfulReport(
    id=1,
    tenant_id="a",
    side=WINDOW.whole,
    span=WINDOW.whole,
    destination=REPORT.destination,
    revision=0,
    generation=0,
    token_count=5,
    event_time=WINDOW.start,
    forgotten=False,
    absent_since=None,
    other_tokens=8,
    doubtful_tokens=3,
)


@pytest.mark.parametrize(
    ("counted", "verdict"),
    [
        (16, ReadBack.PRESENT),
        (8, ReadBack.ABSENT),
        *((counted, ReadBack.UNCLEAR) for counted in (0, 3, 5, 7, 9, 11, 13, 15, 17)),
    ],
)
def test_a_summary_speaks_only_where_it_is_exactly_what_all_or_none_in_doubt_explain(counted: int, verdict: ReadBack) -> None:
    """Five tokens of the report's own, eight that Stripe has of others, three in doubt beside it."""
    assert metering.judge_read_back(DOUBTFUL, counted, NOW) is verdict


def test_an_absence_is_proven_by_a_day_of_it() -> None:
    """Not by the first look, and not a moment earlier."""
    for absent_since, verdict in (
        (None, ReadBack.ABSENT),
        (NOW - timedelta(hours=23, minutes=59), ReadBack.ABSENT),
        (NOW - timedelta(hours=24), ReadBack.PROVEN_ABSENT),
    ):
        assert metering.judge_read_back(replace(DOUBTFUL, absent_since=absent_since), 8, NOW) is verdict


def test_what_a_period_lacks_is_proven_absent_a_day_after_its_end() -> None:
    """Nothing more of it is taken then; what it holds besides what is known is for a person all the same."""
    period = BillingPeriod(WINDOW.start - timedelta(days=30), WINDOW.end)
    day_later = WINDOW.end + metering.ABSENCE
    assert metering.judge_read_back(DOUBTFUL, 8, day_later, period) is ReadBack.PROVEN_ABSENT
    assert metering.judge_read_back(DOUBTFUL, 8, day_later - timedelta(seconds=1), period) is ReadBack.ABSENT
    assert metering.judge_read_back(DOUBTFUL, 9, day_later, period) is ReadBack.UNCLEAR
    assert metering.judge_read_back(DOUBTFUL, 16, day_later, period) is ReadBack.PRESENT
