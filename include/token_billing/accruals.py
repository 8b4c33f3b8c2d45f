"""Month-end: what had been used before an instant and was on no final invoice then, in tokens and in money. Pure.

Usage is worth what it adds to its bill: what the bill's invoice has billed comes first, then what is accrued, what is unbilled and what is
quarantined. So each tier is used up once, and the parts of a bill add up to what the whole of it is billed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby

from token_billing.periods import BillingPeriod
from token_billing.rating import Price, stacked_cents


class Standing(StrEnum):
    """What had become of usage by the instant, in the order in which a bill takes it up."""

    #: Accepted by Stripe before the invoice of its period became final.
    INVOICED = "invoiced"
    #: Accepted by Stripe, for a period that no final invoice had billed yet.
    ACCRUED = "accrued"
    #: Used, and not accepted by Stripe, or too late for its invoice.
    UNBILLED = "unbilled"
    #: Set aside, or refused by Stripe.
    QUARANTINED = "quarantined"
    #: Nobody pays for it here: of an excluded tenant, another job's to bill, or written off.
    EXCLUDED = "excluded"


#: What finance has to accrue, in the order in which a bill takes it up.
OPEN = (Standing.ACCRUED, Standing.UNBILLED, Standing.QUARANTINED)


@dataclass(frozen=True)
class UsedBefore:
    """One tenant's usage of one bill before the instant, in tokens by its standing then. `plan` is what the catalogue calls the price,
    None where it does not know it; `price` is None where it is not known what the item costs; `is_list_price`: where the usage leads to
    no item at all, the price is the catalogue's. `is_billing_period`: else the period is the calendar month in UTC."""

    tenant_id: str
    usage_item_id: str | None
    plan: str | None
    price: Price | None
    period: BillingPeriod
    is_billing_period: bool
    tokens: Mapping[Standing, int]
    is_list_price: bool = False

    def or_at(self, list_price: Price) -> "UsedBefore":
        """With the list price where no subscription item says what it costs."""
        return replace(self, price=list_price, is_list_price=True) if self.usage_item_id is None else self

    @property
    def is_open(self) -> bool:
        """Whether anything of it was on no final invoice."""
        return any(self.tokens.get(standing) for standing in OPEN)


@dataclass(frozen=True)
class Accrual:
    """Usage before the instant and what the open parts of it are worth, in the currency's minor unit; None where no price is known."""

    usage: UsedBefore
    cents: Mapping[Standing, int] | None


def valued(used: Iterable[UsedBefore]) -> Iterator[Accrual]:
    """What the open parts of each add to their bills. Tenants that share an item share its bill."""

    def bill(usage: UsedBefore) -> tuple[str, str, BillingPeriod]:
        return usage.usage_item_id or f"tenant {usage.tenant_id}", usage.price.id if usage.price else "", usage.period

    for _, on_one_bill in groupby(sorted(used, key=lambda usage: (*bill(usage), usage.tenant_id)), key=bill):
        usages = list(on_one_bill)
        price = usages[0].price
        if price is None:
            yield from (Accrual(usage, None) for usage in usages)
            continue
        parts = [(standing, usage.tokens.get(standing, 0)) for standing in OPEN for usage in usages]
        invoiced = sum(usage.tokens.get(Standing.INVOICED, 0) for usage in usages)
        cents = list(stacked_cents(price, invoiced, (tokens for _, tokens in parts)))
        for place, usage in enumerate(usages):
            yield Accrual(usage, dict(zip(OPEN, cents[place :: len(usages)], strict=True)))
