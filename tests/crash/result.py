"""What came of a random history."""

from collections import Counter
from dataclasses import dataclass, field


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
