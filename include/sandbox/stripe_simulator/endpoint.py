"""What an endpoint is: a method and path, the parameters it takes, and a function of (state, parameters, ids in the path)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.stripe_simulator.meter_event_log import MeterEvent
from sandbox.stripe_simulator.pagination import PAGE
from sandbox.stripe_simulator.params import EXPAND, Kind
from sandbox.stripe_simulator.state import JsonObject

#: Called with the state, the checked parameters, and the ids in the path from left to right.
Run = Callable[..., JsonObject | MeterEvent]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`path` has its ids in braces, as in Stripe's API description; `fields` are the parameters, `expand` included."""

    method: str
    path: str
    fields: Mapping[str, Kind]
    run: Run


def get(path: str, run: Run, **fields: Kind) -> Endpoint:
    return Endpoint("GET", path, {**fields, **EXPAND}, run)


def get_list(path: str, run: Run, **fields: Kind) -> Endpoint:
    return Endpoint("GET", path, {**fields, **PAGE, **EXPAND}, run)


def post(path: str, run: Run, fields: Mapping[str, Kind]) -> Endpoint:
    return Endpoint("POST", path, {**fields, **EXPAND}, run)


def delete(path: str, run: Run, **fields: Any) -> Endpoint:
    """Deletions do not expand unless they say so."""
    return Endpoint("DELETE", path, fields, run)
