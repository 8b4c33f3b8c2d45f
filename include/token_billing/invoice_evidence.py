"""Why a charge's quantity is not what our reports come to: pieces that must add up to exactly the difference. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate, chain, combinations, product
from typing import NamedTuple

from token_billing.charges import Charge
from token_billing.periods import BillingPeriod
from token_billing.reconciliation import Cause

#: A report that was accepted so shortly before the invoice was final may have missed it: Stripe counts asynchronously.
NEAR = timedelta(hours=1)

#: Of so many reports that may be late, and hours that differ, each choice is tried.
MOST_CHOSEN = 12


class SentReport(NamedTuple):
    """A report that was attempted. `counts`: Stripe has accepted it; else whether it arrived is not known."""

    id: int
    tenant_id: str
    usage_item_id: str
    window_start: datetime
    event_time: datetime
    token_count: int
    counts: bool
    first_attempted_at: datetime
    accepted_at: datetime | None


@dataclass(frozen=True)
class Evidence:
    """What a customer's meter was sent in the whole hours that touch a charge's period, and what Stripe counts in each of them (None where
    it does not tell). `cancelled`: tokens that Stripe counted beside those until they were cancelled."""

    reports: Sequence[SentReport]
    hours: Mapping[datetime, int] | None
    cancelled: int = 0

    def tokens_in(self, usage_item_id: str, period: BillingPeriod) -> int:
        """What the item was sent in a period, and Stripe accepted."""
        return sum(
            one.token_count for one in self.reports if one.counts and one.usage_item_id == usage_item_id and period.holds(one.event_time)
        )

    def told(self) -> str:
        """In words."""
        if self.hours is None:
            return "Stripe does not tell what its meter counts"
        ours = sum(one.token_count for one in self.reports if one.counts)
        return f"in the hours of the period, Stripe's meter counts {sum(self.hours.values()):,} and was sent {ours:,}"


class Piece(NamedTuple):
    """One reason for a difference. `tokens`: how many more the invoice has by it, less than nothing where it lacks some."""

    cause: Cause
    tokens: int
    details: str
    tenant_id: str | None = None
    window_start: datetime | None = None
    #: What was expected and found there, where that says more than the difference.
    expected_and_found: tuple[int, int] | None = None

    @property
    def figures(self) -> tuple[int, int]:
        """Tokens as expected and as found."""
        return self.expected_and_found or ((-self.tokens, 0) if self.tokens < 0 else (0, self.tokens))


def explaining_pieces(charge: Charge, period: BillingPeriod, our_tokens: int, evidence: Evidence) -> list[Piece] | None:
    """The pieces that come to exactly what the charge has more, or less, than our reports; None where none do. What is late is looked for
    first: Stripe's meter counts it, if not at once."""
    wanted = charge.quantity - our_tokens
    own = [one for one in evidence.reports if one.usage_item_id == charge.usage_item_id and period.holds(one.event_time)]
    if not charge.lines:
        return [_no_line(charge, our_tokens)]
    hours = [*_surplus(evidence, own), *_missing(evidence)]
    choices = list(_late_choices(charge, [one for one in own if one.counts], MOST_CHOSEN - len(hours)))
    # An hour that a boundary of the period runs through may differ by what is on its other side. Where that would be too many
    # combinations, it is all hours of a kind or none.
    few = len(choices) << len(hours) <= 1 << MOST_CHOSEN
    apart = [[one] for one in hours] if few else [[one for one in hours if one.tokens * sign > 0] for sign in (1, -1)]
    groups = [[[*_others(charge, period, evidence)], []], *([some, []] for some in apart), [[], [*_cancelled(evidence)]]]
    for late in choices:
        for chosen in product(*groups):
            pieces = [*_late(charge, late), *chain.from_iterable(chosen)]
            # safeguard: a difference is explained exactly
            if pieces and sum(piece.tokens for piece in pieces) == wanted:
                return pieces
    return None


def _no_line(charge: Charge, our_tokens: int) -> Piece:
    ended = f"{charge.period.end:%Y-%m-%dT%H:%M:%SZ}"
    details = f"no line of item {charge.usage_item_id} bills the {our_tokens:,} tokens of its period that ended {ended}"
    return Piece(Cause.MISSING_HOUR, -our_tokens, details)


