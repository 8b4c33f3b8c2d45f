"""What an invoice bills, held against what our reports say: what differs, and why. Pure.

A charge's quantity is held against the sum of the reports that Stripe has accepted for its item and period; its amount is rated anew, line
by line. Where quantities differ, the pieces that may explain it (`invoice_evidence`) must come to exactly the difference, or nothing is
said to be explained."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from token_billing.charges import Charge, Facts
from token_billing.invoice_evidence import Evidence, Piece, explaining_pieces
from token_billing.invoices import Invoice, InvoiceLine, LineKind
from token_billing.periods import BillingPeriod
from token_billing.rating import Price, RatedLine, added_cents, amount_cents, comes_to, money, rate
from token_billing.reconciliation import Cause, Difference

#: What a billing threshold made bills a part of a period's usage; which, no line says.
PARTIAL = frozenset({"subscription_threshold"})


@dataclass(frozen=True)
class Compared:
    """A charge, or a line that somebody put on an invoice, as it was held against our books; tokens are whole, amounts in the currency's
    minor unit, None where there is nothing to hold it against. `note` says what is no difference and worth knowing."""

    invoice: Invoice
    stripe_id: str
    period: BillingPeriod
    currency: str
    stripe_tokens: int | None
    stripe_cents: int
    our_tokens: int | None = None
    our_cents: int | None = None
    tenants: tuple[str, ...] = ()
    usage_item_id: str | None = None
    price_id: str | None = None
    is_tie: bool = False
    note: str = ""
    needs_evidence: bool = False
    differences: tuple[Difference, ...] = ()

    @property
    def cause(self) -> str:
        """All causes, each once."""
        return ", ".join(dict.fromkeys(one.cause for one in self.differences))


def compare_charge(charge: Charge, our_tokens: int, facts: Facts, evidence: Evidence | None = None) -> Compared | None:
    """The charge beside our books; None where it is none of ours. `our_tokens`: of the accepted reports of its item in its agreed period.
    Where `needs_evidence` says so, it is to be compared again with what the reports and Stripe's meter say one by one."""
    invoice, tenants = charge.invoice, tuple(facts.tenants_of(charge))
    if not tenants and charge.price_id not in facts.our_prices:
        return None
    compared = Compared(
        invoice,
        charge.stripe_id,
        charge.period,
        charge.currency,
        charge.quantity,
        charge.amount_cents,
        tenants=tenants,
        usage_item_id=charge.usage_item_id,
        price_id=charge.price_id,
    )
    if note := _not_comparable(charge, facts):
        return replace(compared, note=note)
    if not tenants:
        return _unlinked(compared, facts) if charge.quantity else compared
    agreed = facts.prices.get(facts.agreed_price(charge))
    ours = amount_cents(agreed, our_tokens) if agreed and agreed.currency == charge.currency else None
    compared = replace(compared, our_tokens=our_tokens, our_cents=ours)
    if invoice.status == "void":
        return _voided(compared, charge, our_tokens, facts)
    return _judged(compared, charge, our_tokens, facts, evidence)


def compare_manual_line(invoice: Invoice, line: InvoiceLine, facts: Facts) -> Compared | None:
    """A line that no subscription item made; None where it is none of ours to look at. One that a proposal of ours made must be of the
    amount that was decided; prorations are kept apart."""
    tenants = facts.customers.get(invoice.customer_id, ())
    if line.kind is not LineKind.MANUAL or not tenants:
        return None
    proposed = facts.proposals.get(line.proposal_id) if line.proposal_id is not None else None
    ours = proposed and proposed[0]
    compared = Compared(invoice, line.id, line.period, line.currency, None, line.amount_cents, our_cents=ours, tenants=tenants)
    if proposed == (line.amount_cents, line.currency):
        return replace(compared, note=f"proposal {line.proposal_id}")
    said = f"proposal {line.proposal_id}, decided as {money(*proposed)}" if proposed else "by nobody here"
    details = f"{line.description or 'a line'} of {money(line.amount_cents, line.currency)} was put on the invoice {said}"
    return _differing(compared, Cause.MANUAL_LINE, details, cents=(proposed[0] if proposed else 0, line.amount_cents))


