"""What is sold in the months, and what a quantity of it comes to by the oracle's own reckoning, in Fractions.

It imports nothing of the product. A bill's lines may differ in nothing but how a line that lies exactly on a half was rounded."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple


class Step(NamedTuple):
    """A tier: up to and including so many units (None: without end), at so much each and so much for reaching it, in minor units."""

    up_to: int | None
    each: str
    flat: str | None = None


@dataclass(frozen=True)
class Terms:
    """A metered price. `kind`: per_unit, graduated, volume or packages (of `size` units, what is left over making a whole one)."""

    name: str
    kind: str
    steps: tuple[Step, ...]
    currency: str = "usd"
    size: int = 1
    #: In minor units a month, in advance, beside the usage.
    base: int | None = None

    def lines(self, quantity: int) -> list[tuple[int, Fraction]]:
        """Units and exact amount of each line of a bill."""
        if self.kind == "packages":
            return [(quantity, Fraction(-(-quantity // self.size)) * Fraction(self.steps[0].each))]
        if self.kind == "volume":
            step = next(step for step in self.steps if step.up_to is None or quantity <= step.up_to)
            return list(_of_step(step, quantity))
        lines: list[tuple[int, Fraction]] = []
        below = 0
        for step in self.steps:
            if lines and quantity <= below:
                break
            until = quantity if step.up_to is None else min(step.up_to, quantity)
            lines += _of_step(step, until - below)
            below = until
        return lines

    def parameters(self, meter: str) -> dict[str, Any]:
        """As Stripe is asked for the price."""
        asked: dict[str, Any] = {
            "currency": self.currency,
            "product_data[name]": self.name,
            "recurring[interval]": "month",
            "recurring[usage_type]": "metered",
            "recurring[meter]": meter,
        }
        if self.kind in ("per_unit", "packages"):
            asked["unit_amount_decimal"] = self.steps[0].each
            if self.kind == "packages":
                asked |= {"transform_quantity[divide_by]": self.size, "transform_quantity[round]": "up"}
            return asked
        asked |= {"billing_scheme": "tiered", "tiers_mode": self.kind}
        for number, step in enumerate(self.steps):
            asked[f"tiers[{number}][up_to]"] = "inf" if step.up_to is None else step.up_to
            asked[f"tiers[{number}][unit_amount_decimal]"] = step.each
            if step.flat is not None:
                asked[f"tiers[{number}][flat_amount_decimal]"] = step.flat
        return asked


def _of_step(step: Step, quantity: int) -> Iterator[tuple[int, Fraction]]:
    yield quantity, quantity * Fraction(step.each)
    if step.flat is not None:
        yield 0, Fraction(step.flat)


def rounded(amount: Fraction) -> set[int]:
    """What a line of that exact amount may be billed: two amounts where it lies exactly on a half."""
    whole = amount.numerator // amount.denominator
    rest = amount - whole
    if rest == Fraction(1, 2):
        return {whole, whole + 1}
    return {whole + (rest > Fraction(1, 2))}


#: The product's own two; set-up makes them.
BUNDLED = Terms("bundled", "graduated", (Step(5_000_000, "0"), Step(None, "0.0005")), base=5000)
PURE = Terms("pure", "per_unit", (Step(None, "0.002"),))

#: Older sales, whose prices go on for those who have them, each with a meter of its own.
OLDER = (
    Terms("volume", "volume", (Step(1_000_000, "0.003"), Step(8_000_000, "0.0015", "250"), Step(None, "0.0007", "900"))),
    Terms("packages", "packages", (Step(None, "3"),), size=1000),
    Terms("flat fees", "graduated", (Step(500_000, "0", "700"), Step(4_000_000, "0.00125", "150"), Step(None, "0.00033"))),
    Terms("yen", "graduated", (Step(1_000_000, "0"), Step(None, "0.00055")), currency="jpy", base=7500),
    Terms("yen each", "per_unit", (Step(None, "0.0031"),), currency="jpy"),
)

PRICE_LIST = {terms.name: terms for terms in (BUNDLED, PURE, *OLDER)}

#: A plan without tokens.
SOLO = "solo"
