"""Every meter event the simulator has answered 200 to, and how to find them: by identifier, and by customer and minute.

Stripe answers an event before it has looked at its payload; whether the event counts is decided afterwards. The log therefore keeps
rejected events too, with the error code that Stripe would report.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any

#: Stripe promises uniqueness "within a rolling period of at least 24 hours"; the simulator forgets at exactly 24 hours,
#: because the least that is promised is what a caller must survive.
UNIQUENESS_WINDOW_MS = 24 * 3600 * 1000

SECONDS_A_MINUTE = 60


class MeterEvent:
    """One received event. Slots and flat tuples, because a million of these are kept."""

    __slots__ = (
        "cancelled_at_ms",
        "customer",
        "error_code",
        "event_name",
        "identifier",
        "meter",
        "number",
        "payload",
        "received_at_ms",
        "timestamp",
        "value",
    )

    def __init__(
        self,
        identifier: str,
        event_name: str,
        payload: list[str],
        timestamp: int,
        received_at_ms: int,
        meter: str,
        customer: str | None,
        value: str | None,
        error_code: str | None,
    ) -> None:
        self.identifier = identifier
        self.event_name = sys.intern(event_name)
        #: keys and values in turn; interned, since the same few recur, and the customer and value below are among them
        self.payload = tuple(map(sys.intern, payload))
        #: event time, seconds since 1970
        self.timestamp = timestamp
        self.received_at_ms = received_at_ms
        #: the meter that was active under this event name at receipt
        self.meter = sys.intern(meter)
        #: what the payload holds under the meter's keys; None where the key is absent
        self.customer = None if customer is None else sys.intern(customer)
        self.value = None if value is None else sys.intern(value)
        #: None when the event counts, else Stripe's code for why it never will
        self.error_code = error_code
        self.cancelled_at_ms: int | None = None
        #: 1 for the first event received, and so on; given by the log
        self.number = 0

    def as_json(self) -> dict[str, Any]:
        """Stripe's `billing.meter_event`. It depends on nothing that can change later, so a replayed answer is rebuilt from it."""
        return {
            "object": "billing.meter_event",
            "created": self.received_at_ms // 1000,
            "event_name": self.event_name,
            "identifier": self.identifier,
            "livemode": False,
            "payload": dict(zip(self.payload[::2], self.payload[1::2], strict=True)),
            "timestamp": self.timestamp,
        }

    def as_change(self) -> list[Any]:
        """The arguments that rebuild this event, for the journal."""
        return [
            self.identifier,
            self.event_name,
            self.payload,
            self.timestamp,
            self.received_at_ms,
            self.meter,
            self.customer,
            self.value,
            self.error_code,
        ]

    @property
    def status(self) -> str:
        if self.cancelled_at_ms is not None:
            return "cancelled"
        return "accepted" if self.error_code is None else "rejected"

    def is_visible_at(self, instant_ms: int, delay_ms: int) -> bool:
        """Whether summaries show the event: received long enough ago, and not cancelled long enough ago."""
        if self.received_at_ms + delay_ms > instant_ms:
            return False
        return self.cancelled_at_ms is None or self.cancelled_at_ms + delay_ms > instant_ms


class _CustomerMinutes:
    """The counting events of one customer and meter, by the minute of their event time; summaries are minute-aligned."""

    __slots__ = ("events_of", "minutes")

    def __init__(self) -> None:
        self.minutes: list[int] = []
        self.events_of: dict[int, list[MeterEvent]] = {}

    def add(self, event: MeterEvent) -> None:
        minute = event.timestamp // SECONDS_A_MINUTE
        events = self.events_of.get(minute)
        if events is None:
            self.events_of[minute] = [event]
            insort(self.minutes, minute)
        else:
            events.append(event)

    def remove(self, event: MeterEvent) -> None:
        minute = event.timestamp // SECONDS_A_MINUTE
        self.events_of[minute].remove(event)
        if not self.events_of[minute]:
            del self.events_of[minute]
            self.minutes.remove(minute)

    def between(self, start: int, end: int) -> Iterator[MeterEvent]:
        first = bisect_left(self.minutes, start // SECONDS_A_MINUTE)
        last = bisect_left(self.minutes, -(-end // SECONDS_A_MINUTE))
        for minute in self.minutes[first:last]:
            for event in self.events_of[minute]:
                if start <= event.timestamp < end:
                    yield event


class MeterEventLog:
    """All received meter events in order of receipt, with their indexes."""

    def __init__(self) -> None:
        self._events: list[MeterEvent] = []
        self._latest_by_identifier: dict[str, MeterEvent] = {}
        self._minutes_of: dict[tuple[str, str], _CustomerMinutes] = {}

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: MeterEvent) -> MeterEvent | None:
        """Returns the forgotten event whose identifier this one takes over, if there is one."""
        self._events.append(event)
        event.number = len(self._events)
        replaced = self._latest_by_identifier.get(event.identifier)
        self._latest_by_identifier[event.identifier] = event
        if event.error_code is None and event.customer is not None:
            key = (event.meter, event.customer)
            minutes = self._minutes_of.get(key)
            if minutes is None:
                minutes = self._minutes_of[key] = _CustomerMinutes()
            minutes.add(event)
        return replaced

    def remove_latest(self, replaced: MeterEvent | None) -> None:
        """Undo the last `add`, given what it returned."""
        event = self._events.pop()
        if replaced is None:
            del self._latest_by_identifier[event.identifier]
        else:
            self._latest_by_identifier[event.identifier] = replaced
        if event.error_code is None and event.customer is not None:
            self._minutes_of[event.meter, event.customer].remove(event)

    def latest(self) -> MeterEvent:
        """The event received last."""
        return self._events[-1]

    def received(self, after: int, count: int) -> list[MeterEvent]:
        """At most `count` events in order of receipt, beginning behind the one numbered `after`."""
        return self._events[after : after + count]

    def remembered(self, identifier: str, now_ms: int) -> MeterEvent | None:
        """The event that still holds this identifier, or None once its 24 hours are over."""
        event = self._latest_by_identifier.get(identifier)
        if event is None or now_ms - event.received_at_ms >= UNIQUENESS_WINDOW_MS:
            return None
        return event

    def cancel(self, identifier: str, at_ms: int | None) -> None:
        """Stop counting the latest event of that identifier at this instant; None takes that back."""
        self._latest_by_identifier[identifier].cancelled_at_ms = at_ms

    def latest_of(self, identifier: str) -> MeterEvent | None:
        """The event received last under this identifier, however long ago."""
        return self._latest_by_identifier.get(identifier)

    def disown(self, number: int, error_code: str) -> None:
        """Never count this event again; the code says why."""
        event = self._events[number - 1]
        if event.error_code is None and event.customer is not None:
            self._minutes_of[event.meter, event.customer].remove(event)
        event.error_code = error_code

    def alter(self, number: int, value: str, timestamp: int) -> None:
        """Count this event, which counts, with another value or at another time (seconds since 1970)."""
        event = self._events[number - 1]
        assert event.customer is not None, "what counts has a customer"
        minutes = self._minutes_of[event.meter, event.customer]
        minutes.remove(event)
        event.value, event.timestamp = sys.intern(value), timestamp
        minutes.add(event)

    def counting(self, meter: str, customer: str, start: int, end: int) -> Iterator[MeterEvent]:
        """The accepted events of one customer and meter with event time in [start, end), ordered by minute, then by receipt."""
        minutes = self._minutes_of.get((meter, customer))
        return iter(()) if minutes is None else minutes.between(start, end)
