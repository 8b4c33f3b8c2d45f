"""From the catalogue and what Stripe holds to a plan that reads like a diff."""

from dataclasses import replace
from decimal import Decimal

import pytest

from token_billing.catalog import CATALOGUE, PRICES, WEBHOOK_EVENTS
from token_billing.catalog_plan import Action, Found, FoundEndpoint, FoundMeter, FoundPrice, FoundProduct, Wanted, in_words, plan
from token_billing.rating import Package, Price, PricingMode, Tier

URL = "https://airflow.example.com/api/billing/webhook"


def held() -> Found:
    """Stripe, as an apply leaves it."""
    products = {product.id: FoundProduct(product.id, product.name, True) for product in CATALOGUE}
    meters = [product.meter for product in CATALOGUE if product.meter]
    prices = [
        FoundPrice(
            f"price_{price.name}",
            True,
            price.lookup_key,
            product.id,
            "month",
            price.meter is not None,
            price.meter and f"mtr_{price.meter.event_name}",
            price.terms,
        )
        for product in CATALOGUE
        for price in product.prices
    ]
    return Found(
        products,
        {f"mtr_{meter.event_name}": FoundMeter(f"mtr_{meter.event_name}", meter.event_name, True, "sum", None) for meter in meters},
        {price.id: price for price in prices},
        [FoundEndpoint("we_1", URL, True, frozenset(WEBHOOK_EVENTS), "2026-10-28.endive")],
        "2026-10-28.endive",
    )


def changed(name: str, **differences: object) -> Found:
    """The same, but for one price."""
    found = held()
    price = replace(found.prices[f"price_{name}"], **differences)  # type: ignore[arg-type]
    return replace(found, prices={**found.prices, price.id: price})


def with_meter(event_name: str, **differences: object) -> Found:
    found = held()
    meter = replace(found.meters[f"mtr_{event_name}"], **differences)  # type: ignore[arg-type]
    return replace(found, meters={**found.meters, meter.id: meter})


def test_an_empty_account_gets_everything() -> None:
    """A product before its meter, a meter before its price."""
    lines = str(plan(Wanted(), Found())).splitlines()
    assert lines == [
        '+ product "Atom SaaS"',
        "+   price solo: 19.00 USD a month",
        "+   price team: 79.00 USD a month",
        "+   price enterprise: 299.00 USD a month",
        '+ product "Managed AI Tokens (Bundled)"',
        "+   meter managed_ai_tokens_bundled: the sum of a customer's tokens",
        "+   price managed_ai_bundled_base: 50.00 USD a month",
        "+   price managed_ai_bundled: up to 5,000,000 tokens free, after that 0.000005 USD a token",
        '+ product "Managed AI Tokens (Pure)"',
        "+   meter managed_ai_tokens_pure: the sum of a customer's tokens",
        "+   price managed_ai_pure: 0.00002 USD a token",
        "  webhook endpoints are left alone: no webhook_url was given",
        "To create: 11, prices to replace: 0, to update: 0, unchanged: 0.",
    ]


def test_what_is_there_is_kept() -> None:
    made = plan(Wanted(webhook_url=URL, secret_is_known=True), held())
    assert (made.changes, made.problems, made.notes) == ([], (), ())
    assert "    price solo: 19.00 USD a month, price_solo" in str(made).splitlines()
    assert str(made).endswith("To create: 0, prices to replace: 0, to update: 0, unchanged: 12.")


@pytest.mark.parametrize(
    ("difference", "told"),
    [
        ({"terms": Price("x", "usd", PricingMode.PER_UNIT, (Tier(None, Decimal(1700)),))}, "costs 17.00 USD a month"),
        ({"terms": Price("x", "eur", PricingMode.PER_UNIT, (Tier(None, Decimal(1900)),))}, "is in EUR, not in USD"),
        ({"is_active": False}, "is archived"),
        ({"interval": "year"}, "is billed every year, not every month"),
        ({"interval": "3 months"}, "is billed every 3 months, not every month"),
        ({"interval": ""}, "is billed once"),
        ({"is_metered": True}, "bills usage (it is metered)"),
        ({"terms": None}, "costs something that cannot be understood"),
    ],
)
def test_a_price_that_differs_is_made_anew_and_the_plan_says_why(difference: dict[str, object], told: str) -> None:
    """The one before stays."""
    made = plan(Wanted(), changed("solo", **difference))
    [step] = made.changes
    assert (step.action, step.found_id, made.problems) == (Action.REPLACE, "price_solo", ())
    assert f"a new price: price_solo {told}" in step.told and step.told.endswith("; it stays for the subscriptions that have it")


