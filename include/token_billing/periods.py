"""Billing periods, and whether usage in one can still be billed: not once the period's invoice is final. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

#: An invoice with one of these states takes no more usage; a draft does (docs.stripe.com/invoicing/overview, invoice statuses).
FINAL_STATUSES = frozenset({"open", "paid", "uncollectible", "void"})

#: Invoices that do not close the usage of a period: a subscription's first, which pays in advance only, and one that a billing
#: threshold made, after which the period goes on (a belief about Stripe).
NOT_CLOSING = frozenset({"subscription_create", "subscription_threshold", "upcoming"})

#: So long a draft is taken for one without being looked at again: windows that are pushed one after another need not ask each time.
DRAFT_IS_FRESH = timedelta(minutes=5)

#: The longest grace that an account's rule gives its drafts, and the furthest that one may be held (docs.stripe.com/billing/invoices).
LONGEST_GRACE = timedelta(hours=72)

#: Nothing is sent into a draft this shortly before it is finalised: a request that was noted by then is answered a lease (one minute)
#: later at the latest, and Stripe counts what it took a moment after that.
LAST_MINUTES = timedelta(minutes=2)

_EVER = datetime.min.replace(tzinfo=UTC)


class BillingPeriod(NamedTuple):
    """A half-open billing period `[start, end)` of a subscription item."""

    start: datetime
    end: datetime

    def holds(self, event_time: datetime) -> bool:
        # safeguard: a period is half-open
        return self.start <= event_time < self.end


@dataclass(frozen=True)
class InvoicedPeriod:
    """An item's period that an invoice bills. `finalizes_at`: when a draft will be finalised by itself, if it will."""

    usage_item_id: str
    period: BillingPeriod
    invoice_id: str
    status: str
    finalizes_at: datetime | None
    seen_at: datetime

    @property
    def is_final(self) -> bool:
        # safeguard: final invoices
        return self.status in FINAL_STATUSES

    def is_known(self, now: datetime) -> bool:
        """Whether the invoice need not be looked at again: final for ever, a draft only for a moment."""
        if self.is_final:
            return True
        # safeguard: drafts are looked at again
        return now < self.seen_at + DRAFT_IS_FRESH and (self.finalizes_at is None or now < self.finalizes_at)


@dataclass(frozen=True)
class FinalPeriods:
    """Which periods' invoices are final, and from when, of the items that were looked at."""

    final_from: Mapping[tuple[str, BillingPeriod], datetime] = field(default_factory=dict)

    @classmethod
    def among(cls, invoiced: Iterable[InvoicedPeriod]) -> "FinalPeriods":
        """A draft counts as final from shortly before the instant at which Stripe finalises it by itself."""
        final_from: dict[tuple[str, BillingPeriod], datetime] = {}
        for one in invoiced:
            # safeguard: nothing goes into a draft's last minutes
            since = _EVER if one.is_final else one.finalizes_at and one.finalizes_at - LAST_MINUTES
            if since is not None:
                which = one.usage_item_id, one.period
                final_from[which] = min(since, final_from.get(which, since))
        return cls(final_from)

    def hold(self, usage_item_id: str, event_time: datetime, now: datetime) -> bool:
        """Whether usage of the item at that time can be on no invoice any more."""
        return any(
            item == usage_item_id and period.holds(event_time) and now >= final_from
            for (item, period), final_from in self.final_from.items()
        )
