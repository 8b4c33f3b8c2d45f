"""Reports of which nobody here knows whether they arrived, and what Stripe's own figures say of them, as types."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from token_billing.model import Destination
from token_billing.windows import Side


@dataclass(frozen=True)
class DoubtfulReport:
    """A report that may have arrived and is looked for at Stripe: in the summary of its own minute, or of its whole hour where the
    database may have forgotten when it was dated. A usage record shows only in the total of its item's billing period.

    `other_tokens`: what that span must hold of the customer's other reports; `doubtful_tokens`: what it holds besides if those of them
    arrived that are in doubt too. `absent_since`: when the summary was first seen without it."""

    id: int
    tenant_id: str
    side: Side
    span: Side
    destination: Destination
    revision: int
    generation: int
    token_count: int
    event_time: datetime
    forgotten: bool
    absent_since: datetime | None
    other_tokens: int
    doubtful_tokens: int


class ReadBack(StrEnum):
    """What Stripe's summary says of a report."""

    PRESENT = "present"
    ABSENT = "absent"
    PROVEN_ABSENT = "proven absent"
    UNCLEAR = "unclear"