def test_a_metered_price_without_a_usable_meter_is_made_anew() -> None:
    """With the meter that takes its events, if there is one."""
    for found, told, created in (
        (changed("managed_ai_pure", is_metered=False, meter_id=None), "does not bill usage (it is not metered)", 0),
        (with_meter("managed_ai_tokens_pure", is_active=False), "has meter mtr_managed_ai_tokens_pure, which is deactivated", 1),
    ):
        made = plan(Wanted(), found)
        assert [step.action for step in made.changes] == [Action.CREATE] * created + [Action.REPLACE]
        assert told in made.changes[-1].told and made.problems == ()


def test_a_price_of_the_legacy_metered_billing_system_is_kept_without_a_meter() -> None:
    """It can bill usage still, and none can be made any more; a changed one is made anew, with a meter."""
    found = changed("managed_ai_pure", meter_id=None)
    found = replace(found, meters={id: one for id, one in found.meters.items() if "pure" not in id})
    for wanted in (Wanted(), Wanted(overrides={"managed_ai_pure": "price_managed_ai_pure"})):
        made = plan(wanted, found)
        assert (made.changes, made.problems) == ([], ())
    assert "price_managed_ai_pure (legacy metered billing)" in str(plan(Wanted(), found))
    archived = replace(found.prices["price_managed_ai_pure"], is_active=False)
    made = plan(Wanted(), replace(found, prices={**found.prices, archived.id: archived}))
    assert [step.action for step in made.changes] == [Action.CREATE, Action.REPLACE]


@pytest.mark.parametrize(
    ("difference", "told"), [({"formula": "count"}, "aggregates by count, not by sum"), ({"window": "hour"}, "last event of each hour")]
)
def test_a_meter_that_would_lose_tokens_stands_in_the_way(difference: dict[str, object], told: str) -> None:
    """Its event name is taken, so that no other can be made."""
    [problem] = plan(Wanted(), with_meter("managed_ai_tokens_pure", **difference)).problems
    assert problem.startswith("meter mtr_managed_ai_tokens_pure") and told in problem and "deactivate it" in problem


def test_two_prices_never_share_a_meter() -> None:
    [problem] = plan(Wanted(), changed("managed_ai_pure", meter_id="mtr_managed_ai_tokens_bundled")).problems
    assert "managed_ai_bundled and managed_ai_pure" in problem and "each other's tokens" in problem


def test_a_price_of_another_product_or_meter_made_by_hand_is_found() -> None:
    """Names and ids are the operator's to choose; what it costs is not."""
    found = changed("managed_ai_pure", product_id="prod_9", meter_id="mtr_9")
    found = replace(
        found,
        products={
            **{id: one for id, one in found.products.items() if id != "managed_ai_tokens_pure"},
            "prod_9": FoundProduct("prod_9", "AI", True),
        },
        meters={
            "mtr_9": FoundMeter("mtr_9", "tokens", True, "sum", None),
            "mtr_managed_ai_tokens_bundled": found.meters["mtr_managed_ai_tokens_bundled"],
        },
    )
    made = plan(Wanted(), found)
    assert made.changes == [] and {step.found_id for step in made.steps} >= {"prod_9", "mtr_9"}


def test_a_product_of_the_same_name_is_found_if_there_is_one_only() -> None:
    by_hand = {"prod_1": FoundProduct("prod_1", "Atom SaaS", True), "prod_2": FoundProduct("prod_2", "Atom SaaS", False)}
    assert plan(Wanted(), Found(products=by_hand)).steps[0].found_id == "prod_1"
    twice = {**by_hand, "prod_3": FoundProduct("prod_3", "Atom SaaS", True)}
    [problem] = plan(Wanted(), Found(products=twice)).problems
    assert "prod_1, prod_3" in problem


def test_an_archived_product_gets_no_prices() -> None:
    archived = {"atom_saas": FoundProduct("atom_saas", "Atom SaaS", False)}
    [problem] = plan(Wanted(), Found(products=archived)).problems
    assert "atom_saas" in problem and "unarchive" in problem


