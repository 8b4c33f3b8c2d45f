"""Settings that the environment may override; names and defaults live here and nowhere else."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from token_billing.catalog import PRICES
from token_billing.errors import OperatorNeeded
from token_billing.model import Shard, Sink
from token_billing.periods import LONGEST_GRACE
from token_billing.reconciliation import EXACT, Tolerance
from token_billing.targets import is_live


@dataclass(frozen=True)
class Gates:
    """What a tenant's hour may come to before a person is asked; None is no gate."""

    #: Tokens in all.
    largest_total: int | None = None
    #: Times the tenant's largest hour of the four weeks before; a tenant with less than a day of billed hours is not judged by it.
    multiple_of_history: float | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Gates":
        """Raises OperatorNeeded for a value that is not a positive number."""
        total, multiple = "BILLING_GATE_TOKENS", "BILLING_GATE_TIMES_HISTORY"
        return cls(
            largest_total=int(_positive(environment, total, 0)) if environment.get(total) else None,
            multiple_of_history=_positive(environment, multiple, 0) if environment.get(multiple) else None,
        )


@dataclass(frozen=True)
class PushSettings:
    """How fast, how many at once and how long. Stripe takes 1,000 meter events/s in live mode; in a test account they count
    in its basic limit of 25 calls/s, as reads of one endpoint do everywhere (docs.stripe.com/rate-limits): the defaults leave
    room for other callers."""

    calls_per_second: float
    reads_per_second: float = 20.0
    concurrency: int = 64
    #: Requests for one noted attempt, and the first wait between two; what is open after them waits for the task's next try.
    tries: int = 5
    backoff_s: float = 0.2
    lease: timedelta = timedelta(seconds=60)
    largest_chunk: int = 1000
    gates: Gates = Gates()
    #: Where reports go that were never attempted: billing meters, or the usage records of an account on the legacy metered billing system.
    sink: Sink = Sink.BILLING_METERS

    @property
    def chunk_size(self) -> int:
        """Reports to lease, note and record together: what the rate can send well within one lease, and no more than so many that
        recording the last, when nothing is on the network any more, is short."""
        return max(1, min(self.largest_chunk, int(self.calls_per_second * self.lease.total_seconds() / 4)))

    @classmethod
    def from_environment(cls, secret_key: str, environment: Mapping[str, str] = os.environ) -> "PushSettings":
        """Raises OperatorNeeded for a value that is not a positive number, or no sink."""
        sink = _sink(environment)
        default_rate = 800.0 if is_live(secret_key) and sink is Sink.BILLING_METERS else 20.0  # usage records count in the basic limit
        return cls(
            calls_per_second=_positive(environment, "BILLING_STRIPE_CALLS_PER_SECOND", default_rate),
            reads_per_second=_positive(environment, "BILLING_STRIPE_READS_PER_SECOND", cls.reads_per_second),
            concurrency=int(_positive(environment, "BILLING_PUSH_CONCURRENCY", cls.concurrency)),
            lease=timedelta(seconds=_positive(environment, "BILLING_LEASE_SECONDS", cls.lease.total_seconds())),
            gates=Gates.from_environment(environment),
            sink=sink,
        )


@dataclass(frozen=True)
class ReconcileSettings:
    """How far our books and Stripe's may lie apart, and how long a draft is held at most for what is missing on it."""

    tolerance: Tolerance = EXACT
    #: Stripe takes usage on a draft for 72 hours at most (the account's longest grace); a day less leaves time to act on the alert.
    longest_hold: timedelta = timedelta(hours=48)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ReconcileSettings":
        """Raises OperatorNeeded for a value that makes no sense."""
        tokens, cents, hours = "BILLING_TOLERANCE_TOKENS", "BILLING_TOLERANCE_CENTS", "BILLING_HOLD_HOURS"
        held = _positive(environment, hours, cls.longest_hold / timedelta(hours=1))
        if held > LONGEST_GRACE / timedelta(hours=1):
            raise OperatorNeeded(f"setting {hours} is {held:g}; Stripe keeps a draft for 72 hours at most")
        return cls(Tolerance(_whole(environment, tokens), _whole(environment, cents)), timedelta(hours=held))


def price_overrides(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The prices that settings STRIPE_PRICE_ID_… name in the catalogue's stead, by the catalogue's names. Whether they are what the
    catalogue says is set-up's to find out."""
    named = {name: environment.get(price.setting or "", "").strip() for name, price in PRICES.items()}
    return {name: price_id for name, price_id in named.items() if price_id}


#: One mapped push task for so many reports, which one process sends in two seconds, but never more than a few: a mapped task costs
#: 0.2 to 0.4 s of scheduling, and all of them share one rate.
REPORTS_PER_SHARD = 5000
MOST_SHARDS = 4


def shards_for(report_count: int) -> list[Shard]:
    """The shards in which so many reports are pushed; none for none."""
    count = min(MOST_SHARDS, math.ceil(report_count / REPORTS_PER_SHARD))
    return [Shard(number, count) for number in range(count)]


def _sink(environment: Mapping[str, str]) -> Sink:
    text = environment.get("BILLING_SINK", "").strip() or Sink.BILLING_METERS
    if text not in list(Sink):
        raise OperatorNeeded(f"setting BILLING_SINK is {text!r}; it takes {' or '.join(Sink)}")
    return Sink(text)


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "").strip() or "0"
    if not text.isdecimal():
        raise OperatorNeeded(f"setting {name} is {text!r}; it takes a whole number, not negative")
    return int(text)


def _positive(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise OperatorNeeded(f"setting {name} is {text!r}; it takes a positive number")
    return value
