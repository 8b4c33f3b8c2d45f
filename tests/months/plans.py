"""What happens in a world of months, as plain data: what customers do at Stripe, what they use, and what is out when."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from dateutil.relativedelta import relativedelta

#: A checkout; the other plan by other items, or as another price of the same item; a plan without tokens; an end with the period, or at
#: once with a last invoice; a pause of collection, and its end.
ActKind = Literal["buy", "other items", "other price", "no tokens", "leave with the period", "leave at once", "pause", "resume"]


@dataclass(frozen=True, order=True)
class Act:
    """A tenant's customer does something at Stripe. `plan`: what is bought or changed to; `trial_days`: of a checkout."""

    at: datetime
    tenant: str
    kind: ActKind
    plan: str = ""
    trial_days: int = 0


@dataclass(frozen=True)
class Planting:
    """An error of a kind (`plantings.KINDS`), to be planted in the billing period of the tenant's that ends at `period_end`."""

    kind: str
    tenant: str
    bought_at: datetime
    period_end: datetime

    @property
    def period_start(self) -> datetime:
        return max(self.bought_at, self.period_end - relativedelta(months=1))


class Call(NamedTuple):
    """One metered call: when its row is recorded, and what it says."""

    recorded_at: datetime
    at: datetime
    tenant: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Outage:
    """`of`: Stripe, which then answers as the kind says, or the scheduler, which then runs nothing."""

    since: datetime
    until: datetime
    of: Literal["Stripe", "scheduler"]
    kind: str = ""

    @property
    def length(self) -> timedelta:
        return self.until - self.since


@dataclass(frozen=True)
class Plan:
    """What is to be lived from `begin` to `end`; what is open then is waited for. `customer_of`: tenants that buy as another's customer."""

    seed: int
    begin: datetime
    end: datetime
    tenants: tuple[str, ...]
    acts: tuple[Act, ...]
    calls: tuple[Call, ...]
    outages: tuple[Outage, ...]
    customer_of: dict[str, str] = field(default_factory=dict)
    #: From then on the next event is disowned: Stripe accepted it and says later that it does not count.
    disownings: tuple[datetime, ...] = ()
    plantings: tuple[Planting, ...] = ()
