"""What came of a random history, and of many."""

from collections import Counter
from dataclasses import dataclass, field

#: Figures by what they are of: the summary adds up the kills and the faults.
KILL, FAULT = "kill: ", "fault: "


@dataclass
class Result:
    """What happened in a history, and what is wrong with it: nothing, if every token was billed once."""

    seed: int
    figures: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    lost_tokens: int = 0
    doubled_tokens: int = 0

    @property
    def how_to_repeat(self) -> str:
        return f"make crash HISTORIES=1 SEED={self.seed}"


def sum_of(figures: Counter[str], kind: str) -> int:
    """How often anything of a kind happened."""
    return sum(count for name, count in figures.items() if name.startswith(kind))
