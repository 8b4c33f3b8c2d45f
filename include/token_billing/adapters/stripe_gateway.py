"""Stripe, as this product uses it: the only module that imports the SDK. Every call returns our own types."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import aiohttp
import stripe
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from token_billing.adapters.stripe_objects import invoiced_by, present_period, terms_of
from token_billing.errors import StripeRefusesKey, StripeUnavailable
from token_billing.model import Answer, Destination, Meter, MeteredItem, NoAnswer, StripeAccount
from token_billing.periods import NOT_CLOSING, InvoicedPeriod
from token_billing.rating import Price
from token_billing.targets import STRIPE_BASE, check_target, is_live

Result = TypeVar("Result")

log = logging.getLogger(__name__)

# The SDK tells of every request and every answer at INFO: two lines a report would bury a task's log.
logging.getLogger("stripe").setLevel(logging.WARNING)

#: Errors of the transport that the SDK lets through unwrapped, for instance a reset in the middle of a body.
_TRANSPORT_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass(frozen=True)
class StripeTarget:
    """Which Stripe: the secret key and the API's base URL; `sandbox` forbids everything that is not a loopback stand-in."""

    secret_key: str
    base: str = STRIPE_BASE
    sandbox: bool = False
    timeout_s: float = 20.0

    def __post_init__(self) -> None:
        # safeguard: every target is checked
        check_target(self.secret_key, self.base, sandbox=self.sandbox)

    def __repr__(self) -> str:
        return f"StripeTarget(base={self.base!r}, sandbox={self.sandbox})"


