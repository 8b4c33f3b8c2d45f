"""A random history as plain data: who uses what when, which hours are billed, who interferes, and what goes wrong on the way."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from crash.faults import Kill, RunTroubles
from crash.following import Following, Sync

#: Tenants by who pays for them: a group's tokens go to the group's customers and to nobody else's, whatever is relinked.
GROUPS = {"a": "ab", "b": "ab", "c": "c", "d": "d", "e": "e"}
LINKED = tuple(GROUPS)
UNLINKED = "unlinked"
UNLINKED_KINDS = ("no customer", "no subscription item", "unknown tenant")

#: Tenants that are moved between two customers of their group's.
RELINKED = ("b", "c", "d")

#: A history begins here; nothing in it may depend on today.
EPOCH = datetime(2026, 3, 1, tzinfo=UTC)

DAY = 24 * 60

#: Tenant, minute of its event since the history's beginning, input and output tokens.
Row = tuple[str, float, int, int]

#: Where a run begins; clearing a task in Airflow clears those behind it too.
Stage = Literal["freeze", "push", "mark_billed"]


@dataclass(frozen=True)
class Pass:
    """Time passes."""

    minutes: int


@dataclass(frozen=True)
class Record:
    """Usage is recorded: at once, by a transaction that stays open (`writer`, ended by EndWriter), or not at all after all."""

    rows: tuple[Row, ...]
    writer: int | None = None
    rolled_back: bool = False


@dataclass(frozen=True)
class EndWriter:
    writer: int
    commit: bool


@dataclass(frozen=True)
class Outage:
    """Stripe is out for so long, in one of the ways of OUTAGES."""

    kind: str
    minutes: int


@dataclass(frozen=True)
class ClockJump:
    """From now on every worker's clock is wrong by so much; Stripe's is right."""

    minutes: int


@dataclass(frozen=True)
class Disown:
    """Stripe finds that it does not count some of what it accepted: of our events the n-th, by identifier, for each number."""

    picks: tuple[int, ...]
    #: Whether it says so with an error report that somebody acts on, by the next Revoke; else after the history's end.
    noticed: bool


@dataclass(frozen=True)
class Foreign:
    """Another system reports usage to the same customers and meters: tenant, minute since the history's beginning, tokens."""

    events: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Pause:
    """All sending is paused, if it is not."""


@dataclass(frozen=True)
class Resume:
    """Sending is resumed, if it is paused."""


@dataclass(frozen=True)
class Decide:
    """Somebody decides about what is held, in turn by these: approve or refuse."""

    approvals: tuple[bool, ...]


@dataclass(frozen=True)
class Relink:
    """The tenant is linked to its group's other customer."""

    tenant: str


@dataclass(frozen=True)
class Revoke:
    """Somebody gives back what Stripe disowned, as far as it is noticed; not `resend`: it is quarantined."""

    resend: bool = True
    kill: Kill | None = None


@dataclass(frozen=True)
class BackUp:
    """The database is copied."""


@dataclass(frozen=True)
class Restore:
    """The copy takes the database's place, a run meets it as it is, and somebody recovers it, in the second try where one is killed."""

    meeting_it: "Run"
    kill: Kill | None = None


#: What people do; it may happen beside runs.
Act = Pause | Resume | Decide | Relink | Revoke


@dataclass(frozen=True)
class Run:
    """One worker's way through the stages of an hour; None: of whatever late usage finds.

    `looks`: before these statements the ledger is looked at from outside. `pauses`: minutes between one stage and the next.
    `clock_off`: minutes by which this worker's clock is wrong, beside what all clocks are."""

    hour: int | None
    kill: Kill | None = None
    troubles: RunTroubles = field(default_factory=RunTroubles)
    looks: frozenset[int] = frozenset()
    tries: int = 3
    shard_count: int = 1
    pauses: tuple[int, ...] = ()
    first_stage: Stage = "freeze"
    clock_off: int = 0
    #: Where subscriptions are followed, it asks first whether the facts are known, as the DAGs do.
    awaits_facts: bool = True


@dataclass(frozen=True)
class Bill:
    """Runs, all at once, and what people do and syncs do meanwhile."""

    runs: tuple[Run, ...]
    acts: tuple[Act, ...] = ()
    syncs: tuple[Sync, ...] = ()


Step = Pass | Record | EndWriter | Outage | ClockJump | Disown | Foreign | BackUp | Restore | Act | Bill


@dataclass(frozen=True)
class Plan:
    seed: int
    unlinked_kind: str
    steps: tuple[Step, ...]
    #: Hours of more tokens are held for a decision.
    gate_tokens: int | None = None
    #: What is decided, in turn, about what is still held at the history's end.
    last_decisions: tuple[bool, ...] = (True,)
    #: Reports go to usage records of the legacy metered billing system instead of meters.
    usage_records: bool = False
    #: What happens at Stripe where the tenants' subscriptions are followed.
    following: Following | None = None
