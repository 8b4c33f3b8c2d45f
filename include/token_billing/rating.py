"""Rating: what a quantity comes to under a price, line by line as an invoice bills it. Pure and exact, in Decimal.

Amounts are in the currency's minor unit (cents, where it has them), as everywhere in Stripe's API. Stripe rounds each line; which way
it rounds a line that lies exactly on a half is not documented, so such lines say so (`is_tie`) and are rounded up here.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

#: Stripe takes quantities of 15 digits and amounts of 12 decimal places: with so many digits no product is rounded before its line is.
_EXACT = Context(prec=100)

#: Currencies without a minor unit, and with one of a thousandth (docs.stripe.com/currencies). ISK and UGX have none either, but Stripe's
#: amounts in them have two decimals.
_NO_DECIMALS = frozenset({"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"})
_THREE_DECIMALS = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})

#: What an amount must be a multiple of, in the minor unit (the same page): the third decimal is always 0, and so are both decimals of
#: currencies that have none. HUF and TWD are without decimals in payouts only, which no invoice is.
_STEPS = {**dict.fromkeys(_THREE_DECIMALS, 10), "isk": 100, "ugx": 100}


class PricingMode(StrEnum):
    """How a price turns a quantity into an amount."""

    PER_UNIT = "per_unit"
    GRADUATED = "graduated"
    VOLUME = "volume"


class Tier(NamedTuple):
    """Units up to and including `up_to` (None: without end), each at `unit_cents`, and `flat_cents` once for reaching the tier."""

    up_to: int | None
    unit_cents: Decimal = Decimal(0)
    flat_cents: Decimal = Decimal(0)


@dataclass(frozen=True)
class Package:
    """Units are sold by so many; what is left over makes a whole package, or none."""

    size: int
    rounds_up: bool


@dataclass(frozen=True)
class Price:
    """What a unit costs; never changes under its id. A price per unit has one tier without end. Raises ValueError for tiers that do not
    ascend to one without end, or a package among tiers."""

    id: str
    currency: str
    mode: PricingMode
    tiers: tuple[Tier, ...]
    package: Package | None = None

    def __post_init__(self) -> None:
        ends = [tier.up_to for tier in self.tiers]
        finite = [end for end in ends[:-1] if end is not None]
        ascending = all(low < high for low, high in pairwise([0, *finite]))
        if not ends or ends[-1] is not None or len(finite) != len(ends) - 1 or not ascending:
            raise ValueError(f"the tiers of price {self.id} end at {ends}; they must ascend, the last without end")
        if self.mode == PricingMode.PER_UNIT and (len(ends) > 1 or self.tiers[0].flat_cents):
            raise ValueError(f"price {self.id} is per unit, and has {len(ends)} tiers or a flat fee")
        if self.package is not None and (self.mode != PricingMode.PER_UNIT or self.package.size < 1):
            raise ValueError(f"price {self.id} sells packages of {self.package.size} in mode {self.mode}")


class RatedLine(NamedTuple):
    """One line of an invoice: a quantity, or the flat fee of a tier, which is a line of no quantity. `step`: what its amount is a multiple
    of, in the currency's minor unit."""

    quantity: int
    exact_cents: Decimal
    step: int = 1

    @property
    def amount_cents(self) -> int:
        """As billed: rounded, ties up."""
        return _rounded(self.exact_cents, self.step)

    @property
    def is_tie(self) -> bool:
        """Whether the exact amount lies on a half, so that either rounding is right."""
        return _EXACT.divide(self.exact_cents, Decimal(self.step)) % 1 == Decimal("0.5")

    @property
    def amounts_cents(self) -> frozenset[int]:
        """Every amount that would be right: one, or two on a tie. Where amounts go in steps, whether a line is rounded to a step or only
        the invoice as a whole is not documented, so that either is right (a belief about Stripe)."""
        ties = {self.amount_cents - self.step} if self.is_tie else set()
        return frozenset({self.amount_cents, *ties, _rounded(self.exact_cents, 1)})