class StripeGateway:
    """One open set of connections to Stripe; made by `stripe_gateway`, used within one event loop."""

    def __init__(self, client: stripe.StripeClient, target: StripeTarget) -> None:
        self._client = client
        self._target = target
        self._meters: dict[str, asyncio.Future[stripe.billing.Meter]] = {}
        self._prices: dict[str, asyncio.Future[Price | None]] = {}

    async def account(self) -> StripeAccount:
        """Whose key this is; raises StripeRefusesKey or StripeUnavailable, both naming the connection."""
        livemode = is_live(self._target.secret_key)
        try:
            account = await self._read(lambda: self._client.v1.accounts.retrieve_current_async())
        except stripe.StripeError as error:
            if error.http_status in (403, 404):  # a restricted key may not read its own account
                return StripeAccount(None, livemode)
            raise
        return StripeAccount(account.id, livemode)

    async def metered_item(self, usage_item_id: str) -> MeteredItem:
        """The item's price, meter and present period; what is wrong with it is told in `problem`, not raised. Each meter and each tier
        table is read once."""
        try:
            item = await self._read(lambda: self._client.v1.subscription_items.retrieve_async(usage_item_id))
        except stripe.InvalidRequestError as refusal:
            return MeteredItem(usage_item_id, problem=_message(refusal))
        except stripe.PermissionError as refusal:
            raise StripeRefusesKey(
                f"the key of connection `stripe_default` may not read subscription items: {_message(refusal)}. "
                "Give it read access to subscriptions and meters, and write access to meter events."
            ) from refusal
        price = item.price
        meter_id = price.recurring and price.recurring.meter
        if not meter_id:
            return MeteredItem(usage_item_id, price.id, problem=f"price {price.id} of item {usage_item_id} has no billing meter")
        if meter_id not in self._meters:
            reading = self._read(lambda: self._client.v1.billing.meters.retrieve_async(meter_id))
            self._meters[meter_id] = asyncio.ensure_future(reading)
        if price.id not in self._prices:
            self._prices[price.id] = asyncio.ensure_future(self._terms(price))
        meter, terms = await self._meters[meter_id], await self._prices[price.id]
        if meter.default_aggregation.formula != "sum":
            problem = f"meter {meter_id} aggregates by {meter.default_aggregation.formula}, not by sum"
            return MeteredItem(usage_item_id, price.id, problem=problem)
        keys = meter.customer_mapping.event_payload_key, meter.value_settings.event_payload_key
        period, is_first = present_period(item)
        if period is None:
            log.warning("Stripe tells of no billing period of item %s, so its usage is sent unchecked", usage_item_id)
        destination = Meter(meter.id, meter.event_name, *keys)
        return MeteredItem(usage_item_id, price.id, destination, None, getattr(item, "subscription", None), period, is_first, terms)

    async def _terms(self, price: stripe.Price) -> Price | None:
        """What units cost; None, with a warning, where that cannot be read: it decides nothing about what is sent."""
        try:
            if price.billing_scheme == "tiered":  # the tiers are shown only when they are asked for
                price = await self._read(lambda: self._client.v1.prices.retrieve_async(price.id, {"expand": ["tiers"]}))
            return terms_of(price)
        except (stripe.InvalidRequestError, stripe.PermissionError, AttributeError, ValueError) as unreadable:
            log.warning("the terms of price %s cannot be read, so its usage has no known value in money: %s", price.id, unreadable)
            return None

    async def invoiced_periods(self, usage_item_id: str, subscription_id: str, since: datetime, now: datetime) -> list[InvoicedPeriod]:
        """The periods of an item that the subscription's invoices made since then close; none, with a warning, where Stripe, or what
        answers for it, knows no such invoices."""
        wanted = {"subscription": subscription_id, "created": {"gte": int(since.timestamp())}, "limit": 100}

        async def closing() -> list[InvoicedPeriod]:
            listed = await self._client.v1.invoices.list_async(wanted)  # type: ignore[arg-type]
            found = []
            async for invoice in listed.auto_paging_iter():
                if invoice.billing_reason not in NOT_CLOSING:
                    lines = [line async for line in invoice.lines.auto_paging_iter()]
                    found += invoiced_by(invoice, lines, usage_item_id, now)
            return found

        try:
            return await self._read(closing)
        except stripe.PermissionError as refusal:
            raise StripeRefusesKey(
                f"the key of connection `stripe_default` may not read invoices: {_message(refusal)}. Give it read access to invoices: "
                "usage in a period whose invoice is final would never be billed."
            ) from refusal
        except (stripe.InvalidRequestError, AttributeError) as unknown:
            log.warning("the invoices of subscription %s cannot be read, so its usage is sent unchecked: %s", subscription_id, unknown)
            return []

    async def report_usage(
        self, destination: Destination, identifier: str, idempotency_key: str, token_count: int, event_time: datetime
    ) -> Answer | NoAnswer:
        """Sends one meter event, once; never raises for anything that Stripe or the network does.

        A raw request of the SDK's: the answer need not become objects, which is a fifth of the price of a call."""
        meter = destination.meter
        return await self._write(
            "/v1/billing/meter_events",
            lambda event: event.get("identifier") == identifier,
            event_name=meter.event_name,
            payload={meter.customer_payload_key: destination.customer_id, meter.value_payload_key: str(token_count)},
            identifier=identifier,
            timestamp=int(event_time.timestamp()),
            idempotency_key=idempotency_key,
        )

    async def cancel_usage(self, event_name: str, identifier: str, idempotency_key: str) -> Answer | NoAnswer:
        """Asks Stripe, once, not to count a meter event; never raises for anything that Stripe or the network does."""
        return await self._write(
            "/v1/billing/meter_event_adjustments",
            lambda adjustment: (adjustment.get("cancel") or {}).get("identifier") == identifier,
            event_name=event_name,
            type="cancel",
            cancel={"identifier": identifier},
            idempotency_key=idempotency_key,
        )

    async def _write(self, path: str, is_about_it: Callable[[dict[str, Any]], bool], **parameters: Any) -> Answer | NoAnswer:
        """One write, without retries; a success that `is_about_it` does not recognise is no answer of Stripe's."""
        try:
            answer = await self._client.raw_request_async("post", path, **parameters)
            # safeguard: a success names the event
            if not isinstance(answer.data, dict) or not is_about_it(answer.data):
                return NoAnswer("the answer does not name the event that was sent: something else answers for Stripe", never_left=False)
            return Answer(200)
        except stripe.StripeError as error:
            if error.http_status is None or error.http_status < 300:
                # safeguard: only a connection never made left nothing
                return NoAnswer(_message(error), never_left=isinstance(error.__cause__, aiohttp.ClientConnectorError))
            return _answer(error)
        except _TRANSPORT_ERRORS as error:
            # safeguard: a broken connection may have delivered
            return NoAnswer(f"{type(error).__name__}: {error}", never_left=False)

    async def summed_usage(self, customer_id: str, meter_id: str, start: datetime, end: datetime) -> int | None:
        """The tokens that Stripe's meter counts for the customer in `[start, end)`, whole minutes; it may lag behind what was accepted.
        None, with a warning, where Stripe does not tell: the customer was deleted, for instance."""
        wanted = {"customer": customer_id, "start_time": int(start.timestamp()), "end_time": int(end.timestamp())}

        async def summed() -> int:
            summaries = await self._client.v1.billing.meters.event_summaries.list_async(meter_id, wanted)  # type: ignore[arg-type]
            return sum([int(summary.aggregated_value) async for summary in summaries.auto_paging_iter()])

        try:
            return await self._read(summed)
        except stripe.InvalidRequestError as refusal:
            log.warning("Stripe does not tell what customer %s used: %s", customer_id, _message(refusal))
            return None

    async def _read(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Reads are free to repeat: time-outs, 429 and 5xx are tried again; raises StripeUnavailable where that did not help, and
        StripeRefusesKey for a wrong key. Other refusals are the caller's to understand."""
        again = AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(4),
            wait=wait_exponential_jitter(multiplier=0.25, max=5),
            reraise=True,
        )

        async def read() -> Result:
            return await call()

        try:
            return await again(read)
        except stripe.AuthenticationError as error:
            raise StripeRefusesKey(
                f"Stripe at {self._target.base} refused the secret key of connection `stripe_default`: {_message(error)}. "
                "Put a valid key in its password field and clear the task."
            ) from error
        except (stripe.StripeError, *_TRANSPORT_ERRORS) as error:
            if not _may_pass(error):
                raise
            raise StripeUnavailable(
                f"Stripe at {self._target.base} (connection `stripe_default`) could not be reached or gave no usable answer: {error}. "
                "Nothing more was sent; the task's retries, or clearing it, go on from here."
            ) from error


