"""Corrections at Stripe: invoice items and credit notes that proposals make, and how they are found again."""

from collections.abc import Mapping
from typing import Any

import stripe

from token_billing.adapters.stripe_gateway.connection import message_of
from token_billing.adapters.stripe_gateway.events import PAGE
from token_billing.adapters.stripe_gateway.sinks import BillingMeters
from token_billing.errors import ProposalRefused, StripeRefusesKey
from token_billing.invoices import LEDGER_KEY, PROPOSAL_KEY
from token_billing.model import Answer, NoAnswer
from token_billing.proposals import SUBJECT_KEY, Decision, Made

#: Where each is made and listed, and what of a request says among which it is to be looked for.
_PLACES = {Decision.INVOICE_ITEM: ("/v1/invoiceitems", "customer"), Decision.CREDIT_NOTE: ("/v1/credit_notes", "invoice")}

#: A subscription with one of these states makes no invoice any more (API reference, subscription status).
_ENDED = ("canceled", "incomplete_expired")


class CorrectionGateway(BillingMeters):
    """Makes what people decided on; used within one event loop."""

    async def takes_items(self, subscription_id: str) -> bool:
        """Whether the subscription has a next invoice that an item can be on."""
        subscription = await self._shown(f"/v1/subscriptions/{subscription_id}")
        return subscription is not None and subscription.get("status") not in _ENDED

    async def is_paid(self, invoice_id: str) -> bool:
        """Whether the invoice was paid; one that asks for nothing, or that Stripe does not show, was not."""
        invoice = await self._shown(f"/v1/invoices/{invoice_id}")
        return invoice is not None and invoice.get("status") == "paid" and bool(invoice.get("amount_paid", invoice.get("total")))

    async def make(self, decision: Decision, request: Mapping[str, Any], idempotency_key: str) -> Answer | NoAnswer:
        """Asks Stripe for it, once; never raises for anything that Stripe or the network does."""
        path, _ = _PLACES[decision]
        mine = request["metadata"][PROPOSAL_KEY]
        return await self._write(
            path,
            # What answers for Stripe may not repeat the metadata; somebody else's are no answer.
            lambda made: bool(made.get("id")) and (made.get("metadata") or {}).get(PROPOSAL_KEY, mine) == mine,
            idempotency_key=idempotency_key,
            **request,
        )

    async def made(self, decision: Decision, of: str, ledger_id: str) -> list[Made]:
        """All that this ledger's proposals have made for a customer (invoice items) or of an invoice (credit notes). Raises
        ProposalRefused where Stripe does not list it, besides what every read may raise."""
        path, among = _PLACES[decision]
        wanted: dict[str, Any] = {among: of, "limit": PAGE}
        found: list[Made] = []
        try:
            while True:
                page = await self._page(path, wanted)
                for one in page["data"]:
                    said = one.get("metadata") or {}
                    if said.get(LEDGER_KEY) == ledger_id:
                        found.append(Made(one["id"], str(said.get(PROPOSAL_KEY)), str(said.get(SUBJECT_KEY, ""))))
                last = page["data"][-1]["id"] if page["data"] else None
                if not page.get("has_more") or last in (None, wanted.get("starting_after")):
                    return found
                wanted["starting_after"] = last
        except (stripe.InvalidRequestError, KeyError, TypeError) as refusal:
            said = message_of(refusal) if isinstance(refusal, stripe.StripeError) else str(refusal)
            raise ProposalRefused(
                f"Stripe does not list {path}, so it cannot be told whether an earlier attempt made anything: {said}. Nothing more is made "
                "until it can be told; look there by hand, and say what you found: `python -m billing_airflow resolve-proposal`"
            ) from refusal

    async def _page(self, path: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        async def get() -> dict[str, Any]:
            return dict((await self._client.raw_request_async("get", path, **wanted)).data)

        try:
            return await self._read(get)
        except stripe.PermissionError as refusal:
            raise StripeRefusesKey(
                f"the key of connection `stripe_default` may not read {path}: {message_of(refusal)}. Give it read and write access to "
                "invoices, invoice items and credit notes, and read access to subscriptions."
            ) from refusal

    async def _shown(self, path: str) -> dict[str, Any] | None:
        """The object as it is now; None where Stripe has none there."""
        try:
            return await self._page(path, {})
        except stripe.InvalidRequestError:
            return None