def comes_to(lines: Sequence[RatedLine], amount_cents: int) -> bool:
    """Whether all lines together may come to the amount: each rounded by itself, or, where one line stands for all of them, at once."""
    lowest, highest = sum(min(line.amounts_cents) for line in lines), sum(max(line.amounts_cents) for line in lines)
    at_once = RatedLine(0, sum((line.exact_cents for line in lines), start=Decimal(0)), lines[0].step).amounts_cents if lines else {0}
    return lowest <= amount_cents <= highest or amount_cents in at_once


def rate(price: Price, quantity: int) -> list[RatedLine]:
    """The lines that bill a whole, non-negative quantity: one for each tier that it reaches, and one for each of their flat fees. The
    first tier is reached by nothing at all (a belief about Stripe)."""
    if quantity < 0:
        raise ValueError(f"a quantity of {quantity} cannot be rated")
    step = _STEPS.get(price.currency.lower(), 1)
    return [line._replace(step=step) for line in _lines(price, quantity)]


def amount_cents(price: Price, quantity: int) -> int:
    """What the quantity is billed, all lines together."""
    return sum(line.amount_cents for line in rate(price, quantity))


def added_cents(price: Price, billed: int, added: int) -> int:
    """What a quantity adds to a bill that has another one on it; less than nothing where volume makes all of it cheaper."""
    return amount_cents(price, billed + added) - amount_cents(price, billed)


def stacked_cents(price: Price, billed: int, quantities: Iterable[int]) -> Iterator[int]:
    """What each quantity adds on top of a bill and of the quantities before it, so that all of them add up to what the whole is billed:
    under tiers, units cost more or less by what lies below them."""
    for quantity in quantities:
        yield added_cents(price, billed, quantity)
        billed += quantity


def decimals(currency: str) -> int:
    """How many decimals Stripe's amounts in a currency have."""
    code = currency.lower()
    return 0 if code in _NO_DECIMALS else 3 if code in _THREE_DECIMALS else 2


def major_units(cents: int, currency: str) -> Decimal:
    """An amount in the currency's own unit, with all its decimals: 12.50 dollars, 1200 yen."""
    return Decimal(cents).scaleb(-decimals(currency), context=_EXACT)


def money(cents: int, currency: str) -> str:
    """An amount as people read it: `12.50 USD`, `1,200 JPY`."""
    return f"{major_units(cents, currency):,f} {currency.upper()}"


def _lines(price: Price, quantity: int) -> Iterator[RatedLine]:
    if price.package is not None:
        yield _units(quantity, _packages(price.package, quantity), price.tiers[0].unit_cents)
    elif price.mode == PricingMode.VOLUME:
        yield from _tier_lines(next(tier for tier in price.tiers if tier.up_to is None or quantity <= tier.up_to), quantity)
    else:
        yield from _graduated(price, quantity)


def _graduated(price: Price, quantity: int) -> Iterator[RatedLine]:
    below = 0
    for tier in price.tiers:
        top = quantity if tier.up_to is None else min(quantity, tier.up_to)
        yield from _tier_lines(tier, top - below)
        below = top
        if below == quantity:
            return


def _tier_lines(tier: Tier, quantity: int) -> Iterator[RatedLine]:
    yield _units(quantity, quantity, tier.unit_cents)
    if tier.flat_cents:
        yield RatedLine(0, tier.flat_cents)


def _packages(package: Package, quantity: int) -> int:
    whole, left_over = divmod(quantity, package.size)
    return whole + (left_over > 0 and package.rounds_up)


def _units(quantity: int, units: int, unit_cents: Decimal) -> RatedLine:
    return RatedLine(quantity, _EXACT.multiply(Decimal(units), unit_cents))


def _rounded(exact_cents: Decimal, step: int) -> int:
    steps = _EXACT.divide(exact_cents, Decimal(step)).quantize(Decimal(1), rounding=ROUND_HALF_UP, context=_EXACT)
    return int(steps) * step
