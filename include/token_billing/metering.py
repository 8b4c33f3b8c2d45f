"""The rules of reporting usage: identity, what may be sent when, and what Stripe's answers mean. Pure."""

import hashlib
import json
from collections.abc import Collection
from datetime import datetime, timedelta
from functools import lru_cache

from token_billing.doubtful import DoubtfulReport, ReadBack
from token_billing.model import (
    Accepted,
    Answer,
    NoAnswer,
    Outcome,
    QuarantineReason,
    Rejected,
    SendableReport,
    Sink,
    Undelivered,
    Unresolved,
)
from token_billing.periods import BillingPeriod
from token_billing.surplus import Cancellation, Cancelled, GivenUpReport, NotCancellable, StillSurplus
from token_billing.windows import Side, Window

#: Stripe takes identifiers of at most 100 characters (API reference, meter events).
IDENTIFIER_LIMIT = 100

#: Stripe takes meter event timestamps from 35 calendar days ago (API reference, meter events).
OLDEST_EVENT = timedelta(days=35)

#: Kept between our deciding that a report is young enough and Stripe's looking at it.
AGE_MARGIN = timedelta(minutes=5)

#: Stripe knows an identifier again for at least 24 h; a blind resend stays well inside, clocks and time-outs included.
RESEND_LIMIT = timedelta(hours=20)

#: Summaries are eventually consistent, without a published bound; one production system waits so long before it resends.
ABSENCE = timedelta(hours=24)

#: Stripe cancels a meter event within 24 h of its receipt (API reference, meter event adjustments).
CANCEL_WINDOW = timedelta(hours=24)

#: How long a summary may go on showing what was cancelled, or not yet show what arrived, before anything is concluded from it.
SETTLING = timedelta(hours=6)

#: How often the minute of a report that was sent anew is read for a surplus. A worker that overslept most likely wakes up soon after
#: (its request may be on its way now), so every hourly run looks for as long as such an event could be cancelled, and some hours
#: more; later, as long as Stripe takes the event at all, often enough to leave half of the time to cancel it.
CLOSE_WATCH = CANCEL_WINDOW + timedelta(hours=6)
LOOK_EVERY = timedelta(minutes=50)
LOOK_LATER_EVERY = CANCEL_WINDOW / 2

#: Stripe's meters take values of at most 15 digits.
LARGEST_VALUE = 10**15 - 1

#: What Stripe answers to a wrong key, and to one that may not do this.
KEY_REFUSED = (401, 403)

#: "An event already exists with identifier X." and "No such customer"-like sentences carry no code: matched here, nowhere else.
DUPLICATE_IDENTIFIER = "An event already exists with identifier"

#: What Stripe says of an item whose usage the other sink reports, and of a version that has no usage records (docs/decisions/0007-…).
WRONG_SINK = ("is not on the legacy metered billing system", "metered prices must be backed by meters")


def identifier(ledger_id: str, tenant_id: str, window: Window, side: Side, revision: int, generation: int = 0) -> str:
    """The name under which Stripe knows a report: the same for the same report for ever, different for any other, at most
    100 characters whatever the tenant id looks like, and readable as far as that goes."""
    # safeguard: the identifier
    identity = json.dumps([ledger_id, tenant_id, _iso(window.start), _iso(side.start), revision, generation])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:40]
    return f"usage-{_iso(window.start)[:13].replace('-', '')}-r{revision}g{generation}-{digest}"


@lru_cache(maxsize=256)
def _iso(time: datetime) -> str:
    """A large hour names the same two times ten thousand times."""
    return time.isoformat()


def idempotency_key(report_identifier: str, key_number: int) -> str:
    """The header for a request: the identifier, so that Stripe's error reports lead back to the report; `#n` is added
    once Stripe replays a stored error under the plain key (the identifier alone still de-duplicates)."""
    return report_identifier if key_number == 0 else f"{report_identifier}#{key_number}"


def event_time(report: SendableReport, used: Collection[datetime]) -> datetime | None:
    """The time to date a report with, for ever: the one it has, else one of its own beside those used; None where none is left."""
    if report.event_time is not None:
        return report.event_time
    return report.side.second(used) if report.destination.sink is Sink.USAGE_RECORDS else report.side.event_time(used)


def wrong_sink(report: SendableReport, chosen: Sink) -> str | None:
    """Why a report that was never attempted cannot go to the chosen sink, and what to change; None where it can, or must go on where
    its first attempt went."""
    item, fitting = report.destination.usage_item_id, report.destination.sink
    # safeguard: the first attempt fixes the sink
    if fitting is chosen or report.attempt_count > 0:
        return None
    if fitting is Sink.USAGE_RECORDS:
        return f"item {item} has no billing meter, this price is of the legacy metered billing system: {set_sink(fitting)}"
    return f"the price of item {item} is backed by a billing meter: {set_sink(fitting)}"


def set_sink(sink: Sink) -> str:
    """The operator's next step where the other sink bills."""
    return f"set BILLING_SINK={sink}"


def identifier_of_key(key: str) -> str:
    """The identifier behind an idempotency key of a meter event's, as Stripe's error reports name it."""
    return key.rpartition("#")[0] or key


def cannot_be_sent(token_count: int, event_time: datetime, now: datetime, sink: Sink = Sink.BILLING_METERS) -> QuarantineReason | None:
    """Why a report must not be sent at `now`, or None if it may. Usage records grow too old with their billing period, as Stripe says."""
    # safeguard: 15 digits
    if token_count > LARGEST_VALUE:
        return QuarantineReason.TOO_MANY_DIGITS
    # safeguard: 35 days
    if sink is Sink.BILLING_METERS and event_time < now - OLDEST_EVENT + AGE_MARGIN:
        return QuarantineReason.TOO_OLD
    return None


