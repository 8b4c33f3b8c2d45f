"""Stripe's invoices with all their lines, and the prices on them, as they are now."""

import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import stripe

from token_billing.adapters.stripe_gateway.connection import StripeConnection, message_of
from token_billing.adapters.stripe_gateway.objects import terms_of
from token_billing.charges import Trial
from token_billing.errors import InvoicesNotListed, StripeRefusesKey
from token_billing.invoices import ReadInvoice, price_of_item_line, read_invoice
from token_billing.model import Clock
from token_billing.rating import Price

log = logging.getLogger(__name__)

#: Stripe lists so many objects a page at most.
PAGE = 100


@dataclass
class Reading:
    """What reading invoices needs to know: whose ledger reads, when, and which prices bill usage; of others Stripe is asked, once each.
    `unreadable`: why invoices cannot be understood, by their ids."""

    ledger_id: str
    clock: Clock
    metered_prices: set[str]
    other_prices: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)


class InvoiceGateway(StripeConnection):
    """Reads invoices; used within one event loop."""

    async def invoices_since(self, since: datetime, reading: Reading) -> AsyncIterator[list[ReadInvoice]]:
        """All invoices made since then, the newest first, a page at a time. Raises InvoicesNotListed where Stripe, or what answers for it,
        has no such list for this key, besides what every read may raise."""
        wanted: dict[str, Any] = {"created": {"gte": int(since.timestamp())}, "limit": PAGE}
        while True:
            asked_at = reading.clock()
            try:
                page = await self._json("/v1/invoices", wanted)
                listed, has_more = list(page["data"]), bool(page.get("has_more"))
            except (stripe.InvalidRequestError, KeyError, TypeError) as unknown:
                said = message_of(unknown) if isinstance(unknown, stripe.StripeError) else f"no list of invoices: {unknown}"
                raise InvoicesNotListed(
                    f"Stripe does not list its invoices to the key of connection `stripe_default` ({said}). Without them, nothing tells "
                    "whether what was billed is what was used; see that the connection leads to an account with Billing."
                ) from unknown
            yield await self._understood(listed, asked_at, reading)
            if not listed or not has_more or listed[-1]["id"] == wanted.get("starting_after"):
                return
            wanted["starting_after"] = listed[-1]["id"]

    async def invoice(self, invoice_id: str, reading: Reading) -> ReadInvoice | None:
        """One invoice; None where Stripe has none under this id (a draft can be deleted), or one that cannot be understood."""
        asked_at = reading.clock()
        try:
            shown = await self._json(f"/v1/invoices/{invoice_id}", {})
        except stripe.InvalidRequestError as unknown:
            log.warning("Stripe does not show invoice %s: %s", invoice_id, message_of(unknown))
            return None
        return next(iter(await self._understood([shown], asked_at, reading)), None)

    async def price(self, price_id: str) -> Price | None:
        """What a price says today; None, with a warning, where that cannot be read."""
        try:
            shown = await self._json(f"/v1/prices/{price_id}", {"expand": ["tiers"]})
            return terms_of(stripe.Price.construct_from(shown, None))
        except (stripe.InvalidRequestError, AttributeError, ValueError) as unreadable:
            log.warning("the terms of price %s cannot be read: %s", price_id, unreadable)
            return None

    async def trial(self, subscription_id: str) -> Trial | None:
        """A subscription's trial and pause as they are now; None, with a warning, where Stripe does not show it."""
        try:
            shown = await self._json(f"/v1/subscriptions/{subscription_id}", {})
        except stripe.InvalidRequestError as unknown:
            log.warning("Stripe does not show subscription %s: %s", subscription_id, message_of(unknown))
            return None
        return Trial.of(shown.get("trial_start"), shown.get("trial_end"), shown.get("pause_collection"))

    async def _understood(self, listed: Sequence[Mapping[str, Any]], asked_at: datetime, reading: Reading) -> list[ReadInvoice]:
        """The listed invoices; one that cannot be understood is told of and holds no other up."""
        lines: dict[str, list[Mapping[str, Any]]] = {}
        for shown in listed:
            try:
                if not shown.get("deleted"):
                    lines[shown["id"]] = await self._lines(shown)
            except stripe.InvalidRequestError as refusal:
                log.warning("the lines of invoice %s cannot be read: %s", shown["id"], message_of(refusal))
                if shown.get("status") != "draft":  # a draft may have been deleted meanwhile
                    reading.unreadable[shown["id"]] = message_of(refusal)
        await self._learn_prices({price for all_of in lines.values() for price in map(price_of_item_line, all_of) if price}, reading)
        return list(_read(listed, lines, asked_at, reading))

    async def _lines(self, shown: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """All lines of an invoice. The first ones come with it; where there are more, all are read from their own list, so that none is
        counted twice or left out where a draft's lines moved meanwhile."""
        embedded = shown.get("lines") or {}
        # safeguard: lines beyond the first page
        if not embedded.get("has_more"):
            return list(embedded.get("data") or [])
        found: dict[str, Mapping[str, Any]] = {}
        wanted: dict[str, Any] = {"limit": PAGE}
        while True:
            page = await self._json(f"/v1/invoices/{shown['id']}/lines", wanted)
            found |= {line["id"]: line for line in page["data"]}
            if not page["data"] or not page.get("has_more"):
                return list(found.values())
            wanted["starting_after"] = page["data"][-1]["id"]

    async def _learn_prices(self, price_ids: Collection[str], reading: Reading) -> None:
        """Finds out which of the prices bill usage."""
        for price_id in sorted(set(price_ids) - reading.metered_prices - reading.other_prices):
            try:
                price = await self._json(f"/v1/prices/{price_id}", {})
                is_metered = (price.get("recurring") or {}).get("usage_type") == "metered"
            except stripe.InvalidRequestError as refusal:
                log.warning("price %s cannot be read, so its lines are taken for no usage: %s", price_id, message_of(refusal))
                is_metered = False
            (reading.metered_prices if is_metered else reading.other_prices).add(price_id)

    async def _json(self, path: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Plain JSON of the SDK's: what is turned into our own types need not become objects before."""

        async def get() -> dict[str, Any]:
            return dict((await self._client.raw_request_async("get", path, **parameters)).data)

        try:
            return await self._read(get)
        except stripe.PermissionError as refusal:
            raise StripeRefusesKey(
                f"the key of connection `stripe_default` may not read {path}: {message_of(refusal)}. Give it read access to invoices, "
                "prices and meters: without it, nothing tells whether what was billed is what was used."
            ) from refusal


def _read(
    listed: Sequence[Mapping[str, Any]], lines: Mapping[str, Sequence[Mapping[str, Any]]], asked_at: datetime, reading: Reading
) -> Iterator[ReadInvoice]:
    for shown in listed:
        if shown["id"] not in lines:
            continue
        try:
            yield read_invoice(shown, lines[shown["id"]], reading.metered_prices, reading.ledger_id, asked_at)
        except (KeyError, TypeError, ValueError) as unreadable:
            reading.unreadable[shown["id"]] = f"{type(unreadable).__name__} {unreadable}"
            log.error("invoice %s cannot be understood: %s", shown["id"], reading.unreadable[shown["id"]])
