"""Errors that are planted in the months: each in the billing of a tenant of its own, with the cause that must be named for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Literal

from dateutil.relativedelta import relativedelta

from months.plans import Act, Call, Planting
from months.price_list import Step, Terms

#: Before the run that bills an hour, right after it, when the period's draft is there, or when it is final.
When = Literal["before a run", "after a run", "draft", "final"]

#: Prices that one tenant alone has, so that an edit, or what Stripe tells of a whole meter, is nobody else's.
PRIVATE = (
    Terms("private meter", "per_unit", (Step(None, "0.002"),)),
    Terms("private each", "per_unit", (Step(None, "0.0025"),)),
    Terms("private tiers", "graduated", (Step(200_000, "0"), Step(None, "0.0011"))),
)


@dataclass(frozen=True)
class Kind:
    """What is planted when, and the cause that is right. `also`: what follows from it, and may be told beside it. `plan`: what the tenant
    buys."""

    cause: str
    when: When
    also: tuple[str, ...] = ()
    plan: str = "pure"


#: What is done about an event is done amid its period.
AFTER_ITS_BEGINNING, BEFORE_ITS_END = timedelta(days=2), timedelta(days=12)

#: Usage that Stripe lost is missing on the invoice as well, what it has too much is on it twice; an hour that differs is not confirmed, so
#: that its period is not complete.
_MISSING, _TWICE = ("missing_hour", "period_incomplete"), ("duplicate", "period_incomplete")

KINDS: dict[str, Kind] = {
    "an event is lost": Kind("missing_at_stripe", "after a run", _MISSING),
    "an event is doubled": Kind("surplus_at_stripe", "after a run", _TWICE),
    "an event's value is raised": Kind("foreign_identifier", "after a run", _TWICE),
    "an event's value is lowered": Kind("missing_at_stripe", "after a run", _MISSING),
    "an event is rejected beyond the samples": Kind("rejected_asynchronously", "after a run", (*_MISSING, "meter_error"), "private meter"),
    "a foreign event in an hour of ours": Kind("foreign_identifier", "after a run", _TWICE),
    "a foreign event in an hour of none": Kind("foreign_identifier", "after a run", _TWICE),
    "the customer is deleted, with an event": Kind("unknown_customer", "after a run", (*_MISSING, "cancelled_without_invoice")),
    "an event is dated before its period": Kind("missing_at_stripe", "after a run", (*_MISSING, *_TWICE, "foreign_identifier")),
    "a row is marked by another": Kind("rows_changed", "before a run"),
    "the invoice becomes final under a push": Kind("late_after_finalisation", "before a run", ("period_incomplete",)),
    "a second item on the meter": Kind("duplicate", "after a run", ("unlinked_tenant",)),
    "an item that nobody is linked to": Kind("unlinked_tenant", "after a run", ("foreign_identifier",)),
    "a price is edited": Kind("wrong_price", "draft", plan="private each"),
    "a tier's end is edited": Kind("wrong_tier", "draft", plan="private tiers"),
    "a line's period is shifted": Kind("wrong_period", "final", ("missing_hour",)),
    "a line is added by hand": Kind("manual_line", "final"),
    "a line's amount is changed": Kind("wrong_price", "final"),
    "a line's quantity is changed": Kind("unexplained", "final"),
    "the currency is changed": Kind("currency", "final"),
    "a line names another price": Kind("wrong_price", "final"),
    "an item's usage is billed twice": Kind("duplicate", "final"),
    "a line is dropped": Kind("missing_hour", "final"),
    "a row is changed": Kind("rows_changed", "final"),
    "a row is deleted": Kind("rows_changed", "final"),
}


def draw_plantings(
    rng: Random, kinds: Sequence[str], begin: datetime, end: datetime, buys_within: timedelta, active: float
) -> tuple[list[Planting], list[Act], list[Call]]:
    """A tenant for each kind, what it buys, and what it uses: something amid each period, in hours that they share, and around its end."""
    plantings, acts, calls = [], [], []
    hours = [begin + timedelta(hours=n) for n in range(int((end - begin) / timedelta(hours=1)))]
    busy = [hour for hour in hours if rng.random() < active]
    for number, kind in enumerate(kinds, 1):
        tenant = f"planted-{number:02}"
        at = begin + timedelta(seconds=rng.randint(60, int(buys_within.total_seconds())))
        acts.append(Act(at, tenant, "buy", KINDS[kind].plan))
        ends = [at + relativedelta(months=n) for n in range(1, 100) if at + relativedelta(months=n) < end]
        plantings.append(Planting(kind, tenant, at, rng.choice(ends)))
        for since, until in zip([at, *ends], [*ends, end], strict=True):
            amid = [hour for hour in busy if since + AFTER_ITS_BEGINNING <= hour and hour + timedelta(hours=1) <= until - BEFORE_ITS_END]
            times = {hour + timedelta(seconds=rng.randrange(3600)) for hour in rng.sample(amid, min(5, len(amid)))}
            in_its_hour = max(1, 60 * until.minute + until.second)
            times |= {until - timedelta(seconds=rng.randint(1, in_its_hour)), since + timedelta(seconds=rng.randint(1, 1500))}
            for moment in sorted(times):
                if since < moment < min(until, end):
                    calls.append(Call(moment, moment, tenant, rng.randint(100_000, 700_000), rng.randint(0, 90_000)))
    return plantings, acts, calls
