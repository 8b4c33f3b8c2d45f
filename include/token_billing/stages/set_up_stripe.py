"""set_up_stripe: Stripe's account gets what the catalogue defines, and the ledger learns its ids. What is there is found, what is
missing is made, and no price is ever edited."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from token_billing.adapters import catalogue, ledger
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.adapters.stripe_gateway.catalog import AnsweredFromMemory, CatalogGateway
from token_billing.adapters.stripe_gateway.connection import open_gateway
from token_billing.catalog import PRICES, Definition, MeterDefinition, PriceDefinition, ProductDefinition
from token_billing.catalog_plan import Action, EndpointStep, Plan, Wanted, plan, secret_unknown
from token_billing.errors import CatalogueRefused, WebhookSecretUnknown
from token_billing.model import Clock

log = logging.getLogger(__name__)

#: Keeps the signing secret of a webhook endpoint where the webhook finds it.
KeepSecret = Callable[[str], None]

#: Where Stripe repeats an answer of before, things are looked at anew; once for each kind that is made, and some.
MOST_LOOKS = 5


@dataclass(frozen=True)
class Applied:
    """A plan that was carried out, and the newest price of each name."""

    plan: Plan
    price_ids: Mapping[str, str]

    def __str__(self) -> str:
        """The plan as a diff, then what subscriptions are made with."""
        return "\n".join((str(self.plan), "", *(f"{name}: {price_id}" for name, price_id in self.price_ids.items())))


def plan_set_up(connect: Connect, target: StripeTarget, wanted: Wanted, clock: Clock) -> Plan:
    """What an apply would do; nothing is changed anywhere. Raises CatalogueRefused, after logging the plan, where it could do nothing;
    besides that WrongStripeAccount, StripeRefusesKey and StripeUnavailable."""

    async def looked() -> Plan:
        with session(connect) as db:
            identity = ledger.identity(db)
            async with open_gateway(CatalogGateway, target) as stripe:
                # safeguard: a look pins no account
                if identity.account:
                    ledger.pin_account(db, identity.account, await stripe.account(), clock())
                return _checked(await look(stripe, replace(wanted, stored=catalogue.newest_price_ids(db))))

    return asyncio.run(looked())


def apply_set_up(connect: Connect, target: StripeTarget, wanted: Wanted, clock: Clock, keep_secret: KeepSecret) -> Applied:
    """Carries the plan out. Safe to be killed and run again at any point: what is there is found, a creation whose answer
    was lost is answered again. Raises as `plan_set_up` does, with nothing changed, and WebhookSecretUnknown, with all else done, where
    the endpoint that exists cannot be used."""

    async def applied() -> Applied:
        with session(connect) as db:
            identity = ledger.identity(db)
            async with open_gateway(CatalogGateway, target) as stripe:
                ledger.pin_account(db, identity.account, await stripe.account(), clock())
                return await again(_apply, db, stripe, wanted, clock, keep_secret)

    again = AsyncRetrying(retry=retry_if_exception_type(AnsweredFromMemory), stop=stop_after_attempt(MOST_LOOKS), reraise=True)
    return asyncio.run(applied())


async def _apply(db: Connection, stripe: CatalogGateway, wanted: Wanted, clock: Clock, keep_secret: KeepSecret) -> Applied:
    agreed = _checked(await look(stripe, replace(wanted, stored=catalogue.newest_price_ids(db))))
    with db.transaction():  # before they lose their lookup keys, by which alone they are known
        catalogue.note_prices(db, {}, _replaced(agreed), clock())
    ids = await carry_out(stripe, agreed)
    others = await _prices_of_meters(stripe, ids)
    with db.transaction():
        catalogue.note_prices(db, price_ids(ids), others, clock())
    if agreed.endpoint:
        await _carry_out_endpoint(stripe, agreed.endpoint, wanted, keep_secret)
    return Applied(agreed, price_ids(ids))


async def look(stripe: CatalogGateway, wanted: Wanted) -> Plan:
    """The plan as things stand at Stripe."""
    return plan(wanted, await stripe.find(wanted.price_ids, with_endpoints=wanted.webhook_url is not None))


async def carry_out(stripe: CatalogGateway, agreed: Plan) -> dict[Definition, str]:
    """Makes what the plan says is missing, but for the webhook endpoint; returns the ids of what the catalogue defines."""
    ids: dict[Definition, str] = {}
    product_id = ""
    for step in agreed.steps:
        is_made = step.action != Action.KEEP
        match step.what:
            case ProductDefinition() as product:
                product_id = ids[product] = await stripe.create_product(product) if is_made else step.known_id
            case MeterDefinition() as meter:
                ids[meter] = await stripe.create_meter(meter) if is_made else step.known_id
            case PriceDefinition() as price:
                meter_id = ids[price.meter] if price.meter else None
                ids[price] = await stripe.create_price(price, product_id, meter_id, step.found_id) if is_made else step.known_id
        if is_made:
            log.info("made %s: %s", step.told.partition(":")[0].strip(), ids[step.what])
    return ids


def price_ids(ids: Mapping[Definition, str]) -> dict[str, str]:
    """The newest price's id by name."""
    return {one.name: id for one, id in ids.items() if isinstance(one, PriceDefinition)}


def _replaced(agreed: Plan) -> dict[str, set[str]]:
    """The prices that are made anew: subscriptions go on under the ones before."""
    return {
        step.what.name: {step.known_id} for step in agreed.steps if step.action == Action.REPLACE and isinstance(step.what, PriceDefinition)
    }


async def _prices_of_meters(stripe: CatalogGateway, ids: Mapping[Definition, str]) -> dict[str, list[str]]:
    """Every price of each metered price's meter: whatever else it is behind bills under that name, too."""
    meters = {price.name: ids[price.meter] for price in PRICES.values() if price.meter and price.meter in ids}
    # safeguard: older prices stay known
    return {name: await stripe.prices_of_meter(meter_id) for name, meter_id in meters.items()}


async def _carry_out_endpoint(stripe: CatalogGateway, step: EndpointStep, wanted: Wanted, keep_secret: KeepSecret) -> None:
    """The signing secret of a new endpoint is kept at once, and told to nobody."""
    url = str(wanted.webhook_url)
    if step.action == Action.CREATE:
        keep_secret(await stripe.create_endpoint(url))
        log.info("made the webhook endpoint %s and kept its signing secret", url)
        return
    if step.action == Action.UPDATE:
        await stripe.update_endpoint(str(step.found_id), step.events)
    if not wanted.secret_is_known:
        raise WebhookSecretUnknown(f"{secret_unknown(str(step.found_id))}. All else is set up.")


def _checked(agreed: Plan) -> Plan:
    """The plan, told in the log; CatalogueRefused where something is in its way."""
    log.info("the plan for Stripe:\n%s", agreed)
    if agreed.problems:
        raise CatalogueRefused(f"nothing was changed at Stripe: {'; '.join(agreed.problems)}.")
    return agreed
