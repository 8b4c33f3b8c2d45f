"""Charges: what an invoice bills of one item at one price for one period, and what is known of that item beside the invoice. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import NamedTuple, Self

from token_billing.invoices import Invoice, InvoiceLine, LineKind
from token_billing.periods import BillingPeriod
from token_billing.rating import Price

#: So far the making of an invoice may lie from the end of what it closes (belief 60): Stripe makes it somewhat after a period's end, and
#: may tell of a change some seconds after it made the invoice for it.
PROMPT = timedelta(hours=1)


@dataclass(frozen=True)
class Charge:
    """The lines that bill one item at one price for one period: one quantity, in as many lines as its price has tiers and fees. A charge
    that is due and not on the invoice has no lines."""

    invoice: Invoice
    usage_item_id: str
    price_id: str
    period: BillingPeriod
    lines: tuple[InvoiceLine, ...] = ()

    @cached_property
    def quantity(self) -> int:
        """Tokens, whole."""
        return sum(line.quantity for line in self.lines)

    @cached_property
    def amount_cents(self) -> int:
        """In the currency's minor unit."""
        return sum(line.amount_cents for line in self.lines)

    @property
    def asks_for_nothing(self) -> bool:
        """Whether nobody has to pay anything of it."""
        return self.amount_cents == 0 or self.invoice.status == "void"

    @property
    def currency(self) -> str:
        """As billed."""
        return self.lines[0].currency if self.lines else self.invoice.currency

    @property
    def stripe_id(self) -> str:
        """What names it at Stripe, and no other charge of any invoice."""
        if self.lines:
            return self.lines[0].id
        return f"{self.invoice.id}/{self.usage_item_id}/{self.price_id}/{self.period.start:%Y%m%dT%H%M%S}"


def charges_of(invoice: Invoice, lines: Iterable[InvoiceLine]) -> list[Charge]:
    """The charges of an invoice's usage lines, in the order of their first lines."""
    found: dict[tuple[str, str, BillingPeriod], list[InvoiceLine]] = {}
    for line in lines:
        if line.kind is LineKind.USAGE and line.usage_item_id and line.price_id:
            found.setdefault((line.usage_item_id, line.price_id, line.period), []).append(line)
    return [Charge(invoice, *which, tuple(billed)) for which, billed in found.items()]


def about_the_same(charges: Iterable[Charge], facts: "Facts") -> list[Charge]:
    """The charges, those of an invoice that are about the same usage as one: lines of it that name another price or another time than it
    has are no less of it. What is wrong with any line is wrong with the charge."""
    found: dict[tuple[str, str, str, BillingPeriod], list[Charge]] = {}
    for charge in charges:
        usage = charge.invoice.id, charge.usage_item_id, facts.agreed_price(charge), facts.agreed_period(charge)
        found.setdefault(usage, []).append(charge)
    whole = []
    for (*_, price_id, period), parts in found.items():
        shown = next((one for one in parts if (one.price_id, one.period) != (price_id, period)), parts[0])
        whole.append(replace(shown, lines=tuple(line for one in parts for line in one.lines)))
    return whole


class KnownPart(NamedTuple):
    """When an item at a price bills a tenant's usage, as its timeline says; of an item that is not followed, the times are not known."""

    tenant_id: str
    subscription_id: str | None
    usage_item_id: str
    price_id: str | None
    meter_id: str | None
    period: BillingPeriod | None = None
    billed_from: datetime | None = None
    billed_until: datetime | None = None

    @property
    def span(self) -> BillingPeriod | None:
        """The part of the period in which it bills."""
        return BillingPeriod(self.billed_from, self.billed_until) if self.billed_from and self.billed_until else None


class Trial(NamedTuple):
    """A subscription's trial, and whether its collection is paused: what it bills then is nothing."""

    period: BillingPeriod | None
    is_paused: bool

    @classmethod
    def of(cls, start: int | None, end: int | None, pause_collection: object) -> Self:
        """By a subscription's own fields: Unix seconds, and any object where collection is paused."""
        period = BillingPeriod(datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC)) if start and end else None
        return cls(period, bool(pause_collection))

    def is_free(self, period: BillingPeriod) -> bool:
        """Whether Stripe asks for nothing in a billing period: in a trial, and while collection is paused (belief 34)."""
        return self.is_paused or (self.period is not None and self.period.holds(period.start))


