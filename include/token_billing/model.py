"""The words of the domain as types: reports, destinations, attempts, Stripe's answers and what they mean."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from token_billing.periods import BillingPeriod
from token_billing.rating import Price
from token_billing.windows import Side, Window

#: The one clock that decides "closed", "20 hours" and "35 days"; returns timezone-aware UTC.
Clock = Callable[[], datetime]


class ReportState(StrEnum):
    """The life of a usage report; docs/states.md draws it."""

    FROZEN = "frozen"
    SENDING = "sending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNRESOLVED = "unresolved"
    BILLED = "billed"
    REVOKED = "revoked"
    QUARANTINED = "quarantined"


class QuarantineReason(StrEnum):
    """Why usage cannot be sent."""

    UNKNOWN_TENANT = "unknown_tenant"
    NO_CUSTOMER = "no_customer"
    NO_SUBSCRIPTION_ITEM = "no_subscription_item"
    ITEM_NOT_METERED = "item_not_metered"
    TOO_OLD = "older_than_35_days"
    TOO_MANY_DIGITS = "too_many_digits"
    BEFORE_ADOPTION = "before_adoption"
    REFUSED_AT_GATE = "refused_at_gate"
    DISOWNED = "disowned"
    PERIOD_INVOICED = "period_invoiced"
    BEFORE_SUBSCRIPTION = "before_subscription"
    AFTER_SUBSCRIPTION = "after_subscription"
    ITEM_ENDED = "item_ended"
    CUSTOMER_DELETED = "customer_deleted"
    EXCLUDED_TENANT = "excluded_tenant"


@dataclass(frozen=True)
class StripeAccount:
    """Whose money it is. `id` is None where the key may not read its own account."""

    id: str | None
    livemode: bool

    def __str__(self) -> str:
        return f"{self.id or 'an account whose id the key may not read'} ({'live' if self.livemode else 'test'} mode)"


@dataclass(frozen=True)
class LedgerIdentity:
    """What the ledger is pinned to. `cut_over`: usage before this hour was another job's to bill. `recovered_at`: when it was last
    recovered from an older copy, which may have forgotten what was sent of the hours that had ended by then."""

    ledger_id: str
    account: StripeAccount | None
    cut_over: datetime | None
    recovered_at: datetime | None = None

    def may_have_forgotten(self, window: Window) -> bool:
        """Whether reports of the window may have been sent without this ledger's knowledge."""
        # safeguard: what a restored database may have forgotten
        return self.recovered_at is not None and window.end <= self.recovered_at


@dataclass(frozen=True)
class LedgerMark:
    """How far a ledger is: what no older copy of it can have reached, and no other copy any more."""

    epoch: int
    noted_attempts: int


@dataclass(frozen=True)
class LedgerCopy:
    """A ledger as it lies in the database at hand, whether or not it may be billed from."""

    identity: LedgerIdentity
    mark: LedgerMark
    #: the clusters it was made for, and lies in
    pinned_cluster: int
    this_cluster: int


@dataclass(frozen=True)
class Recovery:
    """What a recovery found and did. `xid_shift`: how much was added to this cluster's transaction ids, all recoveries together;
    `doubtful_reports`: so many reports are read back before anything of them is sent."""

    cause: str
    epoch: int
    xid_shift: int
    doubtful_reports: int


class Sink(StrEnum):
    """Where reports go; fixed for a report by its first attempt (docs/decisions/0007-two-sinks.md)."""

    BILLING_METERS = "billing_meters"
    USAGE_RECORDS = "usage_records"

    @property
    def takes_a_resend_at_any_age(self) -> bool:
        """Whether a report that arrives a second time is never counted twice. Usage records are set, and each has a time of its own;
        a meter event adds, and Stripe knows its identifier again for a day."""
        return self is Sink.USAGE_RECORDS


class Meter(NamedTuple):
    """A billing meter that sums, and the payload keys under which its events carry the customer and the value."""

    id: str
    event_name: str
    customer_payload_key: str
    value_payload_key: str


