"""What a quantity comes to under a price: exact, line by line, whatever the tiers."""

import random
from decimal import Decimal
from fractions import Fraction

import pytest

from token_billing.rating import Package, Price, PricingMode, Tier, added_cents, amount_cents, decimals, money, rate

#: The product's plans.
BUNDLED = Price("bundled", "usd", PricingMode.GRADUATED, (Tier(5_000_000), Tier(None, Decimal("0.0005"))))
PURE = Price("pure", "usd", PricingMode.PER_UNIT, (Tier(None, Decimal("0.002")),))


@pytest.mark.parametrize(
    "price, tokens, cents",
    [
        (BUNDLED, 0, 0),
        (BUNDLED, 5_000_000, 0),
        (BUNDLED, 5_000_001, 0),
        (BUNDLED, 5_001_000, 1),
        (BUNDLED, 25_000_000, 10_000),
        (PURE, 249, 0),
        (PURE, 250, 1),
        (PURE, 1_000_000, 2_000),
        (PURE, 10**15 - 1, 2 * 10**12),
    ],
)
def test_the_plans_are_rated_to_the_cent(price: Price, tokens: int, cents: int) -> None:
    """Bundled: five million tokens free, then $0.000005 each. Pure: $0.00002 each."""
    assert amount_cents(price, tokens) == cents


def test_a_line_on_a_half_cent_says_so() -> None:
    """Stripe's example rounds 1.5 to 2; no document says which way 2.5 goes."""
    [line] = rate(Price("p", "usd", PricingMode.PER_UNIT, (Tier(None, Decimal("0.05")),)), 30)
    assert (line.exact_cents, line.amount_cents, line.is_tie) == (Decimal("1.5"), 2, True)
    assert not rate(PURE, 1_000)[0].is_tie


def test_rounding_is_per_line() -> None:
    """Two tiers of 0.4 cents each come to nothing, together they would have come to a cent."""
    price = Price("p", "usd", PricingMode.GRADUATED, (Tier(4, Decimal("0.1")), Tier(None, Decimal("0.1"))))
    assert [line.amount_cents for line in rate(price, 8)] == [0, 0]


def test_a_tiers_flat_fee_is_a_line_of_no_quantity() -> None:
    """Charged once the tier is reached; the first one always is."""
    price = Price("p", "usd", PricingMode.GRADUATED, (Tier(10, Decimal(1), Decimal(100)), Tier(None, Decimal(2), Decimal(50))))
    assert [(line.quantity, line.amount_cents) for line in rate(price, 10)] == [(10, 10), (0, 100)]
    assert [(line.quantity, line.amount_cents) for line in rate(price, 11)] == [(10, 10), (0, 100), (1, 2), (0, 50)]
    assert amount_cents(price, 0) == 100


def test_packages_are_rounded_as_the_price_says() -> None:
    """Up: a begun package is a whole one; down: it is none."""
    for rounds_up, cents in ((True, 14), (False, 7)):
        price = Price("p", "usd", PricingMode.PER_UNIT, (Tier(None, Decimal(7)),), Package(1000, rounds_up))
        assert [amount_cents(price, quantity) for quantity in (0, 1000, 1001)] == [0, 7, cents]


def test_what_is_added_depends_on_what_was_billed() -> None:
    """The same million tokens: free within the free tier, 500 cents beyond it, half of them across its end."""
    assert [added_cents(BUNDLED, billed, 1_000_000) for billed in (0, 4_500_000, 5_000_000)] == [0, 250, 500]
    cheaper = Price("p", "usd", PricingMode.VOLUME, (Tier(10, Decimal(5)), Tier(None, Decimal(3))))
    assert added_cents(cheaper, 10, 1) == 33 - 50


@pytest.mark.parametrize(
    "currency, cents, told", [("usd", 1250, "12.50 USD"), ("JPY", 1250, "1,250 JPY"), ("kwd", 1250, "1.250 KWD"), ("ugx", 5, "0.05 UGX")]
)
def test_money_is_told_in_the_currencys_own_unit(currency: str, cents: int, told: str) -> None:
    """Cents, whole yen, thousandths of a dinar; UGX has two decimals at Stripe."""
    assert money(cents, currency) == told
    assert money(-cents, currency) == "-" + told
    assert decimals(currency) == {"usd": 2, "jpy": 0, "kwd": 3, "ugx": 2}[currency.lower()]


