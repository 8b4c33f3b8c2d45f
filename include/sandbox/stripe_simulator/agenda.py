"""What time will do next: a heap of instants, each with the object that has something due then. Knows nothing of Stripe's objects."""

from __future__ import annotations

import heapq

#: (seconds since 1970, running number, kind of object, its id)
_Entry = tuple[int, int, str, str]


class Agenda:
    """Entries are never removed: whoever takes one asks the object whether it still has something due at that very instant."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._count = 0

    def plan(self, due: int, kind: str, object_id: str) -> None:
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, kind, object_id))

    def earliest(self) -> int | None:
        """Nothing is due before this instant."""
        return self._heap[0][0] if self._heap else None

    def take(self, until: int) -> tuple[int, str, str] | None:
        """Remove and return the first entry (instant, kind, id) that is due by then; of one instant, the one planned first."""
        if not self._heap or self._heap[0][0] > until:
            return None
        due, _, kind, object_id = heapq.heappop(self._heap)
        return due, kind, object_id
