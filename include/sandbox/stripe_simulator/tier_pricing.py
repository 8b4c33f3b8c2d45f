"""What a quantity costs under a price, line by line as an invoice shows it. Pure arithmetic on the stored form of a price.

Rounding happens per line, to the currency's minor unit. That ties go up is unverified: half-even would be as consistent with what
Stripe documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal

from sandbox.stripe_simulator.state import JsonObject

#: More digits than any value of 15 digits times a price of 30 can have: nothing is rounded before the end.
_EXACT = Context(prec=100)


@dataclass(frozen=True)
class PricedQuantity:
    """One line: so many units at so much each. A tier's flat fee is a line of its own, of no units, whose `flat_amount` it is."""

    quantity: int
    unit_amount: Decimal
    flat_amount: Decimal
    amount: int
    #: "Tier 2", or nothing where a price has no tiers
    tier: str = ""


def priced(price: JsonObject, quantity: int) -> list[PricedQuantity]:
    """One line per tier that the quantity reaches, and one for each such tier's flat fee; without tiers one line.

    The first tier is there even for a quantity of zero, its flat fee included (unverified).
    """
    if price["billing_scheme"] == "per_unit":
        return [_line(_packages(price["transform_quantity"], quantity), price["unit_amount_decimal"], shown_quantity=quantity)]
    if price["tiers_mode"] == "volume":
        number, tier = next(
            (number, tier) for number, tier in enumerate(price["tiers"], start=1) if tier["up_to"] is None or quantity <= tier["up_to"]
        )
        return list(_tier_lines(number, tier, quantity))
    lines: list[PricedQuantity] = []
    below = 0
    for number, tier in enumerate(price["tiers"], start=1):
        if number > 1 and quantity <= below:
            break
        upper = quantity if tier["up_to"] is None else min(quantity, tier["up_to"])
        lines += _tier_lines(number, tier, upper - below)
        below = upper
    return lines


def _packages(transform: JsonObject | None, quantity: int) -> int:
    """What is multiplied with the unit amount: whole packages where the price sells those."""
    if transform is None:
        return quantity
    size = int(transform["divide_by"])
    return quantity // size if transform["round"] == "down" else -(-quantity // size)


def _tier_lines(number: int, tier: JsonObject, quantity: int) -> Iterator[PricedQuantity]:
    name = f"Tier {number}"
    yield _line(quantity, tier["unit_amount_decimal"], tier=name)
    if tier["flat_amount_decimal"] is not None:
        flat = Decimal(tier["flat_amount_decimal"])
        yield PricedQuantity(0, Decimal(0), flat, _rounded(flat), name)


def _line(quantity: int, unit_amount: str | None, *, tier: str = "", shown_quantity: int | None = None) -> PricedQuantity:
    unit = Decimal(unit_amount or 0)
    shown = quantity if shown_quantity is None else shown_quantity
    return PricedQuantity(shown, unit, Decimal(0), amount_of(quantity, unit), tier)


def amount_of(quantity: int, unit_amount: Decimal) -> int:
    """So many units at so much each, as a line shows it."""
    return _rounded(_EXACT.multiply(Decimal(quantity), unit_amount))


def share_of(amount: int, part: int, whole: int) -> int:
    """The part of an amount that belongs to so many seconds of so many."""
    return _rounded(_EXACT.divide(_EXACT.multiply(Decimal(amount), Decimal(part)), Decimal(whole)))


def _rounded(amount: Decimal) -> int:
    return int(amount.quantize(Decimal(1), rounding=ROUND_HALF_UP, context=_EXACT))