def _not_comparable(charge: Charge, facts: Facts) -> str:
    if facts.cut_over is not None and charge.period.start < facts.cut_over:
        return f"its period began before the cut-over hour {facts.cut_over:%Y-%m-%dT%H:%MZ}, when another job billed"
    if charge.invoice.billing_reason in PARTIAL:
        return "a billing threshold made it, and it bills a part of a period"
    if other := facts.billed_in_part.get(charge.stripe_id):
        return f"invoice {other}, which a billing threshold made, bills a part of its period"
    if charge.lines and charge.quantity == 0 and not charge.invoice.closes(charge.period):
        return "a first invoice bills no usage"
    return ""


def _unlinked(compared: Compared, facts: Facts) -> Compared:
    """Usage billed by an item that nobody is linked to: of some other customer, or a second time beside an item that somebody is."""
    found = compared.stripe_tokens or 0
    cause, tenants = Cause.UNLINKED_TENANT, compared.tenants
    details = (
        f"item {compared.usage_item_id} bills {found:,} tokens, and no tenant was ever linked to it; link one, or see "
        "whose usage is reported under that customer"
    )
    if beside := facts.billed_beside.get(compared.stripe_id):
        (item, tenants), cause = beside, Cause.DUPLICATE
        details = (
            f"item {compared.usage_item_id} bills {found:,} tokens of a meter that item {item} bills for the same customer as well, so "
            "that both bill all of it; take one of them off at Stripe"
        )
    return _differing(replace(compared, tenants=tenants), cause, details, tokens=(0, found), cents=(0, compared.stripe_cents))


def _voided(compared: Compared, charge: Charge, our_tokens: int, facts: Facts) -> Compared:
    """What a voided invoice billed is billed nowhere, unless another one bills it, or nothing was to be billed."""
    if facts.is_free(charge) or charge.stripe_id in facts.billed_elsewhere or not our_tokens:
        return replace(compared, note="void")
    cents = None if compared.our_cents is None else (compared.our_cents, 0)
    details = f"the invoice is void, and no other one bills these {our_tokens:,} tokens"
    return _differing(compared, Cause.VOIDED_INVOICE, details, tokens=(our_tokens, 0), cents=cents)


def _judged(compared: Compared, charge: Charge, our_tokens: int, facts: Facts, evidence: Evidence | None) -> Compared:
    agreed, period = facts.agreed_price(charge), facts.agreed_period(charge)
    price = facts.prices.get(agreed)
    if charge.lines and price and {charge.currency, charge.invoice.currency} != {price.currency}:
        details = f"billed in {charge.currency}, on an invoice in {charge.invoice.currency}; price {price.id} is in {price.currency}"
        compared = _differing(compared, Cause.CURRENCY, details)
        price = None  # what it comes to in another currency, no price of ours says
    elif price is None:
        details = f"the terms of price {agreed} cannot be read, so the amount of its lines cannot be rated"
        compared = _differing(compared, Cause.UNEXPLAINED, details, cents=(0, charge.amount_cents)) if charge.amount_cents else compared
    if any(line.quantity < 0 for line in charge.lines):
        details = f"the lines bill {_listed(line.quantity for line in charge.lines)} tokens; no quantity of usage is negative"
        return _differing(compared, Cause.UNEXPLAINED, details, tokens=(our_tokens, charge.quantity))
    if charge.price_id != agreed:
        details = f"item {charge.usage_item_id} is billed at price {charge.price_id}; its price in that period was {agreed}"
        cents = None if compared.our_cents is None else (compared.our_cents, charge.amount_cents)
        compared = _differing(compared, Cause.WRONG_PRICE, details, cents=cents)
        price = None
    if charge.period != period:
        details = f"the lines are of {_told(charge.period)}; the item's period is {_told(period)}"
        compared = _differing(compared, Cause.WRONG_PERIOD, details)
    if other := facts.billed_elsewhere.get(charge.stripe_id):
        details = f"invoice {other} bills the same item for the same time"
        return _differing(compared, Cause.DUPLICATE, details, tokens=(0, charge.quantity), cents=(0, charge.amount_cents))
    if price is not None:
        ours = _billed_by(rate(price, our_tokens))
        if our_tokens and _billed_by(charge.lines) == ours + ours:
            cents = (0, charge.amount_cents - amount_cents(price, our_tokens))
            return _differing(compared, Cause.DUPLICATE, "the same lines are on the invoice twice", tokens=(0, our_tokens), cents=cents)
        compared = _rated(compared, charge, our_tokens, price, facts)
    if charge.quantity == our_tokens:
        return compared
    if evidence is None:
        return replace(compared, needs_evidence=True)
    return _explained(compared, charge, period, our_tokens, price, evidence)


