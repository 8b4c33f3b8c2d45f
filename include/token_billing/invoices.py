"""Invoices as Stripe shows them: what each says and what kind of line each of its lines is. Pure.

Shapes are those of the pinned API version, and those before 2025-03-31.basil, which older stand-ins still show. What is left out is
taken as not there."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from token_billing.periods import FINAL_STATUSES, NOT_CLOSING, BillingPeriod

#: What an invoice item or a credit note of ours carries in its metadata: the proposal that it carries out, and whose ledger's.
PROPOSAL_KEY, LEDGER_KEY = "proposal", "ledger"


class LineKind(StrEnum):
    """What a line bills: metered usage, or a fee of its tiers; what is paid by the piece or in advance; the change of such in the middle
    of a period; or whatever somebody put there by hand."""

    USAGE = "usage"
    FLAT = "flat"
    PRORATION = "proration"
    MANUAL = "manual"


@dataclass(frozen=True)
class InvoiceLine:
    """One line. `quantity`: tokens, whole, of a usage line; `unit_cents` and `amount_cents`: in the currency's minor unit.
    `proposal_id`: the proposal of this ledger's that put it there."""

    id: str
    kind: LineKind
    usage_item_id: str | None
    price_id: str | None
    quantity: int
    unit_cents: Decimal | None
    amount_cents: int
    currency: str
    period: BillingPeriod
    description: str = ""
    invoice_item_id: str | None = None
    proposal_id: int | None = None


@dataclass(frozen=True)
class Invoice:
    """One invoice, without its lines; `read_at`: when Stripe was asked for it."""

    id: str
    customer_id: str
    subscription_id: str | None
    billing_reason: str | None
    status: str
    currency: str
    created_at: datetime
    finalizes_at: datetime | None
    finalized_at: datetime | None
    total_cents: int
    read_at: datetime

    @property
    def is_final(self) -> bool:
        """Whether its lines stay as they are."""
        return self.status in FINAL_STATUSES

    def closes(self, period: BillingPeriod) -> bool:
        """Whether it bills the usage of a period that has ended. One that does not say why it was made closes what had ended by then."""
        if self.subscription_id is None or self.billing_reason in NOT_CLOSING:
            return False
        return self.billing_reason is not None or period.end <= self.created_at


class ReadInvoice(NamedTuple):
    """An invoice and all its lines, in their order."""

    invoice: Invoice
    lines: tuple[InvoiceLine, ...]


def read_invoice(
    shown: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], metered_prices: Collection[str], ledger_id: str, read_at: datetime
) -> ReadInvoice:
    """Stripe's JSON of an invoice and of all its lines, as our own. `metered_prices`: those of its lines' prices that bill usage. Raises
    KeyError, TypeError or ValueError where it is not as Stripe describes it."""
    transitions = shown.get("status_transitions") or {}
    invoice = Invoice(
        id=shown["id"],
        customer_id=_id_of(shown.get("customer")) or "",
        subscription_id=_subscription_of(shown),
        billing_reason=shown.get("billing_reason"),
        status=shown.get("status") or "draft",
        currency=shown["currency"].lower(),
        created_at=_time(shown["created"]),
        finalizes_at=_time_or_none(shown.get("automatically_finalizes_at")),
        finalized_at=_time_or_none(transitions.get("finalized_at") or shown.get("effective_at")),
        total_cents=shown["total"],
        read_at=read_at,
    )
    read = tuple(_line(line, invoice.currency, metered_prices, ledger_id) for line in lines)
    if len({line.id for line in read}) < len(read):
        raise ValueError("it shows a line twice")
    return ReadInvoice(invoice, read)


def price_of_item_line(line: Mapping[str, Any]) -> str | None:
    """The price of a line that bills a subscription item, None of any other: what kind of line it is depends on it."""
    return _price_of(line) if _item_of(line) and not _is_proration(line) else None


