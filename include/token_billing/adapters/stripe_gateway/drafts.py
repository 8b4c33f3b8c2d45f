"""Invoices that close billing periods, from draft to final, and the time at which a draft is finalised."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import stripe

from token_billing.adapters.stripe_gateway.connection import StripeConnection, StripeTarget, message_of
from token_billing.adapters.stripe_gateway.objects import invoiced_by, may_close_usage, subscription_of
from token_billing.closing import ClosingInvoice
from token_billing.errors import StripeRefusesKey

log = logging.getLogger(__name__)

#: Stripe lists so many objects a page at most.
PAGE = 100


class DraftGateway(StripeConnection):
    """Reads invoices and moves drafts; used within one event loop. `items` are the subscriptions whose invoices count, each with the
    subscription items that bill usage of ours. `unreadable`: why invoices could not be listed or understood."""

    def __init__(self, client: stripe.StripeClient, target: StripeTarget) -> None:
        super().__init__(client, target)
        self.unreadable: list[str] = []

    async def drafts(self, items: Mapping[str, Sequence[str]], now: datetime) -> list[ClosingInvoice]:
        """Every draft that closes a period of the items, but for what is unreadable."""
        return await self._listed({"status": "draft"}, items, now)

    async def made_since(self, since: datetime, items: Mapping[str, Sequence[str]], now: datetime) -> list[ClosingInvoice]:
        """The same of every invoice made since then, whatever became of it."""
        return await self._listed({"created": {"gte": int(since.timestamp())}}, items, now)

    async def invoice(self, invoice_id: str, items: Mapping[str, Sequence[str]], now: datetime) -> ClosingInvoice | None:
        """An invoice as it is now, whichever periods it closes; None where there is none (any more)."""
        try:
            found = await self._read(lambda: self._client.v1.invoices.retrieve_async(invoice_id))
            return await _closing(found, items, now)
        except stripe.PermissionError as refusal:
            raise _may_not("read", refusal) from refusal
        except stripe.InvalidRequestError as gone:
            log.warning("Stripe does not show invoice %s: %s", invoice_id, message_of(gone))
            return None

    async def finalise_at(self, invoice_id: str, time: datetime) -> datetime | None:
        """Has a draft that is finalised by itself finalised at that time; returns the time that Stripe set. None, with a warning, where
        it cannot be: it is final, or somebody has decided that it is not finalised by itself. May be repeated."""
        # `auto_advance` is not sent: whoever switched it off since has decided.
        wanted: dict[str, Any] = {"automatically_finalizes_at": int(time.timestamp())}
        try:
            moved = await self._read(lambda: self._client.v1.invoices.update_async(invoice_id, wanted))  # type: ignore[arg-type]
        except stripe.PermissionError as refusal:
            raise _may_not("write", refusal) from refusal
        except stripe.StripeError as refusal:
            log.warning("invoice %s cannot be finalised at another time: %s", invoice_id, message_of(refusal))
            return None
        return _time(getattr(moved, "automatically_finalizes_at", None)) or time

    async def _listed(self, wanted: dict[str, Any], items: Mapping[str, Sequence[str]], now: datetime) -> list[ClosingInvoice]:
        async def all_pages() -> list[Any]:
            page = await self._client.v1.invoices.list_async({**wanted, "limit": PAGE})  # type: ignore[arg-type]
            return [one async for one in page.auto_paging_iter()]

        try:
            listed = await self._read(all_pages)
        except stripe.PermissionError as refusal:
            raise _may_not("read", refusal) from refusal
        except (stripe.InvalidRequestError, AttributeError) as unknown:
            self.unreadable.append(f"invoices cannot be listed: {unknown}")
            return []
        found = []
        for invoice in listed:
            try:
                if subscription_of(invoice) in items and may_close_usage(invoice):
                    found.append(await self._read(partial(_closing, invoice, items, now)))
            except (stripe.InvalidRequestError, AttributeError, TypeError, ValueError) as odd:
                # safeguard: an invoice that nobody can hold is told
                self.unreadable.append(f"invoice {invoice.id} cannot be understood: {odd}")
        return [one for one in found if one.periods]


async def _closing(invoice: Any, items: Mapping[str, Sequence[str]], now: datetime) -> ClosingInvoice:
    subscription_id = subscription_of(invoice) or ""
    lines = [line async for line in invoice.lines.auto_paging_iter()]
    return ClosingInvoice(
        invoice.id,
        subscription_id,
        invoice.status,
        datetime.fromtimestamp(invoice.created, UTC),
        getattr(invoice, "auto_advance", True) is not False,
        _time(getattr(invoice, "automatically_finalizes_at", None)),
        _time(getattr(getattr(invoice, "status_transitions", None), "finalized_at", None)),
        tuple(one for item in items.get(subscription_id, ()) for one in invoiced_by(invoice, lines, item, now)),
    )


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _may_not(do: str, refusal: stripe.StripeError) -> StripeRefusesKey:
    return StripeRefusesKey(
        f"the key of connection `stripe_default` may not {do} invoices: {message_of(refusal)}. Give it read and write access to invoices: "
        "until then drafts are finalised before all usage of their periods is on them."
    )
