"""Everything the simulator remembers, and the only place where it changes. Knows nothing of HTTP.

A request's changes form a transaction: resources call `put`, `add_meter_event`, …; then the gateway calls `commit`, which writes them
to the journal as one line, or `rollback`, which undoes them. Stored objects are never modified in place, only replaced.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sandbox.stripe_simulator.agenda import Agenda
from sandbox.stripe_simulator.clock import ClockSetting, SimulatorClock
from sandbox.stripe_simulator.idempotency import IdempotencyStore, KeptAnswer
from sandbox.stripe_simulator.journal import Change, Journal
from sandbox.stripe_simulator.meter_event_log import MeterEvent, MeterEventLog

JsonObject = dict[str, Any]

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
#: By the value of a byte; that some characters are a little likelier than others does not matter.
_TO_BASE62 = (_BASE62 * 5)[:256].encode()

#: Kind of object → prefix and number of characters behind it, as Stripe's ids look.
_ID_SHAPES = {
    "account": ("acct_1", 15),
    "customer": ("cus_", 14),
    "product": ("prod_", 14),
    "price": ("price_1", 23),
    "meter": ("mtr_test_61", 28),
    "subscription": ("sub_1", 23),
    "subscription_item": ("si_", 14),
    "invoice": ("in_1", 23),
    "invoice_item": ("ii_1", 23),
    "credit_note": ("cn_1", 23),
    "credit_note_line": ("cnli_1", 23),
    "refund": ("re_1", 23),
    "core_event": ("evt_test_65", 44),
    "event": ("evt_1", 23),
    "webhook_endpoint": ("we_1", 23),
    "checkout_session": ("cs_test_a1", 56),
    "checkout_item": ("li_1", 23),
}

#: Collections whose changes somebody looks at afterwards: what time will do to an object depends on it, or it is to be delivered.
#: Changed items are noticed as their subscription.
_NOTICED = ("subscriptions", "invoices", "checkout_sessions", "core_events", "webhook_deliveries")


#: What objects in older journals, such as that of a sandbox that was set up long ago, do not hold yet.
_ADDED_SINCE: Mapping[str, JsonObject] = {
    "subscriptions": {"left_charges": [], "rolled_over_at": None},
    "subscription_items": {"price_since": 0},
    "invoices": {"edits": [], "marked_uncollectible_at": None, "pause_behavior": None, "starting_balance": 0},
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the control routes can set."""

    #: Received events show in summaries this long after receipt. Stripe publishes no bound; this is long enough to notice.
    summary_delay_seconds: float = 90.0
    #: Every answer under /v1 waits this long, in the system's time, before it is worked out; its idempotency key is in use meanwhile.
    latency_seconds: float = 0.0
    #: Drafts finalise so long after they were made; an hour unless the account says otherwise, as at Stripe.
    invoice_grace_seconds: float = 3600.0
    #: The list of events shows one so long after it happened; Stripe's is said to be eventually consistent.
    events_delay_seconds: float = 0.0
    #: Usage dated before its item's price was changed or removed is taken so long after that; a year means: until the invoice is final.
    left_price_seconds: float = 31_536_000.0


class Collection:
    """The objects of one kind, by id, in order of creation. Deleted objects stay, marked `deleted`, since Stripe still answers for some."""

    def __init__(self, grouped_by: str | None = None) -> None:
        self._objects: dict[str, JsonObject] = {}
        self._grouped_by = grouped_by
        self._groups: dict[str | None, dict[str, None]] = {}

    def get(self, object_id: str) -> JsonObject | None:
        return self._objects.get(object_id)

    def newest_first(self) -> Iterator[JsonObject]:
        return reversed(self._objects.values())

    def newest_first_of(self, group: str | None) -> Iterator[JsonObject]:
        """Only the objects whose `grouped_by` member, which never changes, has this value."""
        return (self._objects[object_id] for object_id in reversed(self._groups.get(group, {})))

    def store(self, stored: JsonObject) -> None:
        self._objects[stored["id"]] = stored
        if self._grouped_by is not None:
            self._groups.setdefault(stored[self._grouped_by], {})[stored["id"]] = None

    def forget(self, object_id: str) -> None:
        stored = self._objects.pop(object_id)
        if self._grouped_by is not None:
            del self._groups[stored[self._grouped_by]][object_id]


