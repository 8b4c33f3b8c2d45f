"""One open set of connections to Stripe: reads that may be repeated, writes that may not, and what their answers say."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import aiohttp
import stripe
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from token_billing.errors import StripeRefusesKey, StripeUnavailable
from token_billing.model import Answer, NoAnswer, StripeAccount
from token_billing.targets import STRIPE_BASE, check_target, is_live

Result = TypeVar("Result")

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
    #: The first wait before a read is tried again.
    read_backoff_s: float = 0.25

    def __post_init__(self) -> None:
        # safeguard: every target is checked
        check_target(self.secret_key, self.base, sandbox=self.sandbox)

    def __repr__(self) -> str:
        return f"StripeTarget(base={self.base!r}, sandbox={self.sandbox})"


class StripeConnection:
    """What every gateway to Stripe is built on; used within one event loop."""

    def __init__(self, client: stripe.StripeClient, target: StripeTarget) -> None:
        self._client = client
        self._target = target

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

    async def _read(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Reads are free to repeat: time-outs, 429 and 5xx are tried again; raises StripeUnavailable where that did not help, and
        StripeRefusesKey for a wrong key. Other refusals are the caller's to understand."""
        again = AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(4),
            wait=wait_exponential_jitter(multiplier=self._target.read_backoff_s, max=5, jitter=4 * self._target.read_backoff_s),
            reraise=True,
        )

        async def read() -> Result:
            return await call()

        try:
            return await again(read)
        except stripe.AuthenticationError as error:
            raise StripeRefusesKey(
                f"Stripe at {self._target.base} refused the secret key of connection `stripe_default`: {message_of(error)}. "
                "Put a valid key in its password field and clear the task."
            ) from error
        except (stripe.StripeError, *_TRANSPORT_ERRORS) as error:
            if not _may_pass(error):
                raise
            raise StripeUnavailable(
                f"Stripe at {self._target.base} (connection `stripe_default`) could not be reached or gave no usable answer: {error}. "
                "Nothing more was sent; the task's retries, or clearing it, go on from here."
            ) from error

    async def _write(self, path: str, is_about_it: Callable[[dict[str, Any]], bool], **parameters: Any) -> Answer | NoAnswer:
        """One write, without retries; a success that `is_about_it` does not recognise is no answer of Stripe's."""
        try:
            answer = await self._client.raw_request_async("post", path, **parameters)
            # safeguard: a success names the event
            if not isinstance(answer.data, dict) or not is_about_it(answer.data):
                return NoAnswer("the answer does not name the event that was sent: something else answers for Stripe", never_left=False)
            return Answer(200, object_id=answer.data.get("id"))
        except stripe.StripeError as error:
            if error.http_status is None or error.http_status < 300:
                # safeguard: only a connection never made left nothing
                return NoAnswer(message_of(error), never_left=isinstance(error.__cause__, aiohttp.ClientConnectorError))
            return _answer(error)
        except _TRANSPORT_ERRORS as error:
            # safeguard: a broken connection may have delivered
            return NoAnswer(f"{type(error).__name__}: {error}", never_left=False)


Gateway = TypeVar("Gateway", bound=StripeConnection)


@asynccontextmanager
async def open_gateway(kind: type[Gateway], target: StripeTarget) -> AsyncIterator[Gateway]:
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
        yield kind(client, target)
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
        message=message_of(error),
        replayed=headers.get("idempotent-replayed") == "true",
        retry_after_s=_seconds(headers.get("retry-after")),
    )


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After` in seconds, bounded; its date form is not used by Stripe."""
    try:
        return min(float(retry_after), timedelta(minutes=1).total_seconds()) if retry_after else None
    except ValueError:
        return None


def message_of(error: stripe.StripeError) -> str:
    """What Stripe said, as far as a log line and a row should carry it."""
    return (error.user_message or str(error))[:1000]