def _line(line: Mapping[str, Any], currency: str, metered_prices: Collection[str], ledger_id: str) -> InvoiceLine:
    kind, period = _kind_of(line, metered_prices), BillingPeriod(_time(line["period"]["start"]), _time(line["period"]["end"]))
    if period.end < period.start:
        raise ValueError(f"the period of line {line['id']} ends before it starts")
    return InvoiceLine(
        id=line["id"],
        kind=kind,
        usage_item_id=_item_of(line),
        price_id=_price_of(line),
        quantity=_quantity_of(line, kind),
        unit_cents=_unit_of(line),
        amount_cents=line["amount"],
        currency=(line.get("currency") or currency).lower(),
        period=period,
        description=line.get("description") or "",
        invoice_item_id=_invoice_item_of(line),
        proposal_id=_proposal_of(line, ledger_id),
    )


def _kind_of(line: Mapping[str, Any], metered_prices: Collection[str]) -> LineKind:
    if _is_proration(line):
        return LineKind.PRORATION
    if _item_of(line) is None:
        return LineKind.MANUAL
    return LineKind.USAGE if _price_of(line) in metered_prices else LineKind.FLAT


def _details_of(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a line says of the subscription item or the invoice item that made it."""
    parent = line.get("parent")
    if parent is None:  # before API version 2025-03-31.basil
        return line
    return parent.get("subscription_item_details") or parent.get("invoice_item_details") or {}


def _is_proration(line: Mapping[str, Any]) -> bool:
    return bool(_details_of(line).get("proration"))


def _item_of(line: Mapping[str, Any]) -> str | None:
    """The subscription item that a line bills; an invoice item bills none, whichever it may name."""
    details = _details_of(line)
    if line.get("type") == "invoiceitem" and not details.get("proration"):
        return None
    return _id_of(details.get("subscription_item"))


def _invoice_item_of(line: Mapping[str, Any]) -> str | None:
    return _id_of(_details_of(line).get("invoice_item"))


def _price_of(line: Mapping[str, Any]) -> str | None:
    pricing = line.get("pricing")
    if pricing:
        return _id_of((pricing.get("price_details") or {}).get("price"))
    return _id_of(line.get("price"))


def _unit_of(line: Mapping[str, Any]) -> Decimal | None:
    # Before API version 2025-03-31.basil, the line showed all of its price.
    holder = line.get("pricing") or line.get("price")
    unit = holder.get("unit_amount_decimal") if isinstance(holder, Mapping) else None
    return None if unit is None else Decimal(str(unit))


def _quantity_of(line: Mapping[str, Any], kind: LineKind) -> int:
    """Whole where it is of usage; a line of no quantity has none."""
    quantity = line.get("quantity")
    if quantity is None:
        quantity = Decimal(str(line.get("quantity_decimal") or 0))
    if quantity != int(quantity) and kind is LineKind.USAGE:
        raise ValueError(f"line {line['id']} has a quantity of {quantity}, and tokens are whole")
    return int(quantity)


def _proposal_of(line: Mapping[str, Any], ledger_id: str) -> int | None:
    """The proposal of this ledger's that a line carries out; another ledger's proposals are nothing to us."""
    metadata = line.get("metadata") or {}
    proposal = str(metadata.get(PROPOSAL_KEY) or "")
    return int(proposal) if metadata.get(LEDGER_KEY) == ledger_id and proposal.isdecimal() else None


def _subscription_of(invoice: Mapping[str, Any]) -> str | None:
    parent = invoice.get("parent")
    if parent is None:  # before API version 2025-03-31.basil
        return _id_of(invoice.get("subscription"))
    return _id_of((parent.get("subscription_details") or {}).get("subscription"))


def _id_of(reference: object) -> str | None:
    """Stripe names another object by its id, or shows all of it."""
    found = reference.get("id") if isinstance(reference, Mapping) else reference
    return found if isinstance(found, str) and found else None


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _time_or_none(seconds: int | None) -> datetime | None:
    return None if seconds is None else _time(seconds)
