"""The catalogue at Stripe: what is there, and making what is missing."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar

import stripe

from token_billing.adapters.stripe_gateway.api_version import API_VERSION
from token_billing.adapters.stripe_gateway.connection import StripeConnection, message_of
from token_billing.adapters.stripe_gateway.objects import terms_of
from token_billing.catalog import (
    PRICES,
    MeterDefinition,
    PriceDefinition,
    ProductDefinition,
    creation_key,
    endpoint_parameters,
    meter_parameters,
    price_parameters,
    product_parameters,
)
from token_billing.catalog_plan import Found, FoundEndpoint, FoundMeter, FoundPrice, FoundProduct
from token_billing.errors import CatalogueRefused, StripeRefusesKey, StripeUnavailable
from token_billing.metering import idempotency_key
from token_billing.rating import Price

Result = TypeVar("Result")

#: Objects a page; Stripe's most.
PAGE: Any = {"limit": 100}

#: What set-up does with a key, as Stripe's restricted keys name it.
PERMISSIONS = "read and write access to products, prices, billing meters and webhook endpoints"


class AnsweredFromMemory(StripeUnavailable):
    """Stripe repeated the answer of an earlier call, whose work may be undone: after another look, another key is used."""


class CatalogGateway(StripeConnection):
    """Reads and makes what the catalogue defines. Whatever is made carries an idempotency key derived from its definition, so that
    doing it again after a lost answer makes nothing twice."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        #: By creation key: how often Stripe has answered from memory.
        self._key_numbers: Counter[str] = Counter()

    async def find(self, price_ids: Collection[str], *, with_endpoints: bool) -> Found:
        """All products and meters, the prices of the catalogue's lookup keys and of these ids, and, where asked for, the webhook
        endpoints. Raises StripeRefusesKey or StripeUnavailable."""
        v1 = self._client.v1
        keys: Any = {**PAGE, "lookup_keys": [price.lookup_key for price in PRICES.values()], "expand": ["data.tiers"]}
        products, meters, by_key, *by_id = await asyncio.gather(
            self._all(lambda: v1.products.list_async(PAGE)),
            self._all(lambda: v1.billing.meters.list_async(PAGE)),
            self._all(lambda: v1.prices.list_async(keys)),
            *(self._price(price_id) for price_id in price_ids),
        )
        endpoints = await self._all(lambda: v1.webhook_endpoints.list_async(PAGE)) if with_endpoints else []
        return Found(
            {one.id: FoundProduct(one.id, one.name, one.active) for one in products},
            {one.id: _found_meter(one) for one in meters},
            {one.id: _found_price(one) for one in (*by_key, *filter(None, by_id))},
            [FoundEndpoint(one.id, one.url, one.status == "enabled", frozenset(one.enabled_events), one.api_version) for one in endpoints],
            API_VERSION,
        )

    async def prices_of_meter(self, meter_id: str) -> list[str]:
        """Every price that the meter is behind, archived ones too."""
        wanted: Any = {**PAGE, "recurring": {"meter": meter_id}}
        return [price.id for price in await self._all(lambda: self._client.v1.prices.list_async(wanted))]

    async def create_product(self, product: ProductDefinition) -> str:
        """Makes the product; returns its id."""
        return str((await self._create(self._client.v1.products.create_async, product_parameters(product))).id)

    async def create_meter(self, meter: MeterDefinition) -> str:
        """Makes the meter; returns its id."""
        return str((await self._create(self._client.v1.billing.meters.create_async, meter_parameters(meter))).id)

    async def create_price(self, price: PriceDefinition, product_id: str, meter_id: str | None, replaces: str | None) -> str:
        """Makes the price, which takes the lookup key over; returns its id."""
        parameters = price_parameters(price, product_id, meter_id)
        return str((await self._create(self._client.v1.prices.create_async, parameters, replaces)).id)

    async def create_endpoint(self, url: str) -> str:
        """Makes the webhook endpoint; returns its signing secret, which Stripe shows only now."""
        parameters = endpoint_parameters(url, API_VERSION)
        return str((await self._create(self._client.v1.webhook_endpoints.create_async, parameters)).secret)

    async def update_endpoint(self, endpoint_id: str, events: Collection[str]) -> None:
        """Has the endpoint be sent these events, and enables it."""
        changes: Any = {"enabled_events": sorted(events), "disabled": False}
        await self._understood(self._read(lambda: self._client.v1.webhook_endpoints.update_async(endpoint_id, changes)))

    async def _create(
        self, create: Callable[[Any, Any], Coroutine[Any, Any, Any]], parameters: dict[str, Any], replaces: str | None = None
    ) -> Any:
        """Makes something, once. Raises AnsweredFromMemory where Stripe repeats what it answered to an earlier call."""
        key = creation_key(parameters, replaces)
        numbered = idempotency_key(key, self._key_numbers[key])
        request_count = 0

        async def request() -> Any:
            nonlocal request_count
            request_count += 1
            # safeguard: a creation can be repeated
            return await create(parameters, {"idempotency_key": numbered})

        try:
            made = await self._understood(self._read(request))
        except (StripeUnavailable, CatalogueRefused) as failed:
            if not _is_replayed(getattr(failed.__cause__, "headers", None)):
                raise
        else:
            # A repeated request gets the answer that the first one lost. But what an earlier call made may be gone by now.
            # safeguard: a remembered creation is looked for
            if request_count > 1 or not _is_replayed(made.last_response.headers):
                return made
        self._key_numbers[key] += 1
        raise AnsweredFromMemory(
            "Stripe repeats what it answered to an earlier try, as it does for 24 hours, and what that made is not there. Nothing more was "
            "made; clearing the task goes on from here."
        )

    async def _all(self, first_page: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
        async def pages() -> list[Any]:
            return [one async for one in (await first_page()).auto_paging_iter()]

        return await self._understood(self._read(pages))

    async def _price(self, price_id: str) -> Any:
        """None where there is no such price."""

        async def price() -> Any:
            try:
                return await self._client.v1.prices.retrieve_async(price_id, {"expand": ["tiers"]})
            except stripe.InvalidRequestError as refusal:
                if refusal.http_status == 404:
                    return None
                raise

        return await self._understood(self._read(price))

    async def _understood(self, call: Awaitable[Result]) -> Result:
        """Refusals in words for the operator."""
        try:
            return await call
        except stripe.PermissionError as refusal:
            raise StripeRefusesKey(
                f"the key of connection `stripe_default` may not do this: {message_of(refusal)}. Give it {PERMISSIONS}, and clear the task."
            ) from refusal
        except stripe.StripeError as refusal:
            raise CatalogueRefused(
                f"Stripe refused: {message_of(refusal)}. What was made before stays and is found again; once the cause is mended, "
                "set_up_stripe goes on from there."
            ) from refusal


def _is_replayed(headers: Mapping[str, str] | None) -> bool:
    return any(name.lower() == "idempotent-replayed" and value == "true" for name, value in (headers or {}).items())


def _found_meter(meter: stripe.billing.Meter) -> FoundMeter:
    return FoundMeter(meter.id, meter.event_name, meter.status == "active", meter.default_aggregation.formula, meter.event_time_window)


def _found_price(price: stripe.Price) -> FoundPrice:
    recurring = price.recurring
    interval = ""
    if recurring:
        interval = recurring.interval if recurring.interval_count == 1 else f"{recurring.interval_count} {recurring.interval}s"
    product = price.product if isinstance(price.product, str) else price.product.id
    is_metered = bool(recurring and recurring.usage_type == "metered")
    meter_id = recurring.meter if recurring else None
    return FoundPrice(price.id, price.active, price.lookup_key, product, interval, is_metered, meter_id, _terms(price))


def _terms(price: stripe.Price) -> Price | None:
    """None where the price names no amount: what is paid is the customer's choice, or its tiers are unreadable."""
    try:
        return terms_of(price) if price.billing_scheme == "tiered" or price.unit_amount_decimal is not None else None
    except (AttributeError, ValueError):
        return None
