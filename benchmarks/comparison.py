"""Measurements of one run and what they are held against. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

#: Prints one line of progress.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What a figure should be: at most, or at least, the limit."""

    bound: Literal["at most", "at least"]
    limit: float

    def is_met(self, figure: float) -> bool:
        return figure <= self.limit if self.bound == "at most" else figure >= self.limit


@dataclass(frozen=True)
class Comparison:
    """One line of the table: the best of our rounds beside the best of what it is compared with.

    The best, not the mean: whatever else the machine does only ever adds time, and it adds to both."""

    key: str  #: its name in bench.json
    ours: str
    beside: str  #: what the figure is a ratio to; empty where it is a rate
    figure: float
    unit: Literal["×", "/s"]
    ours_seconds: tuple[float, ...]
    beside_seconds: tuple[float, ...] = field(default=())
    target: Target | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return None if self.target is None else self.target.is_met(self.figure)


def time_ratio(
    key: str, ours: str, beside: str, ours_seconds: Sequence[float], beside_seconds: Sequence[float], at_most: float | None = None
) -> Comparison:
    """Our time as a multiple of the other's: smaller is better."""
    figure = min(ours_seconds) / min(beside_seconds)
    target = None if at_most is None else Target("at most", at_most)
    return Comparison(key, ours, beside, figure, "×", tuple(ours_seconds), tuple(beside_seconds), target)


def throughput_ratio(
    key: str, ours: str, beside: str, ours_seconds: Sequence[float], beside_seconds: Sequence[float], at_least: float
) -> Comparison:
    """Our throughput as a share of the other's, for the same work: larger is better."""
    figure = min(beside_seconds) / min(ours_seconds)
    return Comparison(key, ours, beside, figure, "×", tuple(ours_seconds), tuple(beside_seconds), Target("at least", at_least))


def rate(key: str, what: str, count: int, seconds: Sequence[float], at_least: float) -> Comparison:
    """How many a second."""
    return Comparison(key, what, "", count / min(seconds), "/s", tuple(seconds), target=Target("at least", at_least))
