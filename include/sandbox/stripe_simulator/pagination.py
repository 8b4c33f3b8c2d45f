"""Stripe's lists: `{"object": "list", "url", "has_more", "data"}`, newest first, cut by limit and cursor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.params import Integer, Kind, Params, Text
from sandbox.stripe_simulator.state import JsonObject

DEFAULT_LIMIT, LARGEST_LIMIT = 10, 100

PAGE: Mapping[str, Kind] = {
    "limit": Integer(minimum=1, maximum=LARGEST_LIMIT),
    "starting_after": Text(),
    "ending_before": Text(),
}


def list_page(
    newest_first: Iterable[JsonObject],
    params: Params,
    *,
    url: str,
    noun: str,
    matches: Callable[[JsonObject], bool] = lambda stored: True,
    render: Callable[[JsonObject], JsonObject] = dict,
) -> JsonObject:
    """One page of the objects that match, rendered.

    A cursor may name any object of the collection, matching or not: an object may have stopped matching since the last page.
    Raises Stripe's refusal when the cursor names no object, or both cursors are given.
    """
    after, before = params.get("starting_after"), params.get("ending_before")
    if after is not None and before is not None:
        raise errors.exclusive_parameters("starting_after", "ending_before")
    limit = params.get("limit", DEFAULT_LIMIT)
    objects = iter(newest_first)
    if after is not None and not any(stored["id"] == after for stored in objects):
        raise errors.no_such(noun, after, param="starting_after")
    found: list[JsonObject] = []
    for stored in objects:
        if stored["id"] == before:
            has_more = len(found) > limit
            return list_of([render(one) for one in found[-limit:]], url, has_more=has_more)
        if matches(stored):
            found.append(stored)
            if before is None and len(found) > limit:
                break
    if before is not None:
        raise errors.no_such(noun, before, param="ending_before")
    return list_of([render(one) for one in found[:limit]], url, has_more=len(found) > limit)


def list_of(data: list[JsonObject], url: str, *, has_more: bool = False) -> JsonObject:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}
