"""What Stripe may count too much, and how asking it to cancel that ends, as types."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class GivenUpReport(NamedTuple):
    """A settled report of which an event may still arrive under an identifier that it gave up for a new generation.

    `identifiers`: those in question, the likeliest first. `expected_tokens`: what its minute must hold at Stripe without them;
    `others_in_doubt`: whether other reports of that minute are without an answer. `unexplained_tokens`: what the minute was last
    seen to hold beyond all that our events explain."""

    id: int
    tenant_id: str
    token_count: int
    customer_id: str
    meter_id: str
    minute: datetime
    identifiers: list[str]
    expected_tokens: int
    others_in_doubt: bool
    unexplained_tokens: int


class Surplus(NamedTuple):
    """An event that Stripe has beside the one that counts. `key_number` is the number behind the idempotency key of its cancellation."""

    id: int
    tenant_id: str
    identifier: str
    event_name: str
    token_count: int
    key_number: int


@dataclass(frozen=True)
class Cancelled:
    """Stripe does not count the event, by this request or by an earlier one of ours."""


@dataclass(frozen=True)
class NotCancellable:
    """Stripe refuses to cancel the event, and asking again cannot help."""

    message: str


@dataclass(frozen=True)
class StillSurplus:
    """Whether Stripe cancelled the event is not known: to be asked again, under another idempotency key where `new_key` says so."""

    message: str
    http_status: int | None = None
    new_key: bool = False


Cancellation = Cancelled | NotCancellable | StillSurplus
