"""What is open of a bill adds up to what the whole of it is billed, however it is split."""

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing_airflow.accruals_csv import COLUMNS, as_csv
from token_billing.accruals import OPEN, Standing, UsedBefore, valued
from token_billing.periods import BillingPeriod
from token_billing.rating import Price, PricingMode, Tier, amount_cents

JANUARY = BillingPeriod(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))
BUNDLED = Price("price_b", "usd", PricingMode.GRADUATED, (Tier(5_000_000), Tier(None, Decimal("0.0005"))))
VOLUME = Price("price_v", "jpy", PricingMode.VOLUME, (Tier(1_000_000, Decimal("0.002")), Tier(None, Decimal("0.001"))))


def used(tenant: str, price: Price | None = BUNDLED, item: str | None = "si_1", **tokens: int) -> UsedBefore:
    return UsedBefore(tenant, item, "bundled", price, JANUARY, True, {Standing(name): count for name, count in tokens.items()})


def test_each_tier_is_used_up_once() -> None:
    """Of 5 million free tokens the invoice took 4, what is accrued 1; the rest of it, and all that follows, costs."""
    [one] = valued([used("a", invoiced=4_000_000, accrued=2_000_000, unbilled=1_000_000, quarantined=200_000, excluded=9_000_000)])
    assert one.cents == {"accrued": 500, "unbilled": 500, "quarantined": 100}


def test_tenants_that_share_an_item_share_its_free_tokens() -> None:
    """And what is accrued of either comes before what is unbilled of any."""
    a, b = valued([used("a", accrued=3_000_000, unbilled=1_000_000), used("b", accrued=3_000_000)])
    assert (a.cents, b.cents) == (
        {"accrued": 0, "unbilled": 500, "quarantined": 0},
        {"accrued": 500, "unbilled": 0, "quarantined": 0},
    )


def test_what_leads_nowhere_is_no_bill_of_anybody_elses() -> None:
    """Each tenant without an item has the list price's tiers for itself; where no price is known, no amount is."""
    a, b = valued([used(tenant, None, None, quarantined=4_000_000).or_at(BUNDLED) for tenant in "ab"])
    assert (a.cents, b.cents) == ({"accrued": 0, "unbilled": 0, "quarantined": 0},) * 2
    assert [one.cents for one in valued([used("a", None, accrued=1)])] == [None]


@given(
    st.sampled_from([BUNDLED, VOLUME]),
    st.lists(st.tuples(*[st.integers(0, 3_000_000)] * 4), min_size=1, max_size=4),
)
def test_the_parts_of_a_bill_add_up_to_the_whole(price: Price, parts: list[tuple[int, int, int, int]]) -> None:
    """To the cent, under any tiers, whoever shares it."""
    names = [Standing.INVOICED, *OPEN]
    found = valued([used(f"t{n}", price, **dict(zip(names, tokens, strict=True))) for n, tokens in enumerate(parts)])
    invoiced = sum(tokens[0] for tokens in parts)
    assert amount_cents(price, invoiced) + sum(sum((one.cents or {}).values()) for one in found) == amount_cents(
        price, sum(map(sum, parts))
    )


def test_a_spreadsheet_gets_whole_units_and_decimal_text() -> None:
    """What has nothing open is left out, an unknown amount is empty, a yen has no decimals, and no name is taken for a formula."""
    usages = [
        used("a", accrued=6_000_000),
        used("=b", VOLUME, "si_2", accrued=1_000),
        used("c", None, "si_3", unbilled=7),
        used("d", invoiced=1),
    ]
    header, a, b, c = [line.split(",") for line in as_csv(valued(usages)).splitlines()]
    assert header == COLUMNS
    by_name = [dict(zip(header, line, strict=True)) for line in (a, b, c)]
    assert [(one["tenant_id"], one["accrued_minor_units"], one["accrued_amount"], one["currency"]) for one in by_name] == [
        ("a", "500", "5.00", "usd"),
        ("'=b", "2", "2", "jpy"),
        ("c", "", "", ""),
    ]
    assert by_name[2]["unbilled_tokens"] == "7" and by_name[0]["period_start"] == "2026-01-01T00:00:00+00:00"
