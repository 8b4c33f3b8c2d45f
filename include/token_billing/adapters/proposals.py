"""What is proposed, decided and done about it: typed functions over `sql/proposals.sql`. None of them opens or ends a transaction; the
stages do."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from psycopg.types.json import Jsonb

from token_billing import metering
from token_billing.adapters import sending
from token_billing.adapters.database import Connection, storable
from token_billing.adapters.price_rows import price_of_row
from token_billing.adapters.queries import queries
from token_billing.model import LedgerIdentity
from token_billing.periods import FINAL_STATUSES, BillingPeriod
from token_billing.proposals import (
    OVERBILLED_CAUSES,
    UNBILLED_CAUSES,
    Candidate,
    Decision,
    Kind,
    LateUsage,
    Proposal,
    late_usage,
    overbilled,
)
from token_billing.rating import Price
from token_billing.reconciliation import Cause
from token_billing.releases import LATE_AT_LAST, MENDABLE, TOO_LATE

PROPOSALS = queries("proposals.sql")

#: What has been aside for longer than a quarter is no longer proposed; `quarantined` still lists it, and it can be acknowledged.
PROPOSED_FOR = timedelta(days=100)

Which = Literal["open", "standing", "to_apply", "all"]


class AbsentReport(NamedTuple):
    """An accepted report that is to be sent anew. `minute`: the span in which it would show; `other_tokens`: what else of ours shows there;
    `others_in_doubt`: whether some of ours may; `invoice_id`: the final invoice of its period."""

    identifier: str
    token_count: int
    customer_id: str
    meter_id: str
    minute: datetime
    other_tokens: int
    others_in_doubt: bool
    invoice_id: str | None


@contextmanager
def alone_at(db: Connection, proposal_id: int, lease: timedelta) -> Iterator[bool]:
    """Keeps others, for so long at most, from carrying the proposal out; yields False where another does. Outside of a transaction."""
    holder = str(uuid4())
    leased, _ = sending.lease_customers(db, [("", f"proposal {proposal_id}")], holder, lease)
    try:
        yield bool(leased)
    finally:
        sending.release_leases(db, holder, ())


def take_turn(db: Connection) -> None:
    """Waits until nobody else proposes or decides; until the transaction ends, nobody does."""
    db.execute(PROPOSALS["take_turn"])


# --- What could be done -----------------------------------------------------------------------------------------------


def candidates(db: Connection, identity: LedgerIdentity, now: datetime) -> list[Candidate]:
    """All that could be done now, as the books stand."""
    oldest = now - metering.OLDEST_EVENT + metering.AGE_MARGIN
    late, found = list(_billed_nowhere(db)), []
    aside = {
        "since": now - PROPOSED_FOR,
        "mendable": list(MENDABLE),
        "too_late": list(TOO_LATE),
        "late_at_last": list(LATE_AT_LAST),
        "oldest": oldest,
        "final_statuses": sorted(FINAL_STATUSES),
        "now": now,
    }
    for row in db.execute(PROPOSALS["aside_usage"], aside):
        usage = _AsideUsage._make((*row[:13], row[13:]))
        if usage.is_late:
            late.append(usage.late())
        else:
            found.append(usage.to_release())
    absent_since = now - metering.ABSENCE
    proven = {"absent_since": absent_since, "oldest": oldest, "recovered_at": identity.recovered_at, "now": now}
    found += [_resend(*row) for row in db.execute(PROPOSALS["proven_absent"], proven)]
    return [*late_usage(late), *_overbilled(db), *found]


class _AsideUsage(NamedTuple):
    """Quarantined usage of one tenant, item and period. `terms`: of its price."""

    is_late: bool
    tenant_id: str
    invoice_id: str | None
    subscription_id: str | None
    customer_id: str
    usage_item_id: str
    price_id: str | None
    start: datetime
    end: datetime
    report_ids: list[int]
    tokens: int
    reasons: str
    billed_tokens: int
    terms: Sequence[Any]

    def candidate(self, kind: Kind, about: str, evidence: str) -> Candidate:
        return Candidate(
            kind,
            f"{about} {self.usage_item_id} {self.start:%Y-%m-%dT%H:%MZ} {self.tenant_id}",
            self.tokens,
            f"{len(self.report_ids)} reports are quarantined ({self.reasons}){evidence}",
            tenant_id=self.tenant_id,
            invoice_id=self.invoice_id,
            subscription_id=self.subscription_id,
            customer_id=self.customer_id,
            usage_item_id=self.usage_item_id,
            price_id=self.price_id,
            period=BillingPeriod(self.start, self.end),
            report_ids=tuple(self.report_ids),
        )

    def late(self) -> LateUsage:
        why = f"invoice {self.invoice_id} is final" if self.invoice_id else "Stripe takes no usage that old"
        evidence = f" and {why}; {self.billed_tokens:,} tokens of the period are billed"
        return LateUsage(self.candidate(Kind.LATE_USAGE, "aside", evidence), self.billed_tokens, _price(self.price_id, self.terms))

    def to_release(self) -> Candidate:
        return self.candidate(Kind.RELEASE, "release", f", and their usage leads to item {self.usage_item_id} now")


def _billed_nowhere(db: Connection) -> Iterator[LateUsage]:
    settled = _settled(db)
    for row in db.execute(PROPOSALS["billed_nowhere"], {"causes": list(UNBILLED_CAUSES)}):
        discrepancy_id, cause, tenant_id, hour, invoice_id, subscription_id, customer_id, item, price_id, start, end, *rest = row
        found_tokens, details, billed_tokens, *terms = rest
        subject = _subject(cause, invoice_id, item, tenant_id, hour)
        # safeguard: what was settled of a finding is not proposed again
        if (tokens := found_tokens - _settled_tokens(settled, cause, subject, invoice_id, item)) <= 0:
            continue
        period = BillingPeriod(start, end)
        names = (tenant_id, invoice_id, subscription_id, customer_id, item, price_id, period)
        candidate = Candidate(Kind.LATE_USAGE, subject, tokens, details, *names, discrepancy_id=discrepancy_id)
        yield LateUsage(candidate, billed_tokens, _price(price_id, terms))


def _overbilled(db: Connection) -> Iterator[Candidate]:
    settled = {one.subject: one for one in _settled(db)}
    for row in db.execute(PROPOSALS["overbilled"], {"causes": list(OVERBILLED_CAUSES)}):
        discrepancy_id, cause, tenant_id, hour, invoice_id, subscription_id, customer_id, item, price_id, start, end, *rest = row
        named, details, expected_tokens, expected_cents, found_tokens, found_cents, currency, *terms = rest
        period = None if start is None else BillingPeriod(start, end)
        names = (tenant_id, invoice_id, subscription_id, customer_id, item, price_id, period)
        subject = _subject(cause, invoice_id, named, tenant_id, hour)
        candidate = Candidate(Kind.OVERBILLED, subject, 0, details, *names, discrepancy_id=discrepancy_id)
        expected, found = (expected_tokens, expected_cents), (found_tokens, found_cents)
        if (proposed := overbilled(candidate, expected, found, _price(price_id, terms), currency)) is None:
            continue
        # safeguard: what was credited of a finding is not credited again
        if (before := settled.get(subject)) is None:
            yield proposed
        elif (cents := (proposed.amount_cents or 0) - before.amount_cents) > 0:
            yield replace(proposed, token_count=max(0, proposed.token_count - before.token_count), amount_cents=cents)


class _Settled(NamedTuple):
    """What was decided for good about something that a comparison found."""

    kind: str
    subject: str
    invoice_id: str | None
    usage_item_id: str | None
    token_count: int
    amount_cents: int


def _settled(db: Connection) -> list[_Settled]:
    return [_Settled(*row) for row in db.execute(PROPOSALS["settled"])]


def _settled_tokens(settled: Iterable[_Settled], cause: str, subject: str, invoice_id: str, item: str | None) -> int:
    """What of a finding was carried forward or written off. An invoice that was voided lacks all that was reported of an item, with what
    was found to be missing on it before."""
    if cause == Cause.VOIDED_INVOICE:
        about_it = (one for one in settled if (one.kind, one.invoice_id, one.usage_item_id) == (Kind.LATE_USAGE, invoice_id, item))
    else:
        about_it = (one for one in settled if one.subject == subject)
    return sum(one.token_count for one in about_it)


def _subject(cause: str, invoice_id: str, named: str | None, tenant_id: str | None, hour: datetime | None) -> str:
    at = None if hour is None else f"{hour:%Y-%m-%dT%H:%MZ}"
    return " ".join(part for part in (cause, invoice_id, named, tenant_id, at) if part)


def _resend(
    discrepancy_id: int,
    report_id: int,
    tenant_id: str,
    window_start: datetime,
    customer_id: str,
    item: str,
    tokens: int,
    identifier: str,
    absent_since: datetime,
) -> Candidate:
    return Candidate(
        Kind.RESEND,
        identifier,
        tokens,
        f"Stripe's meter has lacked report {report_id} of {window_start:%Y-%m-%dT%H:%MZ} since {absent_since:%Y-%m-%dT%H:%MZ}",
        tenant_id,
        customer_id=customer_id,
        usage_item_id=item,
        report_ids=(report_id,),
        discrepancy_id=discrepancy_id,
    )


def _price(price_id: str | None, terms: Any) -> Price | None:
    return None if price_id is None or terms[0] is None else price_of_row(price_id, *terms)


# --- What is proposed, and decided ------------------------------------------------------------------------------------


def proposals(db: Connection, which: Which) -> list[Proposal]:
    """Proposals by number: `open` for a decision, `standing` decided and not done (declined ones among them), `to_apply`, or all that
    were not withdrawn."""
    return [_proposal(row) for row in db.execute(PROPOSALS["proposals"], {"which": which})]


def lock_proposal(db: Connection, proposal_id: int) -> tuple[Proposal, datetime | None] | None:
    """One proposal and when it was withdrawn, kept from being changed by anybody else; None where there is none."""
    row = db.execute(PROPOSALS["proposal"], {"id": proposal_id}).fetchone()
    return None if row is None else (_proposal(row[:-1]), row[-1])


def add(db: Connection, candidate: Candidate, now: datetime) -> None:
    """Puts it to people."""
    known = vars(candidate)
    period = candidate.period
    times = {"period_start": period and period.start, "period_end": period and period.end, "now": now}
    texts = {"evidence": storable(candidate.evidence)[:2000], "report_ids": list(candidate.report_ids)}
    db.execute(PROPOSALS["add"], {**known, **times, **texts})


def withdraw(db: Connection, proposal_ids: Iterable[int], now: datetime) -> None:
    """They wait no more."""
    db.execute(PROPOSALS["withdraw"], {"ids": list(proposal_ids), "now": now})


def take_questions(db: Connection, asked_before: datetime, now: datetime) -> set[int]:
    """The open proposals that nobody has been asked about since a time; from now on somebody is."""
    return {number for (number,) in db.execute(PROPOSALS["take_questions"], {"asked_before": asked_before, "now": now})}


def decide(db: Connection, proposal_id: int, decision: Decision, by: str, now: datetime) -> None:
    """Writes the decision down."""
    db.execute(PROPOSALS["decide"], {"id": proposal_id, "decision": decision, "by": storable(by), "now": now})


# --- What is done about it --------------------------------------------------------------------------------------------


def note_attempt(db: Connection, proposal: Proposal, request: Mapping[str, Any], now: datetime) -> Mapping[str, Any] | None:
    """Writes down that Stripe may have been asked from now on; returns for what, which the first attempt under a key fixes, or None where
    the proposal has gone on."""
    parameters = {"id": proposal.id, "decision": proposal.decision, "request": Jsonb(request), "now": now}
    found = db.execute(PROPOSALS["note_attempt"], parameters).fetchone()
    return found[0] if found else None


def note_answer(
    db: Connection,
    proposal: Proposal,
    message: str,
    now: datetime,
    *,
    may_have_arrived: bool,
    refused: bool = False,
    new_key: bool = False,
    in_doubt_since: datetime | None = None,
) -> None:
    """Writes down what became of the proposal's latest attempt, where nothing was made for all that is known. `in_doubt_since`: of an
    earlier attempt, where this one itself has certainly made nothing."""
    parameters = {
        "id": proposal.id,
        "attempt": proposal.attempt_count,
        "message": storable(message)[:2000] or "no words",
        "may_have_arrived": may_have_arrived,
        "in_doubt_since": in_doubt_since,
        "refused": refused,
        "new_key": new_key,
        "now": now,
    }
    db.execute(PROPOSALS["note_answer"], parameters)


def note_not_made(db: Connection, proposal: Proposal, message: str, now: datetime) -> None:
    """Somebody says that no attempt so far has made anything."""
    db.execute(PROPOSALS["note_not_made"], {"id": proposal.id, "message": storable(message)[:2000], "now": now})


def note_applied(db: Connection, proposal_id: int, stripe_id: str | None, now: datetime) -> bool:
    """It is done; False where somebody else has noted that."""
    return db.execute(PROPOSALS["note_applied"], {"id": proposal_id, "stripe_id": stripe_id, "now": now}).rowcount == 1


def absent_report(db: Connection, report_id: int, now: datetime) -> AbsentReport | None:
    """The report that is to be sent anew; None where it is not accepted any more, or Stripe's meter shows it."""
    found = db.execute(PROPOSALS["absent_report"], {"id": report_id, "now": now}).fetchone()
    return AbsentReport(*found) if found else None


def was_revoked(db: Connection, identifier: str) -> bool:
    """Whether the identifier was taken back."""
    return db.execute(PROPOSALS["was_revoked"], {"identifier": identifier}).fetchone() == (True,)


def _proposal(row: tuple[Any, ...]) -> Proposal:
    number, kind, subject, tokens, evidence, tenant, invoice, subscription, customer, item, price, start, end, reports, *rest = row
    discrepancy_id, cents, currency, proposed_at, decision, *done = rest
    period = None if start is None else BillingPeriod(start, end)
    about = (tenant, invoice, subscription, customer, item, price, period, tuple(reports), discrepancy_id, cents, currency)
    what = Candidate(Kind(kind), subject, tokens, evidence, *about)
    return Proposal(number, what, proposed_at, None if decision is None else Decision(decision), *done)
