"""Which requests meet trouble, and which trouble: scripted one by one, or drawn from a seed. Knows no HTTP; the gateway carries it out.

Nothing here is kept across a restart: a fault belongs to the network or to the moment, not to what Stripe remembers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

FaultKind = Literal[
    # the request goes well; in a script it lets one by
    "pass",
    # the request never takes effect, and there is no answer
    "reset_before_effect",  # connection reset
    "hang_before_effect",  # silence until the client gives up
    # the request takes effect, and the answer is lost
    "reset_after_effect",  # connection reset
    "close_after_effect",  # connection closed in good order, without a byte
    "hang_after_effect",  # silence until the client gives up
    "reset_in_body",  # status, headers and half of the body, then a reset
    # connection reset at once; the request takes effect when it is released, or after `deliver_after_seconds`
    "delayed_delivery",
    # the request is turned away without effect, and no idempotency key remembers it
    "conflict",  # 409 idempotency_key_in_use
    "rate_limit",  # 429 rate_limit
    "rate_limit_with_retry_after",  # the same with `Retry-After: retry_after_seconds`
    "lock_timeout",  # 429 lock_timeout
    "error_before_effect",  # 500
    # 500 although the request took effect; its idempotency key remembers the true answer
    "error_after_effect",
    # 500 that the idempotency key remembers and replays, without effect and with it
    "kept_error_before_effect",
    "kept_error_after_effect",
]

#: In the order in which a seeded draw tries them.
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

_METER_EVENTS = "/v1/billing/meter_events"


class BadFault(ValueError):
    """A fault was described that does not exist; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """What every description of faults says: of requests of which method, whose path begins with `path`, and how."""

    method: str = "POST"
    path: str = _METER_EVENTS
    #: the header of `rate_limit_with_retry_after`
    retry_after_seconds: int = 1
    #: by the simulator's clock, for `delayed_delivery`; None waits until it is released
    deliver_after_seconds: float | None = None

    def matches(self, method: str, path: str) -> bool:
        return method == self.method and path.startswith(self.path)


@dataclass(frozen=True, slots=True)
class Fault(_Described):
    """One trouble, for one request."""

    kind: FaultKind


@dataclass(frozen=True, slots=True)
class SeededFaults(_Described):
    """Faults by chance, the same for the same seed and the same order of requests; what they share holds for every fault drawn."""

    seed: int
    #: by kind of fault; what is missing to 1 goes well
    probabilities: Mapping[FaultKind, float]

    def fault(self, chance: float) -> Fault:
        """The fault that a number in [0, 1) stands for."""
        for kind in KINDS:
            chance -= self.probabilities.get(kind, 0.0)
            if chance < 0:
                return self._of(kind)
        return self._of("pass")

    def _of(self, kind: FaultKind) -> Fault:
        return Fault(kind, **{one.name: getattr(self, one.name) for one in fields(_Described)})


@dataclass(frozen=True, slots=True)
class MetFault:
    """A request that met a fault (or was let by through a script's `pass`)."""

    kind: FaultKind
    method: str
    path: str
    idempotency_key: str | None


class FaultPlan:
    """The faults to come: first those of the script, then those of the seed."""

    def __init__(self) -> None:
        self._script: list[Fault] = []
        self._seeded: SeededFaults | None = None
        self._random = random.Random(0)
        self._met: list[MetFault] = []
        #: whether any fault may come; the only thing that a request without faults looks at
        self.is_armed = False

    def clear(self) -> None:
        """No more faults."""
        self._script = []
        self._seeded = None
        self._arm()

    def forget(self) -> None:
        """No more faults, and what was met is forgotten."""
        self.clear()
        self._met = []

    def follow_script(self, faults: Sequence[Fault]) -> None:
        """Replace the script. Each fault meets one request: the next that it matches and that no earlier one of the script takes."""
        self._script = list(faults)
        self._arm()

    def follow_seed(self, seeded: SeededFaults) -> None:
        """From now on draw one number for every request that the script leaves alone and that matches."""
        self._seeded = seeded
        self._random = random.Random(seeded.seed)
        self._arm()

    def next_fault(self, method: str, path: str, idempotency_key: str | None) -> Fault | None:
        """The fault that this request meets, or None."""
        fault = self._scripted(method, path)
        if fault is None and self._seeded is not None and self._seeded.matches(method, path):
            fault = self._seeded.fault(self._random.random())
            if fault.kind == "pass":
                return None
        if fault is None:
            return None
        self._met.append(MetFault(fault.kind, method, path, idempotency_key))
        return None if fault.kind == "pass" else fault

    def as_json(self) -> dict[str, Any]:
        return {
            "script": [asdict(fault) for fault in self._script],
            "seeded": None if self._seeded is None else asdict(self._seeded),
            "met": [asdict(met) for met in self._met],
        }

    def _scripted(self, method: str, path: str) -> Fault | None:
        for index, fault in enumerate(self._script):
            if fault.matches(method, path):
                del self._script[index]
                self._arm()
                return fault
        return None

    def _arm(self) -> None:
        self.is_armed = bool(self._script) or self._seeded is not None


def parse_script(given: Any) -> list[Fault]:
    """Read a list of faults, each a hash as in `Fault` or only a kind. Raises BadFault."""
    if not isinstance(given, list):
        raise BadFault("faults must be a list")
    script = []
    for one in given:
        described = {"kind": one} if isinstance(one, str) else one
        _check(described, Fault, "kind")
        _check_kind(described["kind"])
        script.append(Fault(**described))
    return script


def parse_seeded(given: Any) -> SeededFaults:
    """Read a hash as in `SeededFaults`. Raises BadFault."""
    _check(given, SeededFaults, "seed", "probabilities")
    if not _is_number(given["seed"], int):
        raise BadFault("seed must be a whole number")
    probabilities = given["probabilities"]
    if not isinstance(probabilities, dict):
        raise BadFault("probabilities must be a hash of kinds of fault")
    for kind, probability in probabilities.items():
        _check_kind(kind)
        if kind == "pass" or not _is_number(probability, int, float) or not 0 <= probability <= 1:
            raise BadFault(f"{kind}: a probability is a number from 0 to 1, and what is missing to 1 passes")
    if sum(probabilities.values()) > 1 + 1e-9:
        raise BadFault("the probabilities sum to more than 1")
    return SeededFaults(**given)


def _check(given: Any, described: type[Fault] | type[SeededFaults], *required: str) -> None:
    """Raise BadFault unless these are the fields of a fault, and the options that both kinds of description share have their types."""
    known = [one.name for one in fields(described)]
    if not isinstance(given, dict) or not set(required) <= set(given) <= set(known):
        raise BadFault(f"{given!r}: a fault has {', '.join(known)}, and at least {', '.join(required)}")
    if not all(isinstance(given.get(name, ""), str) for name in ("method", "path")):
        raise BadFault("method and path are strings")
    if not _is_number(given.get("retry_after_seconds", 1), int):
        raise BadFault("retry_after_seconds is a whole number, not negative")
    deliver_after = given.get("deliver_after_seconds")
    if deliver_after is not None and not _is_number(deliver_after, int, float):
        raise BadFault("deliver_after_seconds is a number, not negative, or null")


def _check_kind(kind: Any) -> None:
    if kind not in KINDS:
        raise BadFault(f"{kind!r} is no kind of fault; there are {', '.join(KINDS)}")


def _is_number(given: Any, *types: type[int] | type[float]) -> bool:
    """Whether this is a number of these types, and not negative."""
    return isinstance(given, types) and not isinstance(given, bool) and given >= 0
