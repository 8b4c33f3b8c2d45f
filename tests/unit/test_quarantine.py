"""Quarantined usage in money: on top of what was billed, each reason on top of the ones before."""

from datetime import UTC, datetime
from decimal import Decimal

from token_billing.periods import BillingPeriod
from token_billing.quarantine import QuarantinedUsage, totals, valued
from token_billing.rating import Price, PricingMode, Tier

BUNDLED = Price("bundled", "usd", PricingMode.GRADUATED, (Tier(5_000_000), Tier(None, Decimal("0.0005"))))
OCTOBER = BillingPeriod(datetime(2025, 10, 1, tzinfo=UTC), datetime(2025, 11, 1, tzinfo=UTC))
NOVEMBER = BillingPeriod(datetime(2025, 11, 1, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=UTC))


def usage(reason: str, tokens: int, billed: int = 0, period: BillingPeriod = OCTOBER, price: Price | None = BUNDLED) -> QuarantinedUsage:
    return QuarantinedUsage(reason, "a", "si_a", period, True, 1, tokens, billed, price)


def test_the_values_of_a_period_add_up_to_what_all_of_it_would_be_billed() -> None:
    """Four million are billed; of the four that are kept aside for two reasons, one is still free, and three cost $15."""
    found = list(valued([usage("refused_at_gate", 2_000_000, 4_000_000), usage("disowned", 2_000_000, 4_000_000)]))
    assert {one.usage.reason: one.amount_cents for one in found} == {"disowned": 500, "refused_at_gate": 1000}


def test_every_period_has_free_tokens_of_its_own() -> None:
    """The same tokens a month later are worth nothing."""
    found = valued([usage("disowned", 1_000_000, 5_000_000), usage("disowned", 1_000_000, 0, NOVEMBER)])
    assert [one.amount_cents for one in found] == [500, 0]


def test_without_a_price_the_worth_is_unknown_and_not_nothing() -> None:
    """Its tokens are counted as such."""
    found = list(valued([usage("unknown_tenant", 7, price=None), usage("disowned", 1_000_000, 5_000_000, NOVEMBER)]))
    assert totals(found) == (1_000_007, {"usd": 500}, 7)