@dataclass(frozen=True)
class Facts:
    """What is known beside the invoices themselves.

    `parts`: by item. `prices`: as they were first read, `edited`: those that Stripe shows otherwise today. `customers`: tenants by
    customer. `proposals`: amount in the currency's minor unit, and currency. `billed_elsewhere`: by charge, another invoice that bills the
    same; `billed_in_part`: by charge, another one that bills some of the same. `of_a_part`: charges of items that nobody follows, of a part
    of a period that is right as it is."""

    parts: Mapping[str, Sequence[KnownPart]]
    prices: Mapping[str, Price]
    edited: Mapping[str, Price] = field(default_factory=dict)
    our_prices: frozenset[str] = frozenset()
    customers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subscriptions: Mapping[str, Trial] = field(default_factory=dict)
    proposals: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    billed_elsewhere: Mapping[str, str] = field(default_factory=dict)
    billed_in_part: Mapping[str, str] = field(default_factory=dict)
    billed_beside: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    of_a_part: frozenset[str] = frozenset()
    cut_over: datetime | None = None

    def is_free(self, charge: Charge) -> bool:
        """Whether Stripe asks for nothing in the charge's period."""
        known = self.subscriptions.get(charge.invoice.subscription_id or "")
        return known is not None and known.is_free(charge.period)

    def parts_of(self, charge: Charge) -> Sequence[KnownPart]:
        """What is known of the charge's item."""
        return self.parts.get(charge.usage_item_id, ())

    def tenants_of(self, charge: Charge) -> list[str]:
        """Whose usage the item bills; tenants may share one."""
        return sorted({part.tenant_id for part in self.parts_of(charge)})

    def agreed_price(self, charge: Charge) -> str:
        """The price that the item has in the charge's period: the charge's own, unless only others are known."""
        overlapping = [part for part in self._billable(charge) if part.price_id and _overlap(part.span, charge.period)]
        is_its_own = charge.stripe_id in self.of_a_part or any(part.price_id == charge.price_id for part in overlapping)
        if is_its_own or not overlapping:
            return charge.price_id
        return max(overlapping, key=lambda part: _overlap(part.span, charge.period)).price_id or charge.price_id

    def _billable(self, charge: Charge) -> Sequence[KnownPart]:
        """What is known of the item up to when the invoice was made; all, where the charge is of the time since the last period ended."""
        parts = self.parts_of(charge)
        ended = [part for part in parts if part.span is None or part.span.end <= charge.invoice.created_at + PROMPT]
        last = max((part.span.end for part in ended if part.span), default=None)
        return parts if last is None or _is_since(last, charge) else ended

    def meter_of(self, charge: Charge) -> str | None:
        """The meter whose usage the charge's agreed price bills; None of the legacy metered billing system's."""
        agreed = self.agreed_price(charge)
        return next((part.meter_id for part in self.parts_of(charge) if part.price_id == agreed), None)

    def agreed_period(self, charge: Charge) -> BillingPeriod:
        """The span in which the item bills, at the agreed price, that the charge is about: the charge's own period where it is one of those
        that are known, or where none is; else the last that had ended when the invoice was made, which is the one that it closes."""
        agreed, made = self.agreed_price(charge), charge.invoice.created_at + PROMPT
        spans = _spans(part for part in self.parts_of(charge) if part.price_id == agreed)
        ended = [(period, span) for period, span in spans if span.end <= made]
        fits = any(
            charge.period.start in (period.start, span.start) and charge.period.end in (period.end, span.end) for period, span in ended
        )
        if fits or not ended or charge.stripe_id in self.of_a_part or _is_since(max(span.end for _, span in ended), charge):
            return charge.period
        closes = max(period.end for period, _ in ended)
        return max((span for period, span in ended if period.end == closes), key=lambda span: (_overlap(span, charge.period), span))


def _is_since(ended: datetime, charge: Charge) -> bool:
    """Whether a charge is of a time after that, and of none after its invoice was made."""
    period, made = charge.period, charge.invoice.created_at
    if period.end <= made:
        return period.start >= ended or period.end > ended + PROMPT
    return ended <= period.start < made - PROMPT  # a subscription that ended may be billed to the end that its period would have had


def _spans(parts: Iterable[KnownPart]) -> list[tuple[BillingPeriod, BillingPeriod]]:
    """Each billing period with each span inside it in which the item bills anybody: several where its price was another one in between."""
    spans: list[tuple[BillingPeriod, BillingPeriod]] = []
    for period, span in sorted((part.period, part.span) for part in parts if part.period and part.span):
        before = spans[-1] if spans else None
        if before and before[0] == period and span.start <= before[1].end:
            spans[-1] = period, BillingPeriod(before[1].start, max(before[1].end, span.end))
        else:
            spans.append((period, span))
    return spans


def _overlap(one: BillingPeriod | None, other: BillingPeriod) -> float:
    """Seconds that both hold; where one is not known, it may hold all of the other."""
    if one is None:
        return 1.0
    return max(0.0, (min(one.end, other.end) - max(one.start, other.start)).total_seconds())