class State:
    """All of the simulator's memory. With a journal, it begins where the journal ends."""

    def __init__(self, clock_setting: ClockSetting, journal: Journal | None = None) -> None:
        self._first_clock_setting = clock_setting
        self._journal = journal
        self._changes: list[Change] = []
        self._undo: list[Callable[[], None]] = []
        self._forget_everything(clock_setting)
        if journal is not None:
            for changes in journal.replay():
                for change in changes:
                    self._apply(change)
            self.start_count += 1
            journal.append([["started"]])

    def _forget_everything(self, clock_setting: ClockSetting) -> None:
        self.clock = SimulatorClock(clock_setting)
        self.settings = Settings()
        #: how often a simulator has been started on this journal; tells the requests of one process from those of the next
        self.start_count = 0
        #: of the request that is being executed, where it has one; neither holds for what time alone does
        self.idempotency_key: str | None = None
        self.api_version: str | None = None
        self.request_id: str | None = None
        self.customers = Collection()
        self.products = Collection()
        self.prices = Collection()
        self.meters = Collection()
        self.subscriptions = Collection(grouped_by="customer")
        self.subscription_items = Collection()
        self.usage_records = Collection(grouped_by="subscription_item")
        #: those of no subscription under None
        self.invoices = Collection(grouped_by="subscription")
        self.invoice_items = Collection(grouped_by="customer")
        self.credit_notes = Collection(grouped_by="invoice")
        self.core_events = Collection()
        #: ids of the thin events that have been offered to the webhook endpoints
        self.announced = Collection()
        self.events = Collection()
        self.checkout_sessions = Collection()
        self.webhook_endpoints = Collection()
        self.webhook_deliveries = Collection(grouped_by="event")
        self._collections = {
            "customers": self.customers,
            "products": self.products,
            "prices": self.prices,
            "meters": self.meters,
            "subscriptions": self.subscriptions,
            "subscription_items": self.subscription_items,
            "usage_records": self.usage_records,
            "invoices": self.invoices,
            "invoice_items": self.invoice_items,
            "credit_notes": self.credit_notes,
            "core_events": self.core_events,
            "announced": self.announced,
            "events": self.events,
            "checkout_sessions": self.checkout_sessions,
            "webhook_endpoints": self.webhook_endpoints,
            "webhook_deliveries": self.webhook_deliveries,
        }
        self.agenda = Agenda()
        self._noticed: dict[str, dict[str, None]] = {name: {} for name in _NOTICED}
        self.meter_events = MeterEventLog()
        self.idempotency = IdempotencyStore()
        self._counts: dict[str, int] = {}

    # --- Changes within a request -------------------------------------------------------------------------------------------

    def next_number(self, kind: str) -> int:
        """1, 2, 3 … for each kind."""
        number = self._counts.get(kind, 0) + 1
        self._counts[kind] = number
        self._undo.append(lambda: self._counts.__setitem__(kind, number - 1))
        self._changes.append(["count", kind, number])
        return number

    def new_id(self, kind: str) -> str:
        """An id that looks like Stripe's and depends only on how many were made before, so that the same calls give the same ids."""
        return derived_id(kind, self.next_number(kind))

    def put(self, collection_name: str, stored: JsonObject) -> None:
        """Add an object, or replace the one of the same id."""
        collection = self._collections[collection_name]
        before = collection.get(stored["id"])
        collection.store(stored)
        self._notice(collection_name, stored)
        self._undo.append(lambda: collection.forget(stored["id"]) if before is None else collection.store(before))
        self._changes.append(["put", collection_name, stored])

    def take_noticed(self, collection_name: str) -> list[str]:
        """The ids of what was put there since this was last asked, each once; some may be gone again, with the request that put them."""
        noticed = self._noticed[collection_name]
        if not noticed:
            return []
        self._noticed[collection_name] = {}
        return list(noticed)

    def has_noticed(self) -> bool:
        """Whether anything waits to be taken by `take_noticed`."""
        return any(self._noticed.values())

    def notice(self, collection_name: str, object_id: str) -> None:
        self._noticed[collection_name][object_id] = None

    def add_meter_event(self, event: MeterEvent) -> None:
        replaced = self.meter_events.add(event)
        self._undo.append(lambda: self.meter_events.remove_latest(replaced))
        self._changes.append(["event", event.as_change()])

    def cancel_meter_event(self, identifier: str) -> None:
        """Stop counting the latest event of that identifier, from now on."""
        cancelled_at_ms = self.clock.now_ms()
        self.meter_events.cancel(identifier, cancelled_at_ms)
        self._undo.append(lambda: self.meter_events.cancel(identifier, None))
        self._changes.append(["cancel", identifier, cancelled_at_ms])

    def keep_answer(self, key: str, fingerprint: bytes, status: int, answer: bytes | MeterEvent) -> None:
        """Remember an answer under an idempotency key; a meter event must be the one added by this very request."""
        kept = KeptAnswer(fingerprint, status, answer, self.clock.now_ms())
        self.idempotency.keep(key, kept)
        body = answer.decode() if isinstance(answer, bytes) else None
        self._changes.append(["keep", key, fingerprint.hex(), status, body, kept.kept_at_ms])

    def commit(self) -> None:
        """Make the request's changes last. Raises OSError when the journal cannot be written; the process must then end, unanswered."""
        if self._changes and self._journal is not None:
            self._journal.append(self._changes)
        self._changes = []
        self._undo = []

    def rollback(self) -> None:
        """Undo the request's changes."""
        for undo in reversed(self._undo):
            undo()
        self._changes = []
        self._undo = []

    # --- Control --------------------------------------------------------------------------------------------------------------

    def set_clock(self, setting: ClockSetting) -> None:
        """Move or change the clock. Raises ClockRefusal when that would turn time back."""
        self.clock.check_forwards(setting)
        self.clock.setting = setting
        self._changes.append(["clock", setting.frozen_at_ms])
        self.commit()

    def disown_meter_event(self, number: int, error_code: str) -> None:
        """Never count the nth event received again. To be committed by the caller, together with the report of it."""
        self.meter_events.disown(number, error_code)
        self._changes.append(["disown", number, error_code])

    def alter_meter_event(self, number: int, value: str, timestamp: int) -> None:
        """Let the nth event received count otherwise. To be committed by the caller."""
        self.meter_events.alter(number, value, timestamp)
        self._changes.append(["alter", number, value, timestamp])

    def change_settings(self, **changed: float) -> None:
        self.settings = replace(self.settings, **changed)
        self._changes.append(["settings", asdict(self.settings)])
        self.commit()

    def reset(self, setting: ClockSetting | None = None) -> None:
        """Forget everything. The clock begins anew as given, or as it was when the process started; this may turn time back."""
        clock_setting = setting or self._first_clock_setting
        start_count = self.start_count
        self._forget_everything(clock_setting)
        self.start_count = start_count
        if self._journal is not None:
            self._journal.start_over([[["starts", start_count], ["clock", clock_setting.frozen_at_ms]]])

    # --- Replay ---------------------------------------------------------------------------------------------------------------

    def _apply(self, change: Change) -> None:
        match change:
            case ["event", arguments]:
                self.meter_events.add(MeterEvent(*arguments))
            case ["keep", key, fingerprint, status, body, kept_at_ms]:
                answer = self.meter_events.latest() if body is None else body.encode()
                self.idempotency.keep(key, KeptAnswer(bytes.fromhex(fingerprint), status, answer, kept_at_ms))
            case ["put", collection_name, stored]:
                stored = {**_ADDED_SINCE.get(collection_name, {}), **stored}
                self._collections[collection_name].store(stored)
                self._notice(collection_name, stored)
            case ["count", kind, number]:
                self._counts[kind] = number
            case ["cancel", identifier, at_ms]:
                self.meter_events.cancel(identifier, at_ms)
            case ["disown", number, error_code]:
                self.meter_events.disown(number, error_code)
            case ["alter", number, value, timestamp]:
                self.meter_events.alter(number, value, timestamp)
            case ["clock", frozen_at_ms]:
                self.clock.setting = ClockSetting(frozen_at_ms)
            case ["settings", settings]:
                self.settings = Settings(**settings)
            case ["started"]:
                self.start_count += 1
            case ["starts", count]:
                self.start_count = count
            case _:
                raise ValueError(f"the journal holds a change of an unknown kind: {change[:1]}")

    def _notice(self, collection_name: str, stored: JsonObject) -> None:
        if collection_name == "subscription_items":
            self.notice("subscriptions", stored["subscription"])
        elif collection_name in self._noticed:
            self.notice(collection_name, stored["id"])


def derived_id(kind: str, number: int | str) -> str:
    """The id of the nth object of a kind, or of the one that a text tells from its like."""
    prefix, length = _ID_SHAPES[kind]
    return prefix + scrambled(f"{kind}:{number}", length)


def scrambled(text: str, length: int) -> str:
    """Letters and digits (at most 64) that look random and depend on the text alone."""
    return hashlib.blake2b(text.encode(), digest_size=length).digest().translate(_TO_BASE62).decode()
