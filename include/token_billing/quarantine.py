"""Quarantined usage in money: what it would have added to its period's bill. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from token_billing.periods import BillingPeriod
from token_billing.rating import Price, stacked_cents


@dataclass(frozen=True)
class QuarantinedUsage:
    """One tenant's usage of one period that was quarantined for one reason: hours and tokens.

    `period`: the item's billing period where `is_billing_period`, else, where that is not known, the calendar month in UTC.
    `billed_tokens`: what the item's period has billed beside it. `price` is None where it is not known what the item costs;
    `is_list_price`: where the usage leads to no item at all, the price is the catalogue's. `standing`: whether somebody has
    acknowledged it, or which proposal settled it."""

    reason: str
    tenant_id: str
    usage_item_id: str | None
    period: BillingPeriod
    is_billing_period: bool
    hour_count: int
    token_count: int
    billed_tokens: int
    price: Price | None
    is_list_price: bool = False
    standing: str = ""

    def or_at(self, list_price: Price) -> "QuarantinedUsage":
        """With the list price where no subscription item says what it costs."""
        return replace(self, price=list_price, is_list_price=True) if self.usage_item_id is None else self


@dataclass(frozen=True)
class ValuedUsage:
    """Quarantined usage and what it is worth, in the currency's minor unit; None where no price is known."""

    usage: QuarantinedUsage
    amount_cents: int | None


def valued(quarantined: Iterable[QuarantinedUsage]) -> Iterator[ValuedUsage]:
    """What each adds on top of what its period has billed and of what came before it here, so that the values of a period add up to
    what all of it would be billed: under tiers, tokens are worth more or less by what lies below them."""

    def bill(usage: QuarantinedUsage) -> tuple[str, str, BillingPeriod, str]:
        return usage.tenant_id, usage.usage_item_id or "", usage.period, usage.price.id if usage.price else ""

    for _, on_one_bill in groupby(sorted(quarantined, key=lambda usage: (*bill(usage), usage.reason)), key=bill):
        usages = list(on_one_bill)
        price, tokens = usages[0].price, [usage.token_count for usage in usages]
        cents = [None] * len(usages) if price is None else stacked_cents(price, usages[0].billed_tokens, tokens)
        yield from map(ValuedUsage, usages, cents)


def totals(usages: Iterable[ValuedUsage]) -> tuple[int, dict[str, int], int]:
    """All tokens, their worth by currency in its minor unit, and the tokens of no known worth."""
    tokens, unknown = 0, 0
    cents: dict[str, int] = {}
    for one in usages:
        tokens += one.usage.token_count
        if one.amount_cents is None or one.usage.price is None:
            unknown += one.usage.token_count
        else:
            cents[one.usage.price.currency] = cents.get(one.usage.price.currency, 0) + one.amount_cents
    return tokens, cents, unknown
