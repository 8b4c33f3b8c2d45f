"""Proposals: what could be done about usage that came too late for its invoice, about what an invoice billed too much, about a report
that Stripe does not count, and about a quarantine whose cause is gone. Nothing is done before somebody decides. Pure.

Amounts are in the currency's minor unit; tokens are whole."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from typing import Any, NamedTuple

from token_billing.invoices import LEDGER_KEY, PROPOSAL_KEY
from token_billing.periods import BillingPeriod
from token_billing.rating import Price, amount_cents, money, stacked_cents
from token_billing.reconciliation import Cause

#: Stripe takes metadata values of 500 characters (docs.stripe.com/api/metadata), descriptions of about as many.
LONGEST_TEXT = 500


#: Beside the proposal's number, which a restored database may give to another one.
SUBJECT_KEY = "subject"


class Kind(StrEnum):
    """What a proposal is about."""

    LATE_USAGE = "late_usage"
    OVERBILLED = "overbilled"
    RESEND = "resend"
    RELEASE = "release"


class Decision(StrEnum):
    """What a person may decide."""

    INVOICE_ITEM = "invoice_item"
    CREDIT_NOTE = "credit_note"
    WRITE_OFF = "write_off"
    RESEND = "resend"
    RELEASE = "release"
    DECLINED = "declined"


#: Decisions that are carried out at Stripe, and how the id of what they make begins (docs.stripe.com/api).
OBJECT_PREFIXES: Mapping[str, str] = {Decision.INVOICE_ITEM: "ii_", Decision.CREDIT_NOTE: "cn_"}

#: What is in our books and on no invoice.
UNBILLED_CAUSES = (Cause.LATE_AFTER_FINALISATION, Cause.MISSING_HOUR, Cause.VOIDED_INVOICE)

#: What is on a final invoice and not in our books, or at another amount.
OVERBILLED_CAUSES = (Cause.DUPLICATE, Cause.WRONG_PRICE, Cause.WRONG_TIER)


@dataclass(frozen=True)
class Candidate:
    """What could be done now, as the books stand. `subject` names what it is about, the same for the same for ever; `period`: the billing
    period the usage belongs to; `discrepancy_id`: what a comparison found; `amount_cents`: what it would add to the customer's bill, or
    take from it, None where it is about no amount or no price is known."""

    kind: Kind
    subject: str
    token_count: int
    evidence: str
    tenant_id: str | None = None
    invoice_id: str | None = None
    subscription_id: str | None = None
    customer_id: str | None = None
    usage_item_id: str | None = None
    price_id: str | None = None
    period: BillingPeriod | None = None
    report_ids: tuple[int, ...] = ()
    discrepancy_id: int | None = None
    amount_cents: int | None = None
    currency: str | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """What was looked at by whoever decides: with another one it is another proposal."""
        return self.kind, self.subject, self.report_ids, self.token_count, self.amount_cents, self.currency

    @property
    def choices(self) -> tuple[Decision, ...]:
        """What may be decided."""
        match self.kind:
            case Kind.LATE_USAGE:
                first = (Decision.INVOICE_ITEM,) if self.amount_cents is not None and self.customer_id else ()
                return *first, Decision.WRITE_OFF, Decision.DECLINED
            case Kind.OVERBILLED:
                first = (Decision.CREDIT_NOTE,) if self.amount_cents and self.amount_cents > 0 else ()
                return *first, Decision.WRITE_OFF, Decision.DECLINED
            case Kind.RESEND:
                return Decision.RESEND, Decision.DECLINED
            case Kind.RELEASE:
                return Decision.RELEASE, Decision.DECLINED

    @property
    def worth(self) -> str:
        """Tokens and money in words."""
        tokens = f"{self.token_count:,} tokens"
        return tokens if self.amount_cents is None or self.currency is None else f"{tokens}, {money(self.amount_cents, self.currency)}"


@dataclass(frozen=True)
class Proposal:
    """A candidate that was put to people, what they decided, and how far that was carried out.

    `request`: what Stripe was asked to make, fixed by the first attempt under a key; `may_have_arrived`: it may have made it;
    `refused_at`: since when it is known that it did not and will not; `not_made_at`: when somebody looked by hand, and it had not."""

    id: int
    what: Candidate
    proposed_at: datetime
    decision: Decision | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    request: Mapping[str, Any] | None = None
    key_number: int = 0
    attempt_count: int = 0
    attempted_at: datetime | None = None
    may_have_arrived: bool = False
    refused_at: datetime | None = None
    message: str | None = None
    applied_at: datetime | None = None
    stripe_id: str | None = None
    not_made_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        """Whether somebody has yet to decide."""
        return self.decision is None

    @property
    def is_in_doubt(self) -> bool:
        """Whether Stripe may have made what was decided, and nobody knows."""
        return self.may_have_arrived and self.decision in OBJECT_PREFIXES and self.applied_at is None

    @property
    def may_be_reconsidered(self) -> bool:
        """Whether nothing came of the decision and nothing can any more, so that it may be repeated or another one take its place."""
        # safeguard: what may be at Stripe is not decided anew
        return self.refused_at is not None

    @property
    def standing(self) -> str:
        """How far it is, in words."""
        if self.decision is None:
            return f"waits for a decision: {', '.join(self.what.choices)}"
        told = f"{self.decision} by {self.decided_by}"
        if self.decision == Decision.DECLINED:
            return told
        if self.applied_at is not None:
            return f"{told}, done" + (f": {self.stripe_id}" if self.stripe_id else "")
        return f"{told}, {'refused' if self.refused_at else 'not done yet'}" + (f": {self.message}" if self.message else "")


@dataclass(frozen=True)
class LateUsage:
    """A tenant's usage that the invoice of its period can take no more. `billed_tokens`: what that invoice, and the invoice items that were
    decided on since, bill of the item's period."""

    candidate: Candidate
    billed_tokens: int
    price: Price | None


