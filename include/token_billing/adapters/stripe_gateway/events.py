"""Stripe's lists of events, and the objects that events are about, as plain JSON: what was rendered once is not rendered again."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import stripe

from token_billing.adapters.stripe_gateway.connection import StripeConnection, message_of
from token_billing.adapters.stripe_gateway.objects import summing_meter, terms_of
from token_billing.errors import BadEvent, EventsNotListed, StripeRefusesKey
from token_billing.model import Meter
from token_billing.rating import Price
from token_billing.stripe_events import METER_ERROR_EVENTS, SNAPSHOT_EVENTS, StripeEvent, event_of

log = logging.getLogger(__name__)

#: Stripe lists so many objects a page at most.
PAGE = 100


class PricedUsage(NamedTuple):
    """A price's meter, if it has one that sums, and its terms; or the id of a meter that cannot be billed from, and why."""

    meter: Meter | None = None
    price: Price | None = None
    unusable: tuple[str, str] | None = None


class EventGateway(StripeConnection):
    """Reads events and what they are about; used within one event loop. `server_time`: Stripe's clock at its last answer."""

    server_time: datetime | None = None

    async def events(self, since: datetime, until: datetime) -> list[StripeEvent]:
        """The wanted events of `[since, until]` as far as Stripe's list shows them. Raises EventsNotListed where Stripe, or what answers
        for it, has no such list for this key, besides what every read may raise."""
        wanted: dict[str, Any] = {
            "types": list(SNAPSHOT_EVENTS),
            "created": {"gte": int(since.timestamp()), "lte": int(until.timestamp())},
            "limit": PAGE,
        }
        found: list[StripeEvent] = []
        try:
            while True:
                page = await self._get("/v1/events", wanted)
                found += _understood(page["data"])
                last = page["data"][-1]["id"] if page["data"] else None
                if not page.get("has_more") or last in (None, wanted.get("starting_after")):
                    break
                wanted["starting_after"] = last
            return found + await self._meter_errors(since, until)
        except (stripe.StripeError, KeyError, TypeError) as refusal:
            said = message_of(refusal) if isinstance(refusal, stripe.StripeError) else f"no list of events: {refusal}"
            raise EventsNotListed(
                f"Stripe does not list its events to the key of connection `stripe_default` ({said}); give it read access to events. Until "
                "then, plan changes and boundaries are known only as far as webhooks tell of them."
            ) from refusal

    async def _meter_errors(self, since: datetime, until: datetime) -> list[StripeEvent]:
        """Thin events of meters; none where a stand-in or key has no second version of the list."""
        wanted: dict[str, Any] = {
            "types": list(METER_ERROR_EVENTS),
            "created": {"gte": since.isoformat(timespec="seconds"), "lte": until.isoformat(timespec="seconds")},
            "limit": PAGE,
        }
        found: list[StripeEvent] = []
        try:
            while True:
                page = await self._get("/v2/core/events", wanted)
                found += _understood(page["data"])
                following = parse_qs(urlsplit(page.get("next_page_url") or "").query).get("page")
                if not following or following[0] == wanted.get("page"):
                    return found
                wanted["page"] = following[0]
        except (stripe.StripeError, KeyError, TypeError) as refusal:
            log.warning("Stripe does not list its meter error events, so only totals tell what it did not count: %s", refusal)
            return found

    async def subscription(self, subscription_id: str) -> Mapping[str, Any] | None:
        """The subscription as it is now; None where Stripe has none under this id."""
        return await self._found(f"/v1/subscriptions/{subscription_id}")

    async def core_event(self, event_id: str) -> Mapping[str, Any] | None:
        """A thin event with what it is about; None where Stripe has none under this id."""
        return await self._found(f"/v2/core/events/{event_id}")

    async def priced(self, price_id: str) -> PricedUsage:
        """A price's meter and terms, as far as they can be read."""
        try:
            price = await self._read(lambda: self._client.v1.prices.retrieve_async(price_id, {"expand": ["tiers"]}))
            meter_id = price.recurring and price.recurring.meter
            meter = await self._read(lambda: self._client.v1.billing.meters.retrieve_async(meter_id)) if meter_id else None
        except stripe.StripeError as refusal:
            log.warning("price %s cannot be read: %s", price_id, message_of(refusal))
            return PricedUsage()
        try:
            terms = terms_of(price)
        except (AttributeError, ValueError) as unreadable:
            log.warning("the terms of price %s cannot be read, so its usage has no known value in money: %s", price_id, unreadable)
            terms = None
        summing, problem = summing_meter(meter) if meter else (None, None)
        if meter and problem:
            log.error("usage at price %s cannot be billed: %s", price_id, problem)
            return PricedUsage(None, terms, (meter.id, problem))
        return PricedUsage(summing, terms)

    async def _found(self, path: str) -> Mapping[str, Any] | None:
        try:
            return await self._get(path, {})
        except stripe.PermissionError as refusal:
            raise StripeRefusesKey(
                f"the key of connection `stripe_default` may not read {path}: {message_of(refusal)}. Give it read access to subscriptions "
                "and events; what happened at Stripe is handled then."
            ) from refusal
        except stripe.StripeError as refusal:
            log.warning("Stripe does not show %s: %s", path, message_of(refusal))
            return None

    async def _get(self, path: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        async def get() -> dict[str, Any]:
            answer = await self._client.raw_request_async("get", path, **parameters)
            self.server_time = _server_time(answer.headers)
            return dict(answer.data)

        return await self._read(get)


def _server_time(headers: Mapping[str, str]) -> datetime | None:
    try:
        return parsedate_to_datetime({name.lower(): value for name, value in headers.items()}["date"])
    except (KeyError, ValueError):
        return None


def _understood(listed: Iterable[Mapping[str, Any]]) -> Iterator[StripeEvent]:
    """The listed events; one that cannot be understood is told of and holds no other up."""
    for event in listed:
        try:
            yield event_of(event)
        except BadEvent as bad:
            log.error("Stripe lists event %s, which cannot be understood: %s", event.get("id"), bad)
