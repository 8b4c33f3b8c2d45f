"""Decodes Stripe's bracket form: `items[0][price]=p&expand[]=tiers` → `{"items": {"0": {"price": "p"}}, "expand": ["tiers"]}`.

Everything stays a string; whether `{"0": …}` is an array or a hash only the parameter's declaration can tell (see `params`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from urllib.parse import parse_qsl

from sandbox.stripe_simulator import errors

Decoded = str | list["Decoded"] | dict[str, "Decoded"]
Pairs = list[tuple[str, str]]


def split_pairs(encoded: str) -> Pairs:
    """Split an urlencoded query or body into its pairs, in order. Raises the malformed-request error when it is not UTF-8."""
    if not encoded:
        return []
    try:
        return parse_qsl(encoded, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise errors.malformed_request() from error


def decode(pairs: Iterable[tuple[str, str]]) -> dict[str, Decoded]:
    """Build the nested parameters. A scalar given twice keeps its last value; a name that is both scalar and nested is refused."""
    root: dict[str, Decoded] = {}
    for name, value in pairs:
        path = _path(name)
        if len(path) == 1:
            root[name] = value
        else:
            _place(root, path, value, name)
    return root


@lru_cache(maxsize=4096)
def _path(name: str) -> tuple[str, ...]:
    """`a[b][]` → ("a", "b", ""). The names of a program's requests repeat, hence the cache."""
    head, bracket, rest = name.partition("[")
    if not bracket or not head or not rest.endswith("]"):
        return (name,)
    return (head, *rest[:-1].split("]["))


def _place(root: dict[str, Decoded], path: tuple[str, ...], value: str, name: str) -> None:
    node: dict[str, Decoded] | list[Decoded] = root
    for part, following in pairwise(path):
        empty: Decoded = [] if following == "" else {}
        child: Decoded
        if isinstance(node, dict):
            child = node.setdefault(part, empty)
        else:
            # `items[][price]=a&items[][price]=b`: a member that is already there begins the next element.
            last = node[-1] if node else None
            if not isinstance(last, dict) or following in last:
                node.append(empty)
            child = node[-1]
        if isinstance(child, str) or isinstance(child, list) != isinstance(empty, list):
            raise errors.invalid_parameter(f"Invalid parameter: {name} is given both as a value and as a hash or array.", path[0])
        node = child
    if isinstance(node, dict):
        node[path[-1]] = value
    else:
        node.append(value)
