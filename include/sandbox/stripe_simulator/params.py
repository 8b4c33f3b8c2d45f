"""What a parameter may be, and what Stripe says when it is something else. Every endpoint declares its parameters with these kinds.

A declaration is checked against Stripe's API description by a test: no parameter is accepted that Stripe does not know.
Parameters that Stripe knows and the simulator does not implement are refused as unknown, so that none is ever ignored in silence.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.form import Decoded

Params = dict[str, Any]

#: Stripe's limits on metadata: https://docs.stripe.com/api/metadata
METADATA_KEY_COUNT, METADATA_KEY_LENGTH, METADATA_VALUE_LENGTH = 50, 40, 500
#: `unit_amount_decimal` and its like take at most this many decimal places.
DECIMAL_PLACES = 12

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class Kind(ABC):
    """One parameter's declaration. `unsettable`: an empty string is allowed, means "unset", and arrives as None."""

    required: bool = False
    unsettable: bool = False

    def parse(self, given: Decoded, name: str) -> Any:
        """The parameter's value in Python's types. Raises Stripe's refusal, which names the parameter as the caller wrote it."""
        if given == "":
            if self.unsettable:
                return None
            raise errors.empty_parameter(name)
        return self.parse_given(given, name)

    @abstractmethod
    def parse_given(self, given: Decoded, name: str) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Text(Kind):
    """A string of at most `max_length` characters."""

    max_length: int = 5000

    def parse_given(self, given: Decoded, name: str) -> str:
        if not isinstance(given, str):
            raise errors.invalid_parameter(f"Invalid string: {_shown(given)}", name)
        if len(given) > self.max_length:
            shown = f"{given[:10]}...{given[-10:]}"
            raise errors.invalid_parameter(f"Invalid string: {shown}; must be at most {self.max_length} characters", name)
        return given


@dataclass(frozen=True, kw_only=True)
class Integer(Kind):
    """A whole number; also every timestamp (seconds since 1970)."""

    minimum: int | None = None
    maximum: int | None = None

    def parse_given(self, given: Decoded, name: str) -> int:
        if not isinstance(given, str) or not _INTEGER.fullmatch(given):
            raise errors.invalid_parameter(f"Invalid integer: {_shown(given)}", name, "parameter_invalid_integer")
        number = int(given)
        if self.minimum is not None and number < self.minimum:
            raise errors.invalid_parameter(
                f"This value must be greater than or equal to {self.minimum}.", name, "parameter_invalid_integer"
            )
        if self.maximum is not None and number > self.maximum:
            raise errors.invalid_parameter(f"This value must be less than or equal to {self.maximum}.", name, "parameter_invalid_integer")
        return number


@dataclass(frozen=True, kw_only=True)
class Boolean(Kind):
    def parse_given(self, given: Decoded, name: str) -> bool:
        if given not in ("true", "false"):
            raise errors.invalid_parameter(f"Invalid boolean: {_shown(given)}", name)
        return given == "true"


@dataclass(frozen=True, kw_only=True)
class FixedPoint(Kind):
    """A decimal in plain notation (`5E-7` is refused, as by Stripe), at most 12 places; arrives as Decimal."""

    def parse_given(self, given: Decoded, name: str) -> Decimal:
        if not isinstance(given, str) or not _DECIMAL.fullmatch(given):
            raise errors.invalid_parameter(f"Invalid decimal: {_shown(given)}", name)
        if len(given.partition(".")[2]) > DECIMAL_PLACES:
            raise errors.invalid_parameter(f"Invalid decimal: {given}; must contain at maximum {DECIMAL_PLACES} decimal places.", name)
        return Decimal(given)


@dataclass(frozen=True, kw_only=True)
class Currency(Kind):
    """A three-letter ISO code, lower-cased."""

    def parse_given(self, given: Decoded, name: str) -> str:
        if not isinstance(given, str) or not re.fullmatch(r"[A-Za-z]{3}", given):
            raise errors.invalid_parameter(f"Invalid currency: {_shown(given)}", name)
        return given.lower()


@dataclass(frozen=True, kw_only=True)
class OneOf(Kind):
    """One of a closed set of words."""

    words: tuple[str, ...]

    def parse_given(self, given: Decoded, name: str) -> str:
        if not isinstance(given, str) or given not in self.words:
            choices = " or ".join([", ".join(self.words[:-1]), self.words[-1]]) if len(self.words) > 1 else self.words[0]
            raise errors.invalid_parameter(f"Invalid {name}: must be one of {choices}", name)
        return given


