"""From the catalogue and what Stripe holds to what has to be done: a plan that reads like a diff. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from urllib.parse import urlsplit

from token_billing.catalog import CATALOGUE, INTERVAL, WEBHOOK_EVENTS, Definition, PriceDefinition, ProductDefinition
from token_billing.rating import Price, PricingMode, decimals


@dataclass(frozen=True)
class FoundPrice:
    """A price at Stripe. `interval` is how often it is billed, "" where it is billed once; `terms` None where they make no sense."""

    id: str
    is_active: bool
    lookup_key: str | None
    product_id: str
    interval: str
    is_metered: bool
    meter_id: str | None
    terms: Price | None

    @property
    def is_legacy(self) -> bool:
        """Whether it bills usage by the legacy metered billing system, which has no meters; no such price can be made any more."""
        return self.is_metered and self.meter_id is None


@dataclass(frozen=True)
class FoundMeter:
    """A meter at Stripe; `window` is set where its events come summed up already, and the last of a window counts."""

    id: str
    event_name: str
    is_active: bool
    formula: str
    window: str | None

    @property
    def problem(self) -> str | None:
        """Why usage cannot be reported to it."""
        if not self.is_active:
            return "is deactivated"
        if self.formula != "sum":
            return f"aggregates by {self.formula}, not by sum"
        return f"keeps only the last event of each {self.window}" if self.window else None


@dataclass(frozen=True)
class FoundProduct:
    """A product at Stripe."""

    id: str
    name: str
    is_active: bool


@dataclass(frozen=True)
class FoundEndpoint:
    """A webhook endpoint at Stripe; without an API version of its own it has the account's."""

    id: str
    url: str
    is_enabled: bool
    events: frozenset[str]
    api_version: str | None

    @property
    def missing_events(self) -> list[str]:
        """What it is not sent yet."""
        return [] if "*" in self.events else [event for event in WEBHOOK_EVENTS if event not in self.events]


@dataclass(frozen=True)
class Found:
    """What Stripe holds, by id: all products and meters, the prices that were asked for, and the endpoints."""

    products: Mapping[str, FoundProduct] = field(default_factory=dict)
    meters: Mapping[str, FoundMeter] = field(default_factory=dict)
    prices: Mapping[str, FoundPrice] = field(default_factory=dict)
    endpoints: Sequence[FoundEndpoint] = ()
    #: The version that the SDK speaks.
    api_version: str = ""


@dataclass(frozen=True)
class Wanted:
    """What set-up is asked for. `overrides` (name → price id) come from settings, `stored` from an earlier set-up; no `webhook_url`
    leaves the webhook endpoints alone."""

    overrides: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    webhook_url: str | None = None
    secret_is_known: bool = False

    @property
    def price_ids(self) -> set[str]:
        """The prices that are known by their ids."""
        return {*self.overrides.values(), *self.stored.values()}


class Action(StrEnum):
    """What becomes of one thing of the catalogue; the value is the sign before its line."""

    KEEP = " "
    CREATE = "+"
    #: A new price takes the lookup key; the one before stays as it is.
    REPLACE = "~"
    UPDATE = "*"


@dataclass(frozen=True)
class Step:
    """What becomes of one thing. `found_id`: what is kept, updated, or, where it is replaced, what was there before."""

    what: Definition
    action: Action
    told: str
    found_id: str | None = None

    @property
    def known_id(self) -> str:
        """Of what is there already."""
        assert self.found_id is not None, "only what is created has no id yet"
        return self.found_id


@dataclass(frozen=True)
class EndpointStep:
    """What becomes of the webhook endpoint, and all events that it is sent afterwards."""

    action: Action
    told: str
    found_id: str | None = None
    events: frozenset[str] = frozenset(WEBHOOK_EVENTS)


@dataclass(frozen=True)
class Plan:
    """What has to be done, in this order (`endpoint` last); with a problem nothing may be."""

    steps: tuple[Step, ...]
    endpoint: EndpointStep | None
    problems: tuple[str, ...]
    #: What does not stand in the way.
    notes: tuple[str, ...]

    @property
    def changes(self) -> list[Step | EndpointStep]:
        """The steps that change something."""
        return [step for step in self.all_steps if step.action != Action.KEEP]

    @property
    def all_steps(self) -> list[Step | EndpointStep]:
        """In the order in which they are carried out."""
        return [*self.steps, *([self.endpoint] if self.endpoint else [])]

    def __str__(self) -> str:
        """The plan as a diff."""
        lines = [f"{step.action} {step.told}" for step in self.all_steps]
        lines += [f"! {problem}" for problem in self.problems] + [f"  {note}" for note in self.notes]
        counts = {action: sum(step.action == action for step in self.all_steps) for action in Action}
        created, replaced, updated, kept = (counts[one] for one in (Action.CREATE, Action.REPLACE, Action.UPDATE, Action.KEEP))
        refused = f"; nothing can be done, in the way: {len(self.problems)}" if self.problems else ""
        lines.append(f"To create: {created}, prices to replace: {replaced}, to update: {updated}, unchanged: {kept}{refused}.")
        return "\n".join(lines)


