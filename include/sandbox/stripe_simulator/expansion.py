"""`expand[]`: replaces an id by its object, or adds a property that is left out by default, along a dotted path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.state import JsonObject, State

#: An expander's result where the object does not have the property at all, as a price without tiers.
ABSENT = object()

#: What a property becomes when it is expanded; None where there is nothing behind it.
Expander = Callable[[State, JsonObject], Any]
#: By the `object` member of the object that holds the property, then by the property.
Expanders = Mapping[str, Mapping[str, Expander]]

#: Stripe: "Expansions have a maximum depth of four levels."; the `data` of a list counts as one.
LARGEST_DEPTH = 4


def expand(state: State, answer: JsonObject, paths: list[str], expanders: Expanders) -> None:
    """Expand the answer in place. Raises Stripe's refusal for a path that leads to nothing expandable."""
    for path in paths:
        segments = path.split(".")
        if len(segments) > LARGEST_DEPTH:
            raise errors.invalid_parameter(f"You cannot expand more than {LARGEST_DEPTH} levels of a property. Property: {path}", "expand")
        _expand_path(state, answer, segments, path, expanders)


def _expand_path(state: State, node: JsonObject, segments: list[str], path: str, expanders: Expanders) -> None:
    name, rest = segments[0], segments[1:]
    if name == "data" and node.get("object") == "list":
        if not rest:
            raise errors.not_expandable(path)
        for element in node["data"]:
            _expand_path(state, element, rest, path, expanders)
        return
    expander = expanders.get(str(node.get("object")), {}).get(name)
    if expander is not None:
        if not isinstance(node.get(name), dict):  # an earlier path may have expanded it already
            expanded = expander(state, node)
            if expanded is ABSENT:
                return
            node[name] = expanded
    elif not rest or name not in node or name == "metadata":
        raise errors.not_expandable(path)
    child = node[name]
    if rest and isinstance(child, dict):
        _expand_path(state, child, rest, path, expanders)
    elif rest and child is not None:
        raise errors.not_expandable(path)