@asynccontextmanager
async def stripe_gateway(target: StripeTarget) -> AsyncIterator[StripeGateway]:
    """Opens the SDK on aiohttp (measured seven times as fast as its httpx transport), without retries of its own: whether a
    request may be repeated is decided where its attempt was noted."""
    transport = stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=target.timeout_s))
    client = stripe.StripeClient(
        target.secret_key,
        base_addresses={"api": target.base, "meter_events": target.base},
        http_client=transport,
        # safeguard: no retries but noted ones
        max_network_retries=0,
    )
    try:
        yield StripeGateway(client, target)
    finally:
        await transport.close_async()  # type: ignore[no-untyped-call]
        await asyncio.sleep(0)  # lets the transport's connections finish closing inside this loop


def _may_pass(error: BaseException) -> bool:
    """Whether a read that failed so may succeed a moment later."""
    if isinstance(error, stripe.StripeError):
        return error.http_status is None or error.http_status < 300 or error.http_status in (409, 429) or error.http_status >= 500
    return isinstance(error, _TRANSPORT_ERRORS)


def _answer(error: stripe.StripeError) -> Answer:
    headers = {name.lower(): value for name, value in dict(error.headers or {}).items()}
    body = error.error
    return Answer(
        http_status=error.http_status or 0,
        error_type=getattr(body, "type", None),
        error_code=error.code,
        message=_message(error),
        replayed=headers.get("idempotent-replayed") == "true",
        retry_after_s=_seconds(headers.get("retry-after")),
    )


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After` in seconds, bounded; its date form is not used by Stripe."""
    try:
        return min(float(retry_after), timedelta(minutes=1).total_seconds()) if retry_after else None
    except ValueError:
        return None


def _message(error: stripe.StripeError) -> str:
    """What Stripe said, as far as a log line and a row should carry it."""
    return (error.user_message or str(error))[:1000]