@dataclass(frozen=True)
class MeteredItem:
    """A subscription item, the meter its price is backed by (None where it is of the legacy metered billing system), and its present
    billing period; `problem` says why usage cannot be reported to it. `price` is None where it could not be read: then its usage has no
    known value in money."""

    usage_item_id: str
    price_id: str | None = None
    meter: Meter | None = None
    problem: str | None = None
    subscription_id: str | None = None
    period: BillingPeriod | None = None
    is_first_period: bool = False
    price: Price | None = None


class Destination(NamedTuple):
    """Where a report goes, fixed for ever by its first attempt. `meter` is None for an item of the legacy metered billing system."""

    customer_id: str
    usage_item_id: str
    meter: Meter | None

    @property
    def sink(self) -> Sink:
        """Which sink bills such an item."""
        return Sink.USAGE_RECORDS if self.meter is None else Sink.BILLING_METERS

    @property
    def lease(self) -> tuple[str, str]:
        """What a lease covers: customer id and event name, or the item alone, whichever customer a tenant names beside it."""
        return ("", self.usage_item_id) if self.meter is None else (self.customer_id, self.meter.event_name)


@dataclass(frozen=True)
class UsageTotal:
    """The unbilled tokens (whole, input and output alike) and rows of one tenant on one side of a window."""

    tenant_id: str
    side: Side
    row_count: int
    token_count: int


class SplittableReport(NamedTuple):
    """A report that was never attempted, and the fences that say which rows it holds."""

    id: int
    tenant_id: str
    side: Side
    revision: int
    row_count: int
    token_count: int
    snapshot: str
    earlier_snapshot: str | None


class SendableReport(NamedTuple):
    """A report that may be sent now by the holder of its customer's lease.

    `first_attempted_at` and `may_have_arrived` tell of earlier attempts: whether there was one, and whether any of them has
    no known answer. `event_time` is None until the first attempt; `used_event_times` are those of the other reports of the hour
    that go to the same customer and meter, or item. `key_number` is the number behind the idempotency key (0: the identifier alone).
    """

    id: int
    side: Side
    identifier: str
    token_count: int
    destination: Destination
    attempt_count: int
    first_attempted_at: datetime | None
    may_have_arrived: bool
    key_number: int
    event_time: datetime | None
    used_event_times: tuple[datetime, ...]


@dataclass(frozen=True)
class Answer:
    """One answer of Stripe's to one request: the HTTP status, and what its error body and headers say; `object_id`: what it made."""

    http_status: int
    error_type: str | None = None
    error_code: str | None = None
    message: str | None = None
    replayed: bool = False
    retry_after_s: float | None = None
    object_id: str | None = None


@dataclass(frozen=True)
class NoAnswer:
    """The request ended without an answer. `never_left`: no connection was made, so Stripe cannot have seen it."""

    message: str
    never_left: bool


@dataclass(frozen=True)
class Accepted:
    """Stripe has the report, by this request or by an earlier one of ours."""


@dataclass(frozen=True)
class Rejected:
    """Stripe refused this report itself, and no earlier attempt can have got through."""

    message: str
    http_status: int
    code: str | None = None


@dataclass(frozen=True)
class Unresolved:
    """Whether Stripe counted the report is not known. `may_have_arrived`: by this request or one before it, it may have.
    `new_key`: the answer was a stored one, the next try needs another idempotency key. `try_again`: may be sent again soon."""

    message: str
    http_status: int | None = None
    may_have_arrived: bool = True
    try_again: bool = True
    new_key: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Undelivered:
    """Stripe certainly did nothing: it was not reached, or it turned the call away before looking at the report. `wrong_sink`: because
    the item is billed by the other sink."""

    message: str
    http_status: int | None = None
    try_again: bool = True
    retry_after_s: float | None = None
    wrong_sink: bool = False


Outcome = Accepted | Rejected | Unresolved | Undelivered


