"""When a draft invoice may be finalised: held while usage of its periods is missing, let go when nothing is, or when it has waited for as
long as it may. Pure; docs/decisions/0009-closing.md says why."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from token_billing.model import QuarantineReason
from token_billing.periods import FINAL_STATUSES, LONGEST_GRACE, InvoicedPeriod
from token_billing.reconciliation import Cause, Difference

#: A held draft would be finalised by Stripe so long before its 72 hours are over: clocks differ.
HOLD_MARGIN = timedelta(minutes=30)

#: A draft that is let go is finalised so long after that: every push that has read another time is over or reads it anew, and two runs
#: look once more whether anything came to be missing.
LET_GO_AFTER = timedelta(minutes=30)

#: At the limit somebody is told, and has so long to act before the draft is finalised as it is; that is also the time in which usage is
#: reported and confirmed after an outage.
TIME_TO_ACT = timedelta(hours=3)

#: Whoever has to know of a draft that is finalised incomplete is told so long before: a few runs of ten minutes may fail.
TOLD_AHEAD = timedelta(hours=1)

#: Stripe keeps the drafts of an account without a rule for so long (docs.stripe.com/billing/invoices/subscription).
DEFAULT_GRACE = timedelta(hours=1)

#: Stripe's times are whole seconds, and a draft may be a moment old when its time is set.
GRACE_TOLERANCE = timedelta(minutes=5)

#: The last hour of a period, where nothing was used in it, is frozen by its run; where no run came, report_late_usage has come by then.
LAST_WINDOW_WAITS = timedelta(hours=2)

#: Quarantined usage with these reasons was kept aside by a person's recorded decision, so that no invoice waits for it.
DECIDED_REASONS = (QuarantineReason.REFUSED_AT_GATE, QuarantineReason.EXCLUDED_TENANT, QuarantineReason.BEFORE_ADOPTION)


#: What is compared for the warning about the account's grace.
GRACE_SCOPE = "short_grace"


class Why(StrEnum):
    """Why usage is not known to be on the invoice."""

    HOUR_OPEN = "hour_open"
    NOT_FROZEN = "not_frozen"
    HELD = "held"
    NOT_ACCEPTED = "not_accepted"
    NOT_CONFIRMED = "not_confirmed"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"
    AFTER_FINALISATION = "after_finalisation"
    INVOICE_GONE = "invoice_gone"

    @property
    def words(self) -> str:
        return _WORDS[self]


_WORDS = {
    Why.HOUR_OPEN: "the period's last hour is not frozen yet",
    Why.NOT_FROZEN: "not frozen yet",
    Why.HELD: "held until somebody decides",
    Why.NOT_ACCEPTED: "not accepted by Stripe yet",
    Why.NOT_CONFIRMED: "not confirmed by Stripe's meters yet",
    Why.REJECTED: "rejected by Stripe",
    Why.QUARANTINED: "quarantined, and nobody has acknowledged it",
    Why.AFTER_FINALISATION: "accepted after the invoice was final",
    Why.INVOICE_GONE: "somebody deleted the draft at Stripe, and with it whatever it billed",
}


class Missing(NamedTuple):
    """Usage of a tenant that is missing for one reason: whole tokens of so many hours, from the first of them on. Without a tenant, what
    is wrong with the invoice as a whole."""

    why: Why
    tenant_id: str
    first_window: datetime
    hour_count: int
    token_count: int

    def __str__(self) -> str:
        if not self.tenant_id:
            return self.why.words
        hours = "1 hour" if self.hour_count == 1 else f"{self.hour_count} hours"
        since = f"{self.first_window:%Y-%m-%dT%H:%MZ}"
        return f"tenant {self.tenant_id!r}: {self.token_count:,} tokens of {hours} from {since} on, {self.why.words}"


@dataclass(frozen=True)
class ClosingInvoice:
    """An invoice that closes periods of ours, as Stripe shows it. `finalizes_at`: when a draft will be finalised by itself, if it will."""

    invoice_id: str
    subscription_id: str
    status: str
    appeared_at: datetime
    auto_advance: bool
    finalizes_at: datetime | None
    final_at: datetime | None
    periods: tuple[InvoicedPeriod, ...]

    @property
    def is_final(self) -> bool:
        return self.status in FINAL_STATUSES


@dataclass(frozen=True)
class Closing:
    """What is known here of an invoice that closes periods of ours; billing.closing says what each field means."""

    invoice_id: str
    subscription_id: str
    appeared_at: datetime
    planned_for: datetime | None
    moved_to: tuple[datetime, ...]
    released_as: str | None
    final_at: datetime | None

    @property
    def scope(self) -> str:
        """What is told of its closing is filed under, apart from what a comparison of its lines finds."""
        # safeguard: an alert stands apart from what lines say
        return f"closing {self.invoice_id}"


@dataclass(frozen=True)
class Looked:
    """An invoice as it is known here, as Stripe shows it now (None: no longer), since when it is final, and what is missing on it."""

    closing: Closing
    invoice: ClosingInvoice | None
    final_at: datetime | None
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class Step:
    """What is done about a draft: it is finalised at another time, which holds it, or lets it go `released_as` it is. `is_told`: somebody
    has to know, before anything is done, that it is, or is about to be, finalised incomplete."""

    move_to: datetime | None = None
    released_as: str | None = None
    is_told: bool = False


def finalises_at(draft: ClosingInvoice) -> datetime | None:
    """When Stripe will finalise the draft by itself; None if it will not. A stand-in that does not say does it after an hour."""
    if not draft.auto_advance:
        return None
    return draft.finalizes_at or draft.appeared_at + DEFAULT_GRACE


def is_moved_by_hand(closing: Closing, draft: ClosingInvoice) -> bool:
    """Whether somebody else decided when the draft is finalised: it is left alone then."""
    # safeguard: what a person decided about a draft
    return not draft.auto_advance or draft.finalizes_at not in (closing.planned_for, *closing.moved_to)


def next_step(one: Looked, longest_hold: timedelta, now: datetime) -> Step:
    """What is to be done about an invoice now. A complete draft is finalised soon. An incomplete one is held for as long as Stripe lets it
    be, so that no outage of ours finalises it, and let go by ourselves at the limit. Of a final one nothing but the telling is left."""
    closing, draft = one.closing, one.invoice
    if draft is None or one.final_at is not None:
        # safeguard: what became final incomplete is told
        return Step(is_told=bool(one.missing))
    at, furthest = finalises_at(draft), draft.appeared_at + LONGEST_GRACE - HOLD_MARGIN
    is_mine = at is not None and not is_moved_by_hand(closing, draft)
    if not one.missing:
        soon = now + LET_GO_AFTER
        return Step(_second(soon), "complete") if is_mine and at is not None and at > soon else Step()
    # safeguard: the hard limit of a hold
    if now >= draft.appeared_at + longest_hold:
        let_go = min(now + TIME_TO_ACT, max(furthest, now + LET_GO_AFTER))
        # What was let go already keeps its time; what a worker noted and did not live to do is done now.
        is_let_go = closing.released_as == "incomplete" and closing.moved_to[-1:] == (at,)
        if is_mine and at is not None and at > let_go and not is_let_go:
            return Step(_second(let_go), "incomplete", is_told=True)
        return Step(is_told=True)
    # safeguard: an incomplete draft is held
    if is_mine and at is not None and at < furthest and now + LET_GO_AFTER < furthest:
        return Step(_second(furthest))
    return Step(is_told=is_final_soon(draft, now))


def is_final_soon(draft: ClosingInvoice, now: datetime) -> bool:
    """Whether the draft is finalised before many more runs can look at it."""
    at = finalises_at(draft)
    # safeguard: told ahead of finalisation
    return at is not None and at <= now + TOLD_AHEAD


def incomplete(one: Looked) -> Difference:
    """What somebody is told of an invoice that lacks usage, in whole tokens."""
    tokens = sum(missing.token_count for missing in one.missing)
    at = one.invoice and finalises_at(one.invoice)
    if one.final_at is not None:
        state = f"final since {one.final_at:%Y-%m-%dT%H:%MZ}"
    elif one.invoice is None:
        state = "no longer at Stripe"
    else:
        state = f"a draft that was to be finalised at {at:%Y-%m-%dT%H:%MZ}" if at else "a draft that is not finalised by itself"
    missing = "; ".join(map(str, one.missing))
    return Difference(
        Cause.PERIOD_INCOMPLETE,
        one.closing.scope,
        f"Invoice {one.closing.invoice_id} of {one.closing.subscription_id} is {state} and lacks {tokens:,} tokens: {missing}.",
        stripe_id=one.closing.invoice_id,
        expected_tokens=tokens or None,
        found_tokens=0 if tokens else None,
    )


def short_grace(newest: Closing | None, account_id: str) -> Difference | None:
    """The warning that stands until the newest draft shows that the account gives its drafts the 72 hours that it can."""
    shown = "no draft was seen yet"
    if newest is not None and newest.planned_for is not None:
        grace = newest.planned_for - newest.appeared_at
        if grace >= LONGEST_GRACE - GRACE_TOLERANCE:
            return None
        shown = f"draft {newest.invoice_id} had {grace}"
    details = (
        f"the account is not known to keep its drafts for 72 hours ({shown}): one that appears while nothing runs here is finalised "
        'without what could not be reported; the runbook says how to set it, under "The account\'s grace"'
    )
    return Difference(Cause.SHORT_GRACE, GRACE_SCOPE, details, stripe_id=account_id)


def _second(time: datetime) -> datetime:
    """Stripe knows whole seconds only."""
    return time.replace(microsecond=0)