@pytest.mark.parametrize(
    "currency, unit, amount, right",
    [
        ("usd", "0.05", 2, {1, 2}),  # 1.5 cents, a tie
        ("jpy", "0.05", 2, {1, 2}),  # yen have no smaller unit
        ("jpy", "0.3", 9, {9}),
        ("kwd", "4.1", 120, {120, 123}),  # 0.123 dinar; the last digit is 0
        ("kwd", "4.5", 140, {130, 135, 140}),  # 0.135 dinar, a tie
        ("isk", "4", 100, {100, 120}),  # 1.20 króna, which has no smaller unit
        ("ugx", "5", 200, {100, 150, 200}),
        ("huf", "4.1", 123, {123}),
        ("twd", "4.1", 123, {123}),
    ],
)
def test_amounts_are_rounded_to_what_the_currency_can_be_charged_in(currency: str, unit: str, amount: int, right: set[int]) -> None:
    """Thirty units. Where Stripe takes amounts in steps only, a line may be rounded to one or not; no document says."""
    for mode in (PricingMode.PER_UNIT, PricingMode.GRADUATED, PricingMode.VOLUME):
        [line] = rate(Price("p", currency, mode, (Tier(None, Decimal(unit)),)), 30)
        assert (line.amount_cents, line.amounts_cents) == (amount, right)


@pytest.mark.parametrize(
    "mode, tiers, package",
    [
        (PricingMode.GRADUATED, (), None),
        (PricingMode.GRADUATED, (Tier(5),), None),
        (PricingMode.GRADUATED, (Tier(5), Tier(5), Tier(None)), None),
        (PricingMode.VOLUME, (Tier(None), Tier(None)), None),
        (PricingMode.PER_UNIT, (Tier(5), Tier(None)), None),
        (PricingMode.PER_UNIT, (Tier(None),), Package(0, True)),
        (PricingMode.VOLUME, (Tier(None),), Package(10, True)),
    ],
)
def test_a_price_that_cannot_be_rated_is_refused(mode: PricingMode, tiers: tuple[Tier, ...], package: Package | None) -> None:
    """When it is made, not when something is rated by it."""
    with pytest.raises(ValueError, match="price p"):
        Price("p", "usd", mode, tiers, package)
    with pytest.raises(ValueError, match="cannot be rated"):
        rate(PURE, -1)


# --- The oracle: unit by unit where it can, in whole fractions where it cannot -----------------------------------------------------


def half_up(exact: Fraction, step: int = 1) -> int:
    exact /= step
    return (2 * exact.numerator + exact.denominator) // (2 * exact.denominator) * step


def oracle(price: Price, quantity: int) -> int:
    """The bill, worked out another way: every unit is put into the tier whose range holds its number."""
    step = {"kwd": 10, "isk": 100}.get(price.currency, 1)
    if price.mode == PricingMode.PER_UNIT:
        units = Fraction(quantity)
        if price.package:
            units = units / price.package.size
            units = Fraction(-((-units) // 1)) if price.package.rounds_up else Fraction(units // 1)
        return half_up(units * Fraction(price.tiers[0].unit_cents), step)
    numbered = [(0 if n == 0 else (price.tiers[n - 1].up_to or 0), tier) for n, tier in enumerate(price.tiers)]
    holding = [(low, tier) for low, tier in numbered if quantity > low or low == 0]
    if price.mode == PricingMode.VOLUME:
        _, last = holding[-1]
        return half_up(quantity * Fraction(last.unit_cents), step) + half_up(Fraction(last.flat_cents), step)
    bill = 0
    for low, tier in holding:
        high = quantity if tier.up_to is None else tier.up_to
        inside = len(range(low + 1, min(high, quantity) + 1))
        bill += half_up(inside * Fraction(tier.unit_cents), step) + half_up(Fraction(tier.flat_cents), step)
    return bill


def random_price(dice: random.Random) -> Price:
    def amount() -> Decimal:
        return Decimal(dice.randrange(10 ** dice.randint(1, 9))).scaleb(-dice.choice((0, 0, 1, 2, 4, 6, 12)))

    mode, currency = dice.choice(list(PricingMode)), dice.choice(("usd", "jpy", "kwd", "isk"))
    if mode == PricingMode.PER_UNIT:
        package = Package(dice.choice((1, 2, 7, 1000, 10**6)), dice.random() < 0.5) if dice.random() < 0.5 else None
        return Price("p", currency, mode, (Tier(None, amount()),), package)
    ends = sorted(dice.sample(range(1, dice.choice((12, 1000, 10**12))), dice.randint(0, 6)))
    tiers = [Tier(end, amount(), amount() if dice.random() < 0.4 else Decimal(0)) for end in [*ends, None]]
    return Price("p", currency, mode, tuple(tiers))


def test_any_quantity_under_any_tiers_is_rated_like_the_oracle() -> None:
    """Ten thousand random tier tables, each at its edges and somewhere else."""
    dice = random.Random(20260101)
    for _ in range(10_000):
        price = random_price(dice)
        edges = [tier.up_to for tier in price.tiers if tier.up_to is not None]
        quantities = {0, 1, dice.randrange(20), dice.randrange(10**15), *edges, *(edge + 1 for edge in edges)}
        for quantity in quantities:
            lines = rate(price, quantity)
            assert sum(line.amount_cents for line in lines) == oracle(price, quantity), (price, quantity)
            assert sum(line.quantity for line in lines) == quantity