class AttemptResult(NamedTuple):
    """How one noted attempt at one report ended; `may_have_arrived`: by this attempt or one before it. `started` is False
    where it was given back before anything was written to Stripe."""

    report_id: int
    attempt: int
    identifier: str
    outcome: Outcome
    may_have_arrived: bool
    key_number: int
    started: bool


@dataclass(frozen=True)
class Shard:
    """One of the few parts in which a large window is pushed; tenants are spread by a hash of their id."""

    number: int
    count: int

    @property
    def parameters(self) -> dict[str, int]:
        """As the queries name it."""
        return {"shard": self.number, "shard_count": self.count}


@dataclass(frozen=True)
class FrozenWindow:
    """What a freeze did: the revision it made (None where the window held nothing new) and what waits to be pushed."""

    window: Window
    revision: int | None
    row_count: int
    token_count: int
    report_count: int
    quarantined_count: int
    pending_count: int


@dataclass(frozen=True)
class PushedShard:
    """How a push left its shard: reports by state."""

    window: Window
    shard: Shard
    reports: dict[ReportState, int]


@dataclass(frozen=True)
class Disagreement:
    """A report whose rows no longer add up to what was frozen: tokens and rows, expected and found."""

    report_id: int
    tenant_id: str
    expected_token_count: int
    found_token_count: int
    expected_row_count: int
    found_row_count: int


@dataclass(frozen=True)
class MarkedWindow:
    """What mark_billed did in one window."""

    window: Window
    report_count: int
    row_count: int


class RevocationCause(StrEnum):
    """What proved that Stripe disowned a report."""

    ERROR_REPORT = "error_report"
    SETTLED_SUMMARY = "settled_summary"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Disowned:
    """What is known of a report that Stripe disowned. `evidence`: Stripe's own code and message, or the summary's figures.
    `identifier`: the one that was disowned, so that news that comes twice does not disown what was sent since; None: the current one."""

    report_id: int
    cause: RevocationCause
    evidence: str
    identifier: str | None = None


@dataclass(frozen=True)
class RevocableReport:
    """A report locked for its revocation, and the fences that say which rows it holds."""

    id: int
    tenant_id: str
    window: Window
    side: Side
    revision: int
    generation: int
    identifier: str
    state: ReportState
    attempt_count: int
    row_count: int
    token_count: int
    event_time: datetime
    #: A restored database found it by its whole hour: it counts, under whatever identifier.
    forgotten: bool
    snapshot: str
    earlier_snapshot: str | None

    @property
    def was_billed(self) -> bool:
        """Whether its rows are marked."""
        return self.state == ReportState.BILLED


@dataclass(frozen=True)
class Revocation:
    """A report as it was before it was revoked, the identifier it has now, and why it is quarantined (None: it will be sent)."""

    report: RevocableReport
    identifier: str
    reason: QuarantineReason | None


@dataclass(frozen=True)
class Conservation:
    """The conservation law for one tenant and window, in tokens: `row_tokens` must be the sum of the other four, and the
    tokens of the rows marked billed those of the billed reports."""

    tenant_id: str
    window: Window
    row_tokens: int
    billed_tokens: int
    pending_tokens: int
    unfrozen_tokens: int
    quarantined_tokens: int
    marked_tokens: int

    @property
    def holds(self) -> bool:
        # safeguard: billed rows are those of billed reports
        return self.holds_beside_another_job and self.marked_tokens == self.billed_tokens

    @property
    def holds_beside_another_job(self) -> bool:
        """The law where another job billed some of the rows, as it did before the cut-over hour."""
        return self.row_tokens == self.marked_tokens + self.pending_tokens + self.unfrozen_tokens + self.quarantined_tokens


@dataclass(frozen=True)
class HeldReport:
    """A report that waits for a person's decision. `token_count` is what the tenant's whole hour came to, `limit_tokens` what the
    gate allows."""

    report_id: int
    tenant_id: str
    window: Window
    reason: str
    token_count: int
    limit_tokens: int
