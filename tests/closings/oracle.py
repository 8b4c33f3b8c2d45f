"""What must have become of every invoice, worked out from what was recorded, what Stripe received and when it was final. Imports nothing of
the product."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from crash.stripe_account import StripeAccount

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)

#: How long a draft waits for what is missing, as the runbook says.
LIMIT = 48 * HOUR

#: Somebody has to know well before an incomplete draft is final; and a complete one is final soon: half an hour, and a run's lateness.
AHEAD, SOON = 75 * MINUTE, 35 * MINUTE


@dataclass(frozen=True)
class Look:
    """A closing run: when, which invoices its check told of, when drafts were to be final by then, and whether it looked at all of them."""

    at: datetime
    told: frozenset[str]
    finalises_at: Mapping[str, datetime]
    went_through: bool


@dataclass(frozen=True)
class Row:
    """A row of usage, when it was recorded, and by when it was known to be settled: confirmed, or kept aside by a decision."""

    at: datetime
    recorded_at: datetime
    settled_at: datetime | None
    tokens: int
    #: Kept aside with somebody's knowledge.
    is_aside: bool


@dataclass
class Truth:
    """What happened to one tenant's invoice, besides what the simulator tells."""

    tenant: str
    customer_id: str
    subscription_id: str
    begin: datetime
    end: datetime
    rows: Sequence[Row]
    #: When the last hour of the period was frozen.
    frozen_at: datetime | None
    #: A person finalised it, or took its time into his own hands.
    is_by_hand: bool


@dataclass
class Judgement:
    problems: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)


def judge(account: StripeAccount, truths: Sequence[Truth], looks: Sequence[Look], now: datetime) -> Judgement:
    """`looks`: of all runs, in order."""
    judgement = Judgement()
    events = account.meter_events()
    for truth in truths:
        listed = account.get(f"invoices?subscription={truth.subscription_id}&limit=100")["data"]
        for invoice in listed:
            if invoice["billing_reason"] != "subscription_create" and invoice["created"] == int(truth.end.timestamp()):
                _judge(judgement, invoice, truth, events, looks)
    return judgement


def _judge(judgement: Judgement, invoice: dict[str, Any], truth: Truth, events: Sequence[Mapping[str, Any]], looks: Sequence[Look]) -> None:
    figures, appeared = judgement.figures, datetime.fromtimestamp(invoice["created"], UTC)
    finalized = invoice["status_transitions"]["finalized_at"]
    final = datetime.fromtimestamp(finalized, UTC) if finalized else None
    rows = [row for row in truth.rows if truth.begin <= row.at < truth.end]

    def problem(text: str) -> None:
        judgement.problems.append(f"{truth.tenant}, {invoice['id']}, period to {truth.end}, final {final}: {text}")

    def on_invoice(until: datetime) -> int:
        return sum(
            int(event["value"])
            for event in events
            if event["customer"] == truth.customer_id
            and event["status"] == "accepted"
            and truth.begin.timestamp() <= event["timestamp"] < truth.end.timestamp()
            and event["received_at"] <= until.timestamp()
        )

    def lacking(recorded_by: datetime, until: datetime) -> int:
        """Tokens recorded by the one time that are neither at Stripe by the other, nor kept aside with somebody's knowledge by when the
        next run looked."""
        known_by = next((look.at for look in looks if look.went_through and look.at >= until), until)
        aside = sum(row.tokens for row in rows if row.is_aside and row.settled_at and row.settled_at <= known_by)
        return sum(row.tokens for row in rows if row.recorded_at <= recorded_by) - aside - on_invoice(until)

    told = [look for look in looks if invoice["id"] in look.told]
    figures["invoices"] += 1
    figures["told"] += bool(told)
    if final is not None:
        figures["final invoices"] += 1
        # While the scheduler lives, runs come in the last hour before; where it does not, the telling comes afterwards.
        before = [look for look in looks if look.went_through and max(appeared, final - AHEAD) <= look.at < final]
        if lacking(final, final) > 0:
            figures["final and incomplete"] += 1
            if not told:
                problem(f"lacks {lacking(final, final)} tokens and nobody was told")
        # What was there for the last run before it became final must have been told by that run.
        if before and not truth.is_by_hand and lacking(before[-1].at, final) > 0:
            figures["told before it was final"] += 1
            if not told or told[0].at > before[-1].at:
                problem(f"lacks {lacking(before[-1].at, final)} tokens that the run at {before[-1].at} could know of; told {told[:1]}")
    _judge_release(judgement, truth, rows, final, looks, problem)
    for look in told:
        settled = all(row.settled_at and row.settled_at <= look.at for row in rows if row.recorded_at <= look.at)
        is_final = final is not None and final <= look.at
        late = is_final and final is not None and lacking(look.at, final) > 0
        is_complete = settled and truth.frozen_at is not None and truth.frozen_at <= look.at and not late
        if is_complete:
            problem(f"told at {look.at} though it was complete")
        at = look.finalises_at.get(invoice["id"])
        if not is_final and look.at < appeared + LIMIT and not (at and at <= look.at + AHEAD):
            problem(f"told at {look.at} though it was held until {at}")


def _judge_release(
    judgement: Judgement, truth: Truth, rows: Sequence[Row], final: datetime | None, looks: Sequence[Look], problem: Any
) -> None:
    """A complete draft is let go by the first run that sees it so."""
    if truth.is_by_hand or truth.frozen_at is None or any(row.settled_at is None for row in rows):
        return
    complete = max([truth.frozen_at, truth.end, *(row.settled_at for row in rows if row.settled_at), *(row.recorded_at for row in rows)])
    seen = next((look.at for look in looks if look.went_through and look.at >= complete), None)
    if seen is not None and (final is None or final > seen):
        judgement.figures["released early"] += 1
        if final is None or final > seen + SOON:
            problem(f"was complete at {complete}, which the run at {seen} saw, and is not final soon")
