"""What may go wrong in a history, as plain data: kills, and what becomes of requests."""

from dataclasses import dataclass
from typing import Literal

Door = Literal["statement", "commit", "request"]

#: What may become of a request that reports usage.
TROUBLES = (
    "answer lost",
    "request lost",
    "effect comes late",
    "500 without effect",
    "500 after effect",
    "stored 500 without effect",
    "stored 500 after effect",
    "429",
    "garbled answer",
    "no connection",
)

#: What a failing read looks like; whether it reached Stripe makes no difference.
READ_TROUBLES = ("request lost", "500 without effect", "429", "garbled answer", "no connection")

#: What all requests meet while Stripe is out. In the last kind Stripe goes on counting and only its answers are lost.
OUTAGES = ("no connection", "request lost", "500 without effect", "answer lost")


@dataclass(frozen=True)
class Kill:
    """Dies at the n-th door of a kind, before or after it. `late_commit`: the COMMIT it was about to send still arrives, later."""

    door: Door
    nth: int
    after: bool
    late_commit: bool = False


@dataclass(frozen=True)
class RunTroubles:
    """What the requests of one run meet: by customer and how many requests went to it before, so that the order in which
    customers are served makes no difference. "" is no trouble."""

    events: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    #: The customer's first trouble is also that of every further request of the run to it.
    persistent: bool = False

    def of_event(self, customer_number: int, nth: int) -> str:
        if not self.events:
            return ""
        return self.events[(customer_number + (0 if self.persistent else 5 * nth)) % len(self.events)]

    def of_read(self, nth: int) -> str:
        return self.reads[nth] if nth < len(self.reads) else ""