def _rated(compared: Compared, charge: Charge, our_tokens: int, price: Price, facts: Facts) -> Compared:
    """The amounts of the lines, by what their quantities come to under the price as it was first read."""
    rated = rate(price, charge.quantity)
    compared = replace(compared, is_tie=any(line.is_tie for line in rated))
    if not charge.lines or _match(charge.lines, rated):
        # What a tie was rounded to is Stripe's to say.
        return replace(compared, our_cents=charge.amount_cents) if charge.lines and charge.quantity == our_tokens else compared
    if charge.amount_cents == 0 and facts.is_free(charge):
        return replace(compared, our_cents=0, note="a trial, or collection was paused: nothing is asked for")
    if charge.amount_cents == compared.our_cents or _billed_by(charge.lines) <= _billed_by(rate(price, our_tokens)):
        return compared  # the amounts are right; what is wrong are the quantities, or lines are missing
    cause, details = _wrong_terms(charge, rated, price, facts.edited.get(price.id))
    return _differing(compared, cause, details, cents=(sum(line.amount_cents for line in rated), charge.amount_cents))


def _wrong_terms(charge: Charge, rated: Sequence[RatedLine], price: Price, edited: Price | None) -> tuple[Cause, str]:
    if edited and _match(charge.lines, rate(edited, charge.quantity)):
        same_tiers = _boundaries(price) == _boundaries(edited)
        details = f"price {price.id} was edited at Stripe: it was {_terms(price)} when usage was sent, and is {_terms(edited)}"
        return (Cause.WRONG_PRICE if same_tiers else Cause.WRONG_TIER), details
    billed = sorted(line.quantity for line in charge.lines if line.quantity)
    right = sorted(line.quantity for line in rated if line.quantity)
    if billed != right:
        return (
            Cause.WRONG_TIER,
            f"{charge.quantity:,} tokens are billed as {_listed(billed)}; the tiers of price {price.id} make {_listed(right)}",
        )
    wrong = next(iter(_unmatched(charge.lines, rated)))
    should = next((line.amount_cents for line in rated if line.quantity == wrong.quantity), 0)
    return Cause.WRONG_PRICE, (
        f"line {wrong.id} bills {wrong.quantity:,} tokens with {money(wrong.amount_cents, charge.currency)}; at price {price.id} they come "
        f"to {money(should, price.currency)}"
    )


def _explained(
    compared: Compared, charge: Charge, period: BillingPeriod, our_tokens: int, price: Price | None, evidence: Evidence
) -> Compared:
    """Why the quantity is not what our reports come to."""
    if charge.period != period and charge.quantity == evidence.tokens_in(charge.usage_item_id, charge.period):
        return compared  # all that is wrong with it is its period
    pieces = explaining_pieces(charge, period, our_tokens, evidence)
    if pieces is not None:
        return _in_pieces(compared, charge, price, pieces)
    cause = Cause.UNEXPLAINED
    details = f"our reports come to {our_tokens:,} tokens, the invoice to {charge.quantity:,}; {evidence.told()}"
    if price and _billed_by(charge.lines) < (ours := _billed_by(rate(price, our_tokens))):
        cause, missing = Cause.WRONG_TIER, sorted(quantity for quantity, _ in (ours - _billed_by(charge.lines)).elements())
        details = f"of the lines that price {price.id} makes of {our_tokens:,} tokens, that of {_listed(missing)} is missing"
    cents = (amount_cents(price, our_tokens), charge.amount_cents) if price else None
    return _differing(compared, cause, details, tokens=(our_tokens, charge.quantity), cents=cents)