def _late_choices(charge: Charge, reports: Sequence[SentReport], most_chosen: int) -> Iterator[tuple[SentReport, ...]]:
    """Which reports may have come after the invoice was final: surely those that were first attempted then; of those that were accepted
    since, or shortly before, the last ones, and any. At last none."""
    final = charge.invoice.finalized_at
    if final is None:
        yield ()
        return
    sure = tuple(one for one in reports if one.first_attempted_at >= final)
    near = sorted(
        (one for one in reports if one not in sure and one.accepted_at and one.accepted_at > final - NEAR), key=_accepted, reverse=True
    )
    yield from (sure + tuple(last) for last in accumulate(([one] for one in near), initial=[]))
    if len(near) <= most_chosen:
        yield from (sure + some for size in range(1, len(near)) for some in combinations(near, size))
    if sure:
        yield ()


def _accepted(report: SentReport) -> datetime:
    return report.accepted_at or report.first_attempted_at


def _late(charge: Charge, reports: Iterable[SentReport]) -> Iterator[Piece]:
    final = charge.invoice.finalized_at
    by_tenant: dict[str, list[SentReport]] = {}
    for one in reports:
        by_tenant.setdefault(one.tenant_id, []).append(one)
    for tenant_id, late in sorted(by_tenant.items()):
        tokens = sum(one.token_count for one in late)
        details = f"{tokens:,} tokens reached Stripe when the invoice was final ({final:%Y-%m-%dT%H:%M:%SZ}): {_reports(late)}"
        yield Piece(Cause.LATE_AFTER_FINALISATION, -tokens, details, tenant_id)


def _others(charge: Charge, period: BillingPeriod, evidence: Evidence) -> Iterator[Piece]:
    """Each of two items of one customer on one meter bills all that the meter counts."""
    others = [one for one in evidence.reports if one.counts and one.usage_item_id != charge.usage_item_id and period.holds(one.event_time)]
    if tokens := sum(one.token_count for one in others):
        items = ", ".join(sorted({one.usage_item_id for one in others}))
        details = f"the customer's items {charge.usage_item_id} and {items} are on one meter, and each bills the usage of both"
        yield Piece(Cause.DUPLICATE, tokens, details)


def _surplus(evidence: Evidence, own: Sequence[SentReport]) -> Iterator[Piece]:
    """Hours in which Stripe's meter counts more than it was sent, as far as is known."""
    doubtful = Counter[datetime]()
    for one in own:
        doubtful[one.window_start] += 0 if one.counts else one.token_count
    for hour, sent, counted in _differing_hours(evidence):
        if counted > sent:
            in_doubt = doubtful[hour] == counted - sent
            cause = Cause.UNEXPLAINED if in_doubt else Cause.DUPLICATE
            why = "reports whose answer was lost" if in_doubt else "a report that is counted twice, or usage of somebody else's"
            details = f"at {hour:%Y-%m-%dT%H:%MZ} Stripe's meter counts {counted:,} tokens and was sent {sent:,}: {why}"
            yield Piece(cause, counted - sent, details, window_start=hour, expected_and_found=(sent, counted))


def _missing(evidence: Evidence) -> Iterator[Piece]:
    """Hours in which Stripe's meter counts less than it has accepted."""
    for hour, sent, counted in _differing_hours(evidence):
        if counted < sent:
            there = [one for one in evidence.reports if one.counts and one.window_start == hour]
            tenants = {one.tenant_id for one in there}
            details = f"at {hour:%Y-%m-%dT%H:%MZ} Stripe accepted {sent:,} tokens and its meter counts {counted:,}: {_reports(there)}"
            tenant = tenants.pop() if len(tenants) == 1 else None
            yield Piece(Cause.MISSING_HOUR, counted - sent, details, tenant, hour, (sent, counted))


def _cancelled(evidence: Evidence) -> Iterator[Piece]:
    if evidence.cancelled:
        details = f"{evidence.cancelled:,} tokens that Stripe counted twice were cancelled when the invoice was final"
        yield Piece(Cause.DUPLICATE, evidence.cancelled, details)


def _differing_hours(evidence: Evidence) -> Iterator[tuple[datetime, int, int]]:
    """Hour, tokens sent and accepted, tokens counted."""
    if evidence.hours is None:
        return
    sent = Counter[datetime]()
    for one in evidence.reports:
        sent[one.window_start] += one.token_count if one.counts else 0
    for hour in sorted(sent.keys() | evidence.hours.keys()):
        if sent[hour] != evidence.hours.get(hour, 0):
            yield hour, sent[hour], evidence.hours.get(hour, 0)


def _reports(reports: Sequence[SentReport]) -> str:
    named = ", ".join(str(one.id) for one in reports[:10])
    return f"reports {named}" + (f" and {len(reports) - 10} more" if len(reports) > 10 else "")