def may_be_sent(report: SendableReport, event_time: datetime, may_have_arrived: bool, now: datetime) -> bool:
    """Whether a request for the report may leave at `now`: not too old for Stripe, and, where an earlier one may have arrived,
    young enough for Stripe to be sure to recognise the identifier. Asked again right before every write."""
    if cannot_be_sent(report.token_count, event_time, now, report.destination.sink):
        return False
    if not may_have_arrived:
        return True
    # safeguard: a usage record is set, however late
    if report.destination.sink.takes_a_resend_at_any_age:
        return True
    # safeguard: 20 hours
    return report.first_attempted_at is not None and now < report.first_attempted_at + RESEND_LIMIT


def judge_read_back(report: DoubtfulReport, counted_tokens: int, now: datetime, period: BillingPeriod | None = None) -> ReadBack:
    """What it means that Stripe's summary of the report's span counts so many tokens. Exactly what it should hold with the report, and
    with all others that are in doubt: present. Exactly what it should hold without any of them: absent, and proven so where that has
    held for ABSENCE, or where the billing period that was read, of which Stripe takes nothing more, has been over for so long. Anything
    else, another system's usage for instance, is for a person."""
    if report.token_count == 0:
        return ReadBack.UNCLEAR
    # safeguard: exactly what the span should hold
    if counted_tokens == report.other_tokens + report.token_count + report.doubtful_tokens:
        return ReadBack.PRESENT
    # safeguard: anything else is for a person
    if counted_tokens != report.other_tokens:
        return ReadBack.UNCLEAR
    # safeguard: absence for a day
    lasted = report.absent_since is not None and now >= report.absent_since + ABSENCE
    # safeguard: a period that has been over for a day
    if period is not None and now >= period.end + ABSENCE:
        lasted = True
    return ReadBack.PROVEN_ABSENT if lasted else ReadBack.ABSENT


def surplus_in(report: GivenUpReport, counted_tokens: int) -> tuple[int, int]:
    """What Stripe's summary of the report's minute holds too much: so many events under identifiers that the report gave up, and
    tokens that those cannot explain. Each of its events has the report's own total, so only a multiple of it is theirs."""
    excess = counted_tokens - report.expected_tokens
    # safeguard: others in doubt in a minute
    if excess <= 0 or report.others_in_doubt:
        return 0, 0
    # safeguard: only whole reports are surplus
    count, rest = divmod(excess, report.token_count)
    return (count, 0) if rest == 0 and count <= len(report.identifiers) else (0, excess)


def cancellation_key(surplus_identifier: str, key_number: int) -> str:
    """The idempotency key for cancelling an event: another one than the event's own was."""
    # safeguard: a cancellation has a key of its own
    return f"cancel-{idempotency_key(surplus_identifier, key_number)}"


def classify_cancellation(answer: Answer | NoAnswer) -> Cancellation:
    """What an answer to a cancellation means. Stripe has no code for "already cancelled", which is what a lost answer leads to: its
    words are matched here."""
    if isinstance(answer, NoAnswer):
        return StillSurplus(answer.message)
    status, message = answer.http_status, answer.message or f"HTTP {answer.http_status}"
    if 200 <= status < 300 or ("already" in message and "cancel" in message):
        return Cancelled()
    if answer.replayed:
        return StillSurplus(message, status, new_key=True)
    # safeguard: only a refusal ends a cancellation
    if status in (400, 402, 404, 422) and answer.error_type != "idempotency_error":
        return NotCancellable(message)
    return StillSurplus(message, status)


def classify(answer: Answer | NoAnswer, *, may_have_arrived: bool) -> Outcome:
    """What an answer to a report means; `may_have_arrived`: an earlier request for the same payload has no known answer.

    Unknown is never failed: whatever does not prove that Stripe counted the report, refused it or did nothing is unresolved.
    """
    if isinstance(answer, NoAnswer):
        # safeguard: no answer is no failure
        return Undelivered(answer.message) if answer.never_left else Unresolved(answer.message)
    status, message = answer.http_status, answer.message or f"HTTP {answer.http_status}"
    if 200 <= status < 300:
        return Accepted()
    # safeguard: a stored error gets another key
    if answer.replayed:
        return Unresolved(message, status, may_have_arrived, new_key=True)
    if status in KEY_REFUSED:
        return Undelivered(message, status, try_again=False)
    if status == 429:
        return Undelivered(message, status, retry_after_s=answer.retry_after_s)
    # safeguard: a duplicate refusal needs a recorded attempt
    if status == 400 and message.startswith(DUPLICATE_IDENTIFIER):
        if may_have_arrived:
            return Accepted()
        return Unresolved(f"{message} This ledger has recorded no attempt that could have done it.", status, False, try_again=False)
    # safeguard: a reused key is no refusal
    if answer.error_type == "idempotency_error":
        return Unresolved(message, status, may_have_arrived, try_again=False)
    # safeguard: a refusal after an unknown answer
    if status in (400, 402, 404, 422):
        if may_have_arrived:
            return Unresolved(f"refused after an attempt without a known answer: {message}", status, try_again=False)
        # safeguard: the wrong sink rejects nothing
        if any(words in message for words in WRONG_SINK):
            return Undelivered(message, status, try_again=False, wrong_sink=True)
        return Rejected(message, status, answer.error_code)
    return Unresolved(message, status, retry_after_s=answer.retry_after_s)