def late_usage(found: Iterable[LateUsage]) -> Iterator[Candidate]:
    """Each with what it adds on top of what its item's period has billed, and of what comes before it here: under tiers, tokens are worth
    more or less by what lies below them."""

    def bill(late: LateUsage) -> tuple[str, BillingPeriod]:
        assert late.candidate.period is not None
        return late.candidate.usage_item_id or "", late.candidate.period

    for _, together in groupby(sorted(found, key=lambda late: (*bill(late), late.candidate.subject)), key=bill):
        on_one_bill = list(together)
        first = on_one_bill[0]
        if first.price is None:
            yield from (late.candidate for late in on_one_bill)
            continue
        # safeguard: late usage on top of what was billed
        added = stacked_cents(first.price, first.billed_tokens, [late.candidate.token_count for late in on_one_bill])
        for late, cents in zip(on_one_bill, added, strict=True):
            yield replace(late.candidate, amount_cents=cents, currency=first.price.currency)


def overbilled(
    candidate: Candidate, expected: tuple[int | None, int | None], found: tuple[int | None, int | None], price: Price | None, currency: str
) -> Candidate | None:
    """An invoice that billed more than it should: tokens and cents of either, the cents worked out where only tokens are known; None where
    it did not."""
    cents = None if expected[1] is None or found[1] is None else found[1] - expected[1]
    if cents is None and price is not None and expected[0] is not None and found[0] is not None:
        cents = amount_cents(price, found[0]) - amount_cents(price, expected[0])
    if cents is None or cents <= 0:
        return None
    return replace(candidate, token_count=max(0, (found[0] or 0) - (expected[0] or 0)), amount_cents=cents, currency=currency)


class Made(NamedTuple):
    """An object at Stripe that a proposal of this ledger made."""

    stripe_id: str
    proposal_id: str
    subject: str


def recognised(proposal: Proposal, made: Iterable[Made]) -> str | None:
    """What the proposal has made at Stripe already; None where there is nothing of it."""
    # safeguard: what a proposal made is recognised
    return next((one.stripe_id for one in made if one.proposal_id == str(proposal.id) and one.subject == _named(proposal)), None)


def forgotten(proposal: Proposal, made: Iterable[Made]) -> str | None:
    """What another proposal about the same subject made that this ledger does not know of: its database was restored since."""
    # safeguard: what a restored database has forgotten of a proposal
    return next((one.stripe_id for one in made if one.subject == _named(proposal)), None)


def idempotency_key(proposal: Proposal, ledger_id: str) -> str:
    """The same for every attempt at a proposal until Stripe has refused one, or replays a stored error. The time keeps apart what a
    restored database numbers anew."""
    # safeguard: one key a proposal
    key = f"proposal-{ledger_id}-{proposal.id}-{int(proposal.proposed_at.timestamp())}-{proposal.decision}"
    return key if proposal.key_number == 0 else f"{key}#{proposal.key_number}"


def metadata(proposal: Proposal, ledger_id: str) -> dict[str, str]:
    """How an object at Stripe is known to be a proposal's."""
    return {LEDGER_KEY: ledger_id, PROPOSAL_KEY: str(proposal.id), SUBJECT_KEY: _named(proposal)}


def invoice_item(proposal: Proposal, ledger_id: str, subscription_id: str | None) -> dict[str, Any]:
    """The request for an invoice item: on the subscription's next invoice, or, without one, on the customer's next."""
    what = proposal.what
    assert what.amount_cents is not None and what.period is not None
    start, end = what.period
    usage = f"{what.token_count:,} tokens of {start:%Y-%m-%d} to {end:%Y-%m-%d}, reported after their invoice was final"
    request = {
        "customer": what.customer_id,
        "amount": what.amount_cents,
        "currency": what.currency,
        "description": f"Usage of {what.tenant_id or what.customer_id}: {usage}"[:LONGEST_TEXT],
        "period": {"start": int(start.timestamp()), "end": int(end.timestamp())},
        "metadata": metadata(proposal, ledger_id),
    }
    return request | ({"subscription": subscription_id} if subscription_id else {})


def credit_note(proposal: Proposal, ledger_id: str, *, is_paid: bool) -> dict[str, Any]:
    """The request for a credit note: of a paid invoice the amount goes to the customer's balance, an open one asks for less."""
    what = proposal.what
    assert what.amount_cents is not None
    request = {
        "invoice": what.invoice_id,
        "amount": what.amount_cents,
        "memo": f"{what.token_count:,} tokens too much were billed"[:LONGEST_TEXT],
        "metadata": metadata(proposal, ledger_id),
    }
    return request | ({"credit_amount": what.amount_cents} if is_paid else {})


def _named(proposal: Proposal) -> str:
    return proposal.what.subject[:LONGEST_TEXT]