def _in_pieces(compared: Compared, charge: Charge, price: Price | None, pieces: Iterable[Piece]) -> Compared:
    """From what was billed up and down to what we reported: valued one on top of the other, the pieces add up."""
    at = charge.quantity
    for piece in sorted(pieces, key=lambda piece: piece.tokens):
        cents = None
        if price:
            added = added_cents(price, at + min(0, -piece.tokens), abs(piece.tokens))
            cents = (added, 0) if piece.tokens < 0 else (0, added)
        at -= piece.tokens
        compared = _differing(
            compared, piece.cause, piece.details, tokens=piece.figures, cents=cents, tenant_id=piece.tenant_id, window=piece.window_start
        )
    return compared


def _match(lines: Sequence[InvoiceLine], rated: Sequence[RatedLine]) -> bool:
    """Whether the lines are those that were rated, each of an amount that is right. One line for all tiers will do, if it is of the right
    amount in all: what answers for Stripe may show no more."""
    billed = [line for line in lines if line.quantity or line.amount_cents]
    wanted = [line for line in rated if line.quantity or line.exact_cents]
    if len(billed) == 1 and len(wanted) > 1:
        return comes_to(wanted, billed[0].amount_cents)
    return len(billed) == len(wanted) and not _unmatched(lines, rated)


def _billed_by(lines: Iterable[InvoiceLine | RatedLine]) -> Counter[tuple[int, int]]:
    """Quantity and amount of each line that has any."""
    return Counter((line.quantity, line.amount_cents) for line in lines if line.quantity or line.amount_cents)


def _unmatched(lines: Sequence[InvoiceLine], rated: Sequence[RatedLine]) -> list[InvoiceLine]:
    """The lines that none of those that were rated is like."""
    left, unmatched = list(rated), []
    for line in lines:
        like = next((one for one in left if one.quantity == line.quantity and line.amount_cents in one.amounts_cents), None)
        if like is not None:
            left.remove(like)
        elif line.quantity or line.amount_cents:
            unmatched.append(line)
    return unmatched


def _differing(
    compared: Compared,
    cause: Cause,
    details: str,
    *,
    tokens: tuple[int, int] | None = None,
    cents: tuple[int, int] | None = None,
    tenant_id: str | None = None,
    window: datetime | None = None,
) -> Compared:
    """With one more difference; `tokens` and `cents` are what was expected and what was found."""
    only = compared.tenants[0] if len(compared.tenants) == 1 else None
    several = f" (tenants {', '.join(compared.tenants)})" if len(compared.tenants) > 1 and tenant_id is None else ""
    difference = Difference(
        cause,
        scope=compared.invoice.id,
        details=f"invoice {compared.invoice.id}: {details}{several}",
        tenant_id=tenant_id or only,
        stripe_id=compared.stripe_id,
        window_start=window,
        expected_tokens=tokens and tokens[0],
        found_tokens=tokens and tokens[1],
        expected_cents=cents and cents[0],
        found_cents=cents and cents[1],
        currency=compared.currency if cents else None,
    )
    return replace(compared, differences=(*compared.differences, difference))


def _told(period: BillingPeriod) -> str:
    return f"{period.start:%Y-%m-%dT%H:%M:%SZ} to {period.end:%Y-%m-%dT%H:%M:%SZ}"


def _listed(quantities: Iterable[int]) -> str:
    return " + ".join(f"{quantity:,}" for quantity in quantities) or "nothing"


def _boundaries(price: Price) -> tuple[object, ...]:
    """All of a price but what units and tiers cost."""
    return price.mode, price.package, [tier.up_to for tier in price.tiers]


def _terms(price: Price) -> str:
    tiers = "; ".join(f"up to {tier.up_to or 'any'}: {tier.unit_cents:f} each + {tier.flat_cents:f}" for tier in price.tiers)
    return f"{price.mode} in {price.currency} ({tiers})"
