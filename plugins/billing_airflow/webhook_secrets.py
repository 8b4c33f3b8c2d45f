"""The webhook's signing secrets, from wherever Airflow keeps them: its connections may come from any secrets backend."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable

from airflow.exceptions import AirflowNotFoundException
from airflow.sdk import BaseHook

from billing_airflow.connections import STRIPE_DEFAULT
from billing_airflow.variables import AirflowVariables
from token_billing.errors import OperatorNeeded

log = logging.getLogger(__name__)

#: Where the DAG set_up_stripe leaves the secret of the endpoint it makes.
WEBHOOK_SECRET_VARIABLE = "billing_stripe_webhook_secret"

#: So long a found secret is used without being looked up again, so that a webhook costs no lookup.
KEPT_SECONDS = 60.0
#: Where none of them fits, or there is none, they are looked up at once, but no more often than this, whoever sends forgeries.
AGAIN_SECONDS = 5.0
#: A secrets backend that takes longer is not waited for: Stripe waits for an answer.
LOOKUP_SECONDS = 5.0


def find_webhook_secrets() -> tuple[str, ...]:
    """Extra `webhook_secret` of connection `stripe_default`, else the setting STRIPE_WEBHOOK_SECRET, else what the DAG set_up_stripe left;
    each may be several, as a list or separated by commas or spaces. None at all is an empty tuple."""
    return (
        _of_connection()
        or _separated(os.environ.get("STRIPE_WEBHOOK_SECRET"))
        or _separated(AirflowVariables().read(WEBHOOK_SECRET_VARIABLE))
    )


def _of_connection() -> tuple[str, ...]:
    try:
        return _separated(BaseHook.get_connection(STRIPE_DEFAULT).extra_dejson.get("webhook_secret"))
    except AirflowNotFoundException:
        return ()


def _separated(value: object) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(secret for one in value for secret in _separated(one))
    if value is not None and not isinstance(value, str):
        raise OperatorNeeded(f"extra `webhook_secret` of connection `{STRIPE_DEFAULT}` is neither a text nor a list of texts")
    return tuple(re.findall(r"[^\s,]+", value or ""))


class KeptSecrets:
    """The secrets, kept for a while; used within one event loop."""

    def __init__(self, find: Callable[[], tuple[str, ...]] = find_webhook_secrets) -> None:
        self._find = find
        self._found: tuple[str, ...] = ()
        self._looked_at = float("-inf")
        self._turn = asyncio.Lock()

    async def known(self) -> tuple[str, ...]:
        """The secrets as of a minute ago at most; an empty tuple where there is none."""
        return await self._no_older_than(KEPT_SECONDS if self._found else AGAIN_SECONDS)

    async def newest(self) -> tuple[str, ...]:
        """The secrets as of just now, for a webhook that those known do not fit: one of them may have been rolled."""
        return await self._no_older_than(AGAIN_SECONDS)

    async def _no_older_than(self, seconds: float) -> tuple[str, ...]:
        if self._is_older_than(seconds):
            async with self._turn:
                if self._is_older_than(seconds):  # nobody else has looked meanwhile
                    await self._look()
        return self._found

    def _is_older_than(self, seconds: float) -> bool:
        return time.monotonic() - self._looked_at >= seconds

    async def _look(self) -> None:
        """Where that fails, what was found before stays."""
        try:
            self._found = await asyncio.wait_for(asyncio.to_thread(self._find), LOOKUP_SECONDS)
        except Exception as error:  # whatever a secrets backend raises
            log.error("the webhook's signing secret could not be looked up: %s: %s", type(error).__name__, error)
        self._looked_at = time.monotonic()