@dataclass(frozen=True, kw_only=True)
class TextMap(Kind):
    """A hash of free keys and string values, such as metadata. An empty value is kept: in metadata it means "remove this key"."""

    key_count: int = METADATA_KEY_COUNT
    key_length: int = METADATA_KEY_LENGTH
    value_length: int = METADATA_VALUE_LENGTH

    def parse_given(self, given: Decoded, name: str) -> dict[str, str]:
        if not isinstance(given, dict):
            raise errors.invalid_parameter("Invalid hash", name)
        if len(given) > self.key_count:
            raise errors.invalid_parameter(f"{name} can have at most {self.key_count} keys, yours has {len(given)}.", name)
        texts: dict[str, str] = {}
        for key, value in given.items():
            if not isinstance(value, str):
                raise errors.invalid_parameter(f"Invalid string: {_shown(value)}", f"{name}[{key}]")
            if len(key) > self.key_length or len(value) > self.value_length:
                raise errors.invalid_parameter(
                    f"{name} keys can be at most {self.key_length} and values at most {self.value_length} characters long.",
                    f"{name}[{key}]",
                )
            texts[key] = value
        return texts


@dataclass(frozen=True, kw_only=True)
class ArrayOf(Kind):
    """`name[]=…` or `name[0]=…`; the numbers only order the elements."""

    element: Kind
    max_count: int | None = None

    def parse_given(self, given: Decoded, name: str) -> list[Any]:
        if isinstance(given, dict) and all(key.isdecimal() for key in given):
            numbered = sorted(given.items(), key=lambda item: int(item[0]))
        elif isinstance(given, list):
            numbered = [(str(index), value) for index, value in enumerate(given)]
        else:
            raise errors.invalid_parameter("Invalid array", name)
        if self.max_count is not None and len(numbered) > self.max_count:
            raise errors.invalid_parameter(f"Array {name} exceeded maximum {self.max_count} allowed elements.", name)
        return [self.element.parse(value, f"{name}[{index}]") for index, value in numbered]


@dataclass(frozen=True, kw_only=True)
class HashOf(Kind):
    """A hash whose keys are declared."""

    fields: Mapping[str, Kind]

    def parse_given(self, given: Decoded, name: str) -> Params:
        if not isinstance(given, dict):
            raise errors.invalid_parameter("Invalid hash", name)
        return parse_fields(self.fields, given, name)


@dataclass(frozen=True, kw_only=True)
class Either(Kind):
    """A parameter with two shapes, such as a number or a hash of bounds; of the shapes that fit, the last one's error is reported."""

    kinds: tuple[Kind, ...]

    def parse_given(self, given: Decoded, name: str) -> Any:
        fitting = [kind for kind in self.kinds if isinstance(kind, HashOf) == isinstance(given, dict)] or self.kinds
        for kind in fitting[:-1]:
            try:
                return kind.parse(given, name)
            except errors.StripeError:
                continue
        return fitting[-1].parse(given, name)


def parse_fields(fields: Mapping[str, Kind], given: Mapping[str, Decoded], outer: str = "") -> Params:
    """Check a hash against its declaration, at every depth: unknown names first, then missing ones, then the values.

    Raises Stripe's refusal. The result holds only what was given; unset parameters (empty strings) are there as None.
    """
    unknown = [_inner(outer, name) for name in given if name not in fields]
    if unknown:
        raise errors.unknown_parameters(unknown)
    for name, kind in fields.items():
        if kind.required and name not in given:
            raise errors.missing_parameter(_inner(outer, name))
    return {name: fields[name].parse(value, _inner(outer, name)) for name, value in given.items()}


def _inner(outer: str, name: str) -> str:
    return f"{outer}[{name}]" if outer else name


def _shown(given: Decoded) -> str:
    return given if isinstance(given, str) else "[hash]" if isinstance(given, dict) else "[array]"


# --- Declarations that many endpoints share -------------------------------------------------------------------------------------

#: `created=…` or `created[gte]=…`
BOUNDS = Either(kinds=(Integer(), HashOf(fields={bound: Integer() for bound in ("gt", "gte", "lt", "lte")})))

EXPAND: Mapping[str, Kind] = {"expand": ArrayOf(element=Text())}


def is_within(value: int, bounds: int | Mapping[str, int] | None) -> bool:
    """Whether a number lies within a BOUNDS parameter; without one, always."""
    if bounds is None:
        return True
    if isinstance(bounds, int):
        return value == bounds
    return (
        ("gt" not in bounds or value > bounds["gt"])
        and ("gte" not in bounds or value >= bounds["gte"])
        and ("lt" not in bounds or value < bounds["lt"])
        and ("lte" not in bounds or value <= bounds["lte"])
    )


def merged_metadata(before: Mapping[str, str], given: Mapping[str, str] | None) -> dict[str, str]:
    """Metadata after an update: given keys are set, keys given empty are removed, None (`metadata=`) removes all."""
    if given is None:
        return {}
    return {key: value for key, value in {**before, **given}.items() if value != ""}