def plan(wanted: Wanted, found: Found) -> Plan:
    """What makes Stripe hold the catalogue. Nothing there is ever edited but an endpoint's events."""
    problems: list[str] = []
    steps: list[Step] = []
    meters: dict[str, list[str]] = {}
    for product in CATALOGUE:
        prices = [_price_step(definition, wanted, found, problems) for definition in product.prices]
        steps.append(_product_step(product, prices, wanted, found, problems))
        for price in prices:
            if isinstance(price.what, PriceDefinition) and (meter := _meter_step(price.what, price, found, problems)):
                steps.append(meter)
                if meter.found_id:
                    meters.setdefault(meter.found_id, []).append(price.what.name)
        steps += prices
    # safeguard: two prices never share a meter
    for meter_id, names in meters.items():
        if len(names) > 1:
            problems.append(
                f"meter {meter_id} is behind {' and '.join(names)}, which would read each other's tokens: give one of their prices another "
                "lookup key in Stripe, or take its setting out, and a price with a meter of its own is made"
            )
    endpoint, notes = _endpoint_step(wanted, found, problems)
    return Plan(tuple(steps), endpoint, tuple(problems), tuple(notes))


def in_words(terms: Price, *, is_metered: bool) -> str:
    """What a price costs."""
    each = "a token" if is_metered else "a month"
    parts = []
    for tier in terms.tiers:
        span = "" if terms.mode == PricingMode.PER_UNIT else "after that " if tier.up_to is None else f"up to {tier.up_to:,} tokens "
        flat = f" and {_money(tier.flat_cents, terms.currency)} for reaching it" if tier.flat_cents else ""
        parts.append(f"{span}{_money(tier.unit_cents, terms.currency) if tier.unit_cents or not span else 'free'}{flat}")
    volume = " (all at the tier reached)" if terms.mode == PricingMode.VOLUME else ""
    package = f" for each package of {terms.package.size:,}" if terms.package else ""
    return f"{', '.join(parts)}{package or ' ' + each}{volume}"


def _price_step(definition: PriceDefinition, wanted: Wanted, found: Found, problems: list[str]) -> Step:
    """The price that the setting names, else the known one where it is as the catalogue says, else a new one."""
    words = in_words(definition.terms, is_metered=definition.meter is not None)
    told = f"  price {definition.name}: {words}"
    if override := wanted.overrides.get(definition.name):
        # safeguard: a price that a setting names is looked at
        if differences := _differences(definition, found.prices.get(override), found):
            problems.append(
                f"setting {definition.setting} names {override}, which {', '.join(differences)}. Give it the id of a price of {words}, or "
                "take the setting out: the price is then found by its lookup key, or made"
            )
        return Step(definition, Action.KEEP, f"{told}, {override} (setting {definition.setting})", override)
    known = _known_price(definition, wanted, found)
    if known is None:
        return Step(definition, Action.CREATE, told)
    if not (differences := _differences(definition, known, found)):
        return Step(definition, Action.KEEP, f"{told}, {known.id}{' (legacy metered billing)' if known.is_legacy else ''}", known.id)
    anew = f"a new price: {known.id} {', '.join(differences)}; it stays for the subscriptions that have it"
    return Step(definition, Action.REPLACE, f"{told}, {anew}", known.id)


def _known_price(definition: PriceDefinition, wanted: Wanted, found: Found) -> FoundPrice | None:
    """Who has the lookup key; only where nobody has, what an earlier set-up stored."""
    holder = next((price for price in found.prices.values() if price.lookup_key == definition.lookup_key), None)
    return holder or found.prices.get(wanted.stored.get(definition.name, ""))


def _differences(definition: PriceDefinition, price: FoundPrice | None, found: Found) -> list[str]:
    """How a price is not what the catalogue says; nothing where it is."""
    if price is None:
        return ["does not exist at Stripe (in the account and mode of this key)"]
    differences = [] if price.is_active else ["is archived"]
    if definition.meter and not price.is_metered:
        differences.append("does not bill usage (it is not metered)")
    elif price.is_metered and not definition.meter:
        differences.append("bills usage (it is metered)")
    elif definition.meter:
        meter = found.meters.get(price.meter_id or "")
        if meter and meter.problem:
            differences.append(f"has meter {meter.id}, which {meter.problem}")
    if price.interval != INTERVAL:
        differences.append(f"is billed every {price.interval}, not every {INTERVAL}" if price.interval else "is billed once")
    terms, agreed = price.terms, definition.terms
    if terms is None:
        differences.append("costs something that cannot be understood")
    else:
        if terms.currency != agreed.currency:
            differences.append(f"is in {terms.currency.upper()}, not in {agreed.currency.upper()}")
        if (terms.mode, terms.tiers, terms.package) != (agreed.mode, agreed.tiers, agreed.package):
            differences.append(f"costs {in_words(terms, is_metered=price.is_metered)}")
    return differences