def test_a_price_that_a_setting_names_needs_no_lookup_key() -> None:
    """And a stored one needs none either, once the setting is gone."""
    found = held()
    plain = {id: replace(price, lookup_key=None) for id, price in found.prices.items()}
    found = replace(found, prices=plain)
    ids = {name: f"price_{name}" for name in PRICES}
    for wanted in (Wanted(overrides=ids), Wanted(stored=ids), Wanted(overrides={"team": "price_team"}, stored=ids)):
        made = plan(wanted, found)
        assert (made.changes, made.problems) == ([], ())
    assert "price_team (setting STRIPE_PRICE_ID_TEAM)" in str(made)


def test_a_setting_is_refused_by_name_whatever_the_lookup_key_finds() -> None:
    """All that is wrong with it is told, and what to do."""
    [problem] = plan(Wanted(overrides={"team": "price_solo"}), held()).problems
    assert problem.startswith("setting STRIPE_PRICE_ID_TEAM names price_solo, which costs 19.00 USD a month. Give it the id of a price of")
    [problem] = plan(Wanted(overrides={"managed_ai_pure": "price_gone"}), held()).problems
    assert "STRIPE_PRICE_ID_MANAGED_AI_PURE names price_gone, which does not exist at Stripe (in the account" in problem
    [problem] = plan(Wanted(overrides={"managed_ai_pure": "price_solo"}), held()).problems
    assert "does not bill usage (it is not metered), costs 19.00 USD a month" in problem


def test_a_plan_with_problems_says_that_nothing_can_be_done() -> None:
    text = str(plan(Wanted(overrides={"team": "price_solo"}), held()))
    assert text.splitlines()[-1].endswith("unchanged: 11; nothing can be done, in the way: 1.")
    assert "\n! setting STRIPE_PRICE_ID_TEAM" in text


def test_the_webhook_endpoint_is_made_kept_or_sent_more() -> None:
    """It is found by its URL; an endpoint that is sent everything misses nothing."""
    wanted = Wanted(webhook_url=URL, secret_is_known=True)

    def action(*endpoints: FoundEndpoint) -> Action:
        step = plan(wanted, replace(held(), endpoints=endpoints)).endpoint
        assert step is not None
        return step.action

    [mine] = held().endpoints
    assert action() == action(replace(mine, url="https://else.example.com")) == Action.CREATE
    assert action(mine) == action(replace(mine, events=frozenset("*"))) == action(replace(mine, is_enabled=False), mine) == Action.KEEP
    assert action(replace(mine, is_enabled=False)) == Action.UPDATE
    step = plan(wanted, replace(held(), endpoints=[replace(mine, events=frozenset({"charge.failed", *WEBHOOK_EVENTS[1:]}))])).endpoint
    assert step and step.action == Action.UPDATE and step.told.endswith(f"more events ({WEBHOOK_EVENTS[0]})")
    assert step.events == {"charge.failed", *WEBHOOK_EVENTS}


def test_an_endpoint_whose_secret_or_version_does_not_fit_is_told_of() -> None:
    [mine] = held().endpoints
    made = plan(Wanted(webhook_url=URL), replace(held(), endpoints=[replace(mine, api_version="2020-08-27")]))
    assert "signing secret is not known here" in made.notes[0] and "API version 2020-08-27" in made.notes[1]


@pytest.mark.parametrize("url", ["airflow.example.com/api/billing/webhook", "", "ftp://airflow.example.com"])
def test_a_webhook_url_that_is_none_is_refused(url: str) -> None:
    [problem] = plan(Wanted(webhook_url=url), held()).problems
    assert problem.startswith(f"webhook_url is {url!r}")


def test_prices_of_every_kind_have_words() -> None:
    """Whatever is found at Stripe is told as it is."""
    tiers = (Tier(10, Decimal(100), Decimal(50)), Tier(None, Decimal("0.5")))
    assert in_words(Price("p", "usd", PricingMode.VOLUME, tiers), is_metered=True) == (
        "up to 10 tokens 1.00 USD and 0.50 USD for reaching it, after that 0.005 USD a token (all at the tier reached)"
    )
    package = Price("p", "jpy", PricingMode.PER_UNIT, (Tier(None, Decimal(1200)),), Package(1000, True))
    assert in_words(package, is_metered=True) == "1,200 JPY for each package of 1,000"
    free = Price("p", "usd", PricingMode.PER_UNIT, (Tier(None),))
    assert in_words(free, is_metered=False) == "0.00 USD a month"
