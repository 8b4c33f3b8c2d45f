"""The hook behind connections of type `stripe`: it tells whose key a connection holds."""

import asyncio
from dataclasses import replace

from airflow.sdk import BaseHook

from billing_airflow.connections import STRIPE_DEFAULT, stripe_target_of
from token_billing.adapters.stripe_gateway import StripeTarget, stripe_gateway
from token_billing.errors import BillingError, StripeRefusesKey, StripeUnavailable
from token_billing.model import StripeAccount

#: Somebody is looking at the form.
TIMEOUT_SECONDS = 5.0


class StripeHook(BaseHook):
    """Reaches Stripe by a connection: its password is the secret key, its host the API's base where that is not Stripe's own."""

    conn_name_attr = "stripe_conn_id"
    default_conn_name = STRIPE_DEFAULT
    conn_type = "stripe"
    hook_name = "Stripe"

    def __init__(self, stripe_conn_id: str = STRIPE_DEFAULT) -> None:
        super().__init__()
        self.stripe_conn_id = stripe_conn_id

    def get_conn(self) -> StripeTarget:
        """Which Stripe the connection names; raises OperatorNeeded where it must not be used."""
        return stripe_target_of(self.get_connection(self.stripe_conn_id))

    def test_connection(self) -> tuple[bool, str]:
        """Asks Stripe whose key this is; a sentence about the answer, or about what is wrong."""
        try:
            target = replace(self.get_conn(), timeout_s=TIMEOUT_SECONDS)
            account = asyncio.run(_account(target))
        except StripeRefusesKey as refusal:
            return False, f"Stripe refuses the secret key: {_first_cause(refusal)}"
        except StripeUnavailable as unavailable:
            return False, f"Stripe could not be reached: {_first_cause(unavailable)}"
        except BillingError as unusable:
            return False, str(unusable)
        return True, f"The key bills {account}."


async def _account(target: StripeTarget) -> StripeAccount:
    async with stripe_gateway(target) as stripe:
        return await stripe.account()


def _first_cause(error: BaseException) -> str:
    """What it all began with, in one line: the SDK wraps an error of the network in advice of several."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
