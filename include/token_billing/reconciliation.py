"""Where our books and Stripe's differ: the causes that a difference may have, and what one says. Pure.

A comparison looks at a whole *scope* (a customer's meter, an invoice) and says all that differs there; what it does not find again
has gone away."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum


class Cause(StrEnum):
    """Why something does not fit together; the runbook says what to do about each."""

    # Found in our own rows and in Stripe's news.
    ROWS_CHANGED = "rows_changed"
    LINK_CONFLICT = "link_conflict"
    OVERLAPPING_SUBSCRIPTIONS = "overlapping_subscriptions"
    UNKNOWN_TENANT = "unknown_tenant"
    UNKNOWN_SUBSCRIPTION = "unknown_subscription"
    NO_METERED_ITEM = "no_metered_item"
    EVENT_NOT_APPLIED = "event_not_applied"
    CANCELLED_WITHOUT_INVOICE = "cancelled_without_invoice"
    METER_ERROR = "meter_error"
    # Between our accepted reports and Stripe's meters, by customer and hour.
    MISSING_AT_STRIPE = "missing_at_stripe"
    SURPLUS_AT_STRIPE = "surplus_at_stripe"
    REJECTED_ASYNCHRONOUSLY = "rejected_asynchronously"
    FOREIGN_IDENTIFIER = "foreign_identifier"
    UNKNOWN_CUSTOMER = "unknown_customer"
    # Between our rows and an invoice's lines.
    LATE_AFTER_FINALISATION = "late_after_finalisation"
    MISSING_HOUR = "missing_hour"
    DUPLICATE = "duplicate"
    WRONG_PRICE = "wrong_price"
    WRONG_TIER = "wrong_tier"
    WRONG_PERIOD = "wrong_period"
    UNLINKED_TENANT = "unlinked_tenant"
    MANUAL_LINE = "manual_line"
    CURRENCY = "currency"
    VOIDED_INVOICE = "voided_invoice"
    UNEXPLAINED = "unexplained"
    # Of a draft that is to be closed.
    SHORT_GRACE = "short_grace"
    PERIOD_INCOMPLETE = "period_incomplete"


#: What each comparison finds, and what fails its run where it is found.
OF_METERS = (
    Cause.MISSING_AT_STRIPE,
    Cause.SURPLUS_AT_STRIPE,
    Cause.REJECTED_ASYNCHRONOUSLY,
    Cause.FOREIGN_IDENTIFIER,
    Cause.UNKNOWN_CUSTOMER,
)
OF_INVOICES = (
    Cause.ROWS_CHANGED,
    Cause.LATE_AFTER_FINALISATION,
    Cause.MISSING_HOUR,
    Cause.DUPLICATE,
    Cause.WRONG_PRICE,
    Cause.WRONG_TIER,
    Cause.WRONG_PERIOD,
    Cause.UNLINKED_TENANT,
    Cause.MANUAL_LINE,
    Cause.CURRENCY,
    Cause.VOIDED_INVOICE,
    Cause.UNEXPLAINED,
)
OF_CLOSING = (Cause.PERIOD_INCOMPLETE,)


@dataclass(frozen=True)
class Difference:
    """One thing that differs. `scope`: what was compared as a whole; `stripe_id`: the customer, meter, invoice or line at Stripe;
    tokens are whole, amounts in the currency's minor unit."""

    cause: Cause
    scope: str
    details: str
    tenant_id: str | None = None
    stripe_id: str | None = None
    report_id: int | None = None
    window_start: datetime | None = None
    expected_tokens: int | None = None
    found_tokens: int | None = None
    expected_cents: int | None = None
    found_cents: int | None = None
    currency: str | None = None

    def with_figures_of(self, other: "Difference") -> "Difference":
        """The same, with what another one says of it."""
        return replace(
            self,
            details=f"{self.details}; {other.details}",
            expected_tokens=_sum(self.expected_tokens, other.expected_tokens),
            found_tokens=_sum(self.found_tokens, other.found_tokens),
            expected_cents=_sum(self.expected_cents, other.expected_cents),
            found_cents=_sum(self.found_cents, other.found_cents),
            currency=self.currency or other.currency,
        )


def merged(found: Iterable[Difference]) -> list[Difference]:
    """One for each cause and thing: where a comparison says several things of one, their figures together. A report has its figures."""
    together: dict[tuple[object, ...], Difference] = {}
    for one in found:
        about = one.cause, one.scope, one.tenant_id, one.stripe_id, one.window_start, one.report_id
        known = together.get(about)
        # safeguard: what is told of one thing is told together
        together[about] = known.with_figures_of(one) if known and one.report_id is None else known or one
    return list(together.values())


def _sum(one: int | None, other: int | None) -> int | None:
    return one if other is None else other + (one or 0)


@dataclass(frozen=True)
class Statement:
    """What a comparison found, as a person reads it."""

    made_at: datetime
    title: str
    discrepancy_count: int
    csv: str
    html: str


@dataclass(frozen=True)
class Tolerance:
    """How far our books and Stripe's may lie apart before a run fails: tokens, and the currency's minor unit."""

    tokens: int = 0
    cents: int = 0

    def exceeded_by(
        self, expected_tokens: int | None, found_tokens: int | None, expected_cents: int | None, found_cents: int | None
    ) -> bool:
        """Whether a difference fails the run; one that cannot be put in figures does."""
        tokens = None if expected_tokens is None or found_tokens is None else abs(found_tokens - expected_tokens)
        cents = None if expected_cents is None or found_cents is None else abs(found_cents - expected_cents)
        if not tokens and not cents:
            return True  # what differs is no amount: a period, a currency
        return (tokens or 0) > self.tokens or (cents or 0) > self.cents


#: To the token and to the cent.
EXACT = Tolerance()
