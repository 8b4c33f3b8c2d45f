"""Remembers the first answer under each idempotency key, as Stripe does for 24 hours."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass

from sandbox.stripe_simulator.form import Pairs
from sandbox.stripe_simulator.meter_event_log import MeterEvent

#: Stripe: "You can remove keys from the system automatically after they're at least 24 hours old."
RETENTION_MS = 24 * 3600 * 1000
#: Stripe: "Idempotency keys are up to 255 characters long."
KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What a key's first request asked (as a fingerprint) and was answered: a body, or the meter event whose JSON is the body."""

    fingerprint: bytes
    status: int
    answer: bytes | MeterEvent
    kept_at_ms: int


def fingerprint(path: str, pairs: Pairs) -> bytes:
    """16 bytes that differ when the path or any parameter differs; the order of the parameters does not matter."""
    digest = hashlib.blake2b(path.encode(), digest_size=16)
    digest.update(repr(sorted(pairs)).encode())
    return digest.digest()


class IdempotencyStore:
    """Answers by key, the oldest first; those past their 24 hours are dropped as newer ones come in."""

    def __init__(self) -> None:
        self._answers: dict[str, KeptAnswer] = {}
        self._by_age: deque[tuple[int, str]] = deque()

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, key: str, now_ms: int) -> KeptAnswer | None:
        kept = self._answers.get(key)
        if kept is None or now_ms - kept.kept_at_ms >= RETENTION_MS:
            return None
        return kept

    def keys_by_event_number(self) -> dict[int, str]:
        """For each meter event that a remembered request made: its number → the request's key."""
        return {kept.answer.number: key for key, kept in self._answers.items() if isinstance(kept.answer, MeterEvent)}

    def keep(self, key: str, kept: KeptAnswer) -> None:
        while self._by_age and kept.kept_at_ms - self._by_age[0][0] >= RETENTION_MS:
            kept_at_ms, old_key = self._by_age.popleft()
            if (old := self._answers.get(old_key)) is not None and old.kept_at_ms == kept_at_ms:
                del self._answers[old_key]
        self._answers[key] = kept
        self._by_age.append((kept.kept_at_ms, key))