def _product_step(product: ProductDefinition, prices: Sequence[Step], wanted: Wanted, found: Found, problems: list[str]) -> Step:
    """The product that the known prices belong to, else the one with our id or, where it was made by hand, its name."""
    of_prices = [(price.what, known.product_id) for price in prices if (known := found.prices.get(price.found_id or ""))]
    # A price that a setting names may belong to anything.
    own = [id for what, id in of_prices if isinstance(what, PriceDefinition) and what.name not in wanted.overrides]
    named = [one.id for one in found.products.values() if one.name == product.name and one.is_active]
    candidates = [found.products[id] for id in (*own, product.id, *named, *(id for _, id in of_prices)) if id in found.products]
    told = f'product "{product.name}"'
    if not candidates:
        return Step(product, Action.CREATE, told)
    chosen = candidates[0]
    if any(price.action != Action.KEEP for price in prices):
        if not chosen.is_active:
            problems.append(f"product {chosen.id} ({product.name}) is archived, and a price of it is to be made: unarchive it in Stripe")
        if chosen.id in named and chosen.id not in (*own, product.id) and len(named) > 1:
            problems.append(
                f'several products are called "{product.name}" ({", ".join(named)}): rename or archive all but one, and plan again'
            )
    return Step(product, Action.KEEP, f"{told}, {chosen.id}", chosen.id)


def _meter_step(definition: PriceDefinition, price: Step, found: Found, problems: list[str]) -> Step | None:
    """The meter of the known price, else the one that takes the events of this name; None for a price that needs none."""
    meter = definition.meter
    known = found.prices.get(price.found_id or "")
    if meter is None or (known and known.is_legacy and price.action == Action.KEEP):
        return None
    told = f"  meter {meter.event_name}: the sum of a customer's tokens"
    behind = found.meters.get(known.meter_id or "") if known else None
    if behind and not behind.problem:
        return Step(meter, Action.KEEP, f"{told}, {behind.id}", behind.id)
    for one in found.meters.values():
        if one.event_name == meter.event_name and one.is_active:
            if one.problem:
                problems.append(f"meter {one.id} of {meter.event_name} {one.problem}: deactivate it in Stripe, so that another can be made")
            return Step(meter, Action.KEEP, f"{told}, {one.id}", one.id)
    return Step(meter, Action.CREATE, told)


def _endpoint_step(wanted: Wanted, found: Found, problems: list[str]) -> tuple[EndpointStep | None, list[str]]:
    """The webhook endpoint's step, and what else is to be told of it."""
    url = wanted.webhook_url
    if url is None:
        return None, ["webhook endpoints are left alone: no webhook_url was given"]
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        problems.append(
            f"webhook_url is {url!r}; give the URL that Stripe can reach, such as https://airflow.example.com/api/billing/webhook"
        )
        return None, []
    told = f"webhook endpoint {url}"
    if not (same := [endpoint for endpoint in found.endpoints if endpoint.url == url]):
        return EndpointStep(Action.CREATE, f"{told}: {len(WEBHOOK_EVENTS)} types of events"), []
    endpoint = max(same, key=lambda one: one.is_enabled)
    notes = [] if wanted.secret_is_known else [secret_unknown(endpoint.id)]
    if endpoint.api_version not in (None, found.api_version):
        notes.append(
            f"webhook endpoint {endpoint.id} sends objects of API version {endpoint.api_version}, this code was written for "
            f"{found.api_version}; Stripe lets nobody change that: delete the endpoint and apply again to have it sent the newer ones"
        )
    changes = [f"more events ({', '.join(endpoint.missing_events)})"] if endpoint.missing_events else []
    changes += [] if endpoint.is_enabled else ["enabled again"]
    action, told = (Action.UPDATE, f"{told}, {endpoint.id}: {', '.join(changes)}") if changes else (Action.KEEP, f"{told}, {endpoint.id}")
    return EndpointStep(action, told, endpoint.id, endpoint.events | {*endpoint.missing_events}), notes


def secret_unknown(endpoint_id: str) -> str:
    """What to do about an endpoint whose signing secret is known to Stripe only."""
    return (
        f"webhook endpoint {endpoint_id} exists, but its signing secret is not known here: copy it from Stripe's dashboard into the extra "
        'of connection `stripe_default` as {"webhook_secret": "whsec_…"}, or delete the endpoint there and apply again'
    )


def _money(cents: Decimal, currency: str) -> str:
    """An amount that may be much less than a cent: 19.00 USD, 0.000005 USD."""
    places = decimals(currency)
    amount = cents.scaleb(-places).normalize()
    exponent = amount.as_tuple().exponent
    return f"{amount:,.{max(places, -int(exponent))}f} {currency.upper()}"
