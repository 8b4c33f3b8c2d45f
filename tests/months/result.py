"""What came of a world's months."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Found(NamedTuple):
    """A planted error, and by which causes it was found; `wanted` is the right one."""

    kind: str
    tenant: str
    wanted: str
    found: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        return self.wanted in self.found


@dataclass
class Result:
    """What happened, and what is wrong with it: nothing, if all is explained and nothing is flagged but what was planted."""

    world: str
    seed: int
    figures: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    planted: list[Found] = field(default_factory=list)
    seconds: float = 0.0
