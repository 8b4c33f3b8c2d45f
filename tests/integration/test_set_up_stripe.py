"""set_up_stripe against the simulator: what is missing is made once, what is there is found, and no price is ever edited."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import stripe

from sandbox.stripe_simulator.faults import Fault, FaultKind
from token_billing.adapters.catalogue import metered_price_ids, newest_price_ids
from token_billing.adapters.database import session
from token_billing.catalog import BUNDLED, CATALOGUE, METERED_NAMES, PRICES, PURE
from token_billing.catalog_plan import Action, Plan, Wanted
from token_billing.errors import CatalogueRefused, StripeRefusesKey, StripeUnavailable, WrongStripeAccount
from token_billing.stages.set_up_stripe import Applied, apply_set_up, plan_set_up
from unreliable_network import unreliable_network
from world import World

#: What subscriptions are made with.
NAMES = set(PRICES)

#: Runs an apply in a process of its own, which can be killed: database, Stripe's base and key as arguments.
APPLY = """
import sys, psycopg
from token_billing.adapters.clock import system_clock
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.catalog_plan import Wanted
from token_billing.stages.set_up_stripe import apply_set_up
dsn, base, key = sys.argv[1:]
target = StripeTarget(key, base, sandbox=True)
apply_set_up(lambda: psycopg.connect(dsn), target, Wanted(), system_clock, print)
"""


def plan_of(world: World, **overrides: str) -> Plan:
    return plan_set_up(world.connect, world.target, Wanted(overrides), world.clock)


def apply(world: World, **overrides: str) -> Applied:
    def no_secret(_: str) -> None:
        raise AssertionError("without a webhook endpoint there is no secret")

    return apply_set_up(world.connect, world.target, Wanted(overrides), world.clock, no_secret)


def client(world: World) -> stripe.StripeClient:
    """Somebody in Stripe's dashboard."""
    return stripe.StripeClient(world.simulator.api_key, base_addresses={"api": world.simulator.base_url})


def make_price(world: World, product: str = "By hand", **differences: Any) -> str:
    """A price made by hand, a monthly one of 19 dollars unless told otherwise; returns its id."""
    terms = {"currency": "usd", "unit_amount": 1900, "recurring": {"interval": "month"}, "product_data": {"name": product}}
    return client(world).v1.prices.create({**terms, **differences}).id  # type: ignore[typeddict-item]


def counts(world: World) -> dict[str, int]:
    """What there is at Stripe."""
    v1, page = client(world).v1, {"limit": 100}
    lists = {"products": v1.products, "meters": v1.billing.meters, "prices": v1.prices}
    return {name: len(one.list(page).data) for name, one in lists.items()}  # type: ignore[attr-defined]


def stored(world: World) -> dict[str, str]:
    with session(world.connect) as db:
        return newest_price_ids(db)


def metered(world: World, overrides: Mapping[str, str] | None = None) -> frozenset[str]:
    with session(world.connect) as db:
        return metered_price_ids(db, overrides or {})


ALL = {"products": len(CATALOGUE), "meters": len(METERED_NAMES), "prices": len(PRICES)}
NOTHING = {"products": 0, "meters": 0, "prices": 0}


def test_a_plan_changes_nothing_anywhere(world: World) -> None:
    """Not even whose money it is: a look with the wrong key must not bind the ledger to it."""
    made = plan_of(world)
    assert [step.action for step in made.changes] == [Action.CREATE] * sum(ALL.values())
    assert (counts(world), stored(world)) == (NOTHING, {})
    assert world.sql("SELECT pinned_at FROM billing.ledger") == [(None,)]


def test_an_apply_makes_the_catalogue_and_stores_its_ids(world: World) -> None:
    """At Stripe the prices are what was agreed, to the last decimal."""
    applied = apply(world)
    assert counts(world) == ALL and stored(world) == applied.price_ids and set(applied.price_ids) == NAMES
    assert "solo: price_" in str(applied)
    assert world.sql("SELECT stripe_account_id IS NOT NULL FROM billing.ledger") == [(True,)]
    prices = client(world).v1.prices
    bundled = prices.retrieve(applied.price_ids["managed_ai_bundled"], {"expand": ["tiers"]})
    assert bundled.lookup_key == "atom_saas_managed_ai_bundled" and bundled.tiers is not None
    assert [(tier.up_to, str(tier.unit_amount_decimal)) for tier in bundled.tiers] == [(5_000_000, "0"), (None, "0.0005")]
    pure = prices.retrieve(applied.price_ids["managed_ai_pure"])
    assert str(pure.unit_amount_decimal) == "0.002" and pure.recurring and pure.recurring.usage_type == "metered"
    solo = prices.retrieve(applied.price_ids["solo"])
    assert solo.unit_amount == 1900 and solo.recurring and solo.recurring.usage_type == "licensed"


def test_a_second_apply_does_nothing(world: World) -> None:
    """Nor does one from another database, which knows no ids."""
    first = apply(world)
    assert plan_of(world).changes == []
    assert apply(world).price_ids == first.price_ids
    world.sql("DELETE FROM billing.catalogue_price")
    again = apply(world)
    assert (again.plan.changes, again.price_ids, counts(world)) == ([], first.price_ids, ALL)
    assert stored(world) == first.price_ids


def test_tenants_of_the_sandbox_have_the_catalogues_prices(world: World) -> None:
    world.link("a", "b", "c", "d")
    assert plan_of(world).changes == [] and counts(world) == ALL and set(stored(world)) == NAMES
    items = [one for subscription in client(world).v1.subscriptions.list().data for one in subscription["items"]["data"]]
    assert {item.price.id for item in items} & metered(world) == {stored(world)[name] for name in METERED_NAMES}


def test_a_changed_price_becomes_a_new_one_and_the_old_one_stays(world: World) -> None:
    """Stripe's is not edited; subscriptions go on under it, so it still counts as one of ours."""
    old = make_price(world, unit_amount=1700, lookup_key=PRICES["solo"].lookup_key)
    made = plan_of(world)
    assert f"~   price solo: 19.00 USD a month, a new price: {old} costs 17.00 USD a month; it stays" in str(made)
    applied = apply(world)
    after = client(world).v1.prices.retrieve(old)
    assert (after.active, after.unit_amount, after.lookup_key) == (True, 1700, None)
    assert applied.price_ids["solo"] != old and plan_of(world).changes == []
    assert world.sql("SELECT price_id, is_newest FROM billing.catalogue_price WHERE name = 'solo' ORDER BY is_newest") == [
        (old, False),
        (applied.price_ids["solo"], True),
    ]


def test_a_changed_metered_price_keeps_its_meter_and_is_still_ours(world: World) -> None:
    """What runs under it goes on being linked and counted."""
    meter = client(world).v1.billing.meters.create(
        {"display_name": "By hand", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
    )
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter.id}
    old = make_price(world, unit_amount=1, lookup_key=PURE.lookup_key, recurring=recurring)
    special = make_price(world, unit_amount=2, recurring=recurring)
    applied = apply(world)
    new = client(world).v1.prices.retrieve(applied.price_ids["managed_ai_pure"])
    assert new.recurring and new.recurring.meter == meter.id
    assert metered(world) == {old, special, new.id, applied.price_ids["managed_ai_bundled"]}
    assert metered(world, {"managed_ai_pure": "price_x", "solo": "price_y"}) == metered(world) | {"price_x"}


def test_a_price_that_returns_to_an_earlier_amount_is_a_new_one(world: World) -> None:
    """Stripe's memory of the first creation must not answer for the second."""
    first = apply(world).price_ids["solo"]
    other = make_price(world, unit_amount=2900, lookup_key=PRICES["solo"].lookup_key, transfer_lookup_key=True)
    again = apply(world).price_ids["solo"]
    assert again not in (first, other) and plan_of(world).changes == []


def test_what_was_made_by_hand_is_found_by_its_lookup_key(world: World) -> None:
    """Whatever its product and meter are called."""
    meter = client(world).v1.billing.meters.create(
        {"display_name": "By hand", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}
    )
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter.id}
    pure = make_price(
        world, product="Tokens", unit_amount=None, unit_amount_decimal="0.002", lookup_key=PURE.lookup_key, recurring=recurring
    )
    solo = make_price(world, product="Our SaaS", lookup_key=PRICES["solo"].lookup_key)
    applied = apply(world)
    assert (applied.price_ids["managed_ai_pure"], applied.price_ids["solo"]) == (pure, solo)
    assert counts(world) == ALL
    assert client(world).v1.prices.retrieve(applied.price_ids["team"]).product == client(world).v1.prices.retrieve(solo).product


def test_a_product_of_that_name_gets_the_missing_prices(world: World) -> None:
    made_by_hand = client(world).v1.products.create({"name": "Atom SaaS"}).id
    applied = apply(world)
    assert counts(world) == ALL
    assert client(world).v1.prices.retrieve(applied.price_ids["team"]).product == made_by_hand


def test_a_price_that_a_setting_names_is_stored_and_not_demanded_twice(world: World) -> None:
    """With it there is no need for a lookup key."""
    mine = make_price(world)
    assert apply(world, solo=mine).price_ids["solo"] == mine
    assert counts(world)["prices"] == len(PRICES)
    assert apply(world).price_ids["solo"] == mine and plan_of(world).changes == []


@pytest.mark.parametrize(
    ("name", "difference", "told"),
    [
        ("team", {"unit_amount": 8000}, "costs 80.00 USD a month"),
        ("enterprise", {"currency": "eur", "unit_amount": 29900}, "is in EUR, not in USD"),
        ("managed_ai_pure", {"unit_amount": None, "unit_amount_decimal": "0.002"}, "does not bill usage (it is not metered)"),
        ("managed_ai_bundled", {}, "does not bill usage (it is not metered), costs 19.00 USD a month"),
        ("solo", {"active": False}, "is archived"),
        ("solo", {"recurring": None}, "is billed once"),
        ("solo", None, "does not exist at Stripe (in the account and mode of this key)"),
    ],
)
def test_a_wrong_price_in_a_setting_is_refused_by_name(world: World, name: str, difference: dict[str, Any] | None, told: str) -> None:
    """With what is wrong with it and what to do; nothing at all is made then."""
    wrong = "price_unknown" if difference is None else make_price(world, **difference)
    before = counts(world)
    for attempt in (plan_of, apply):
        with pytest.raises(CatalogueRefused) as refused:
            attempt(world, **{name: wrong})
        assert f"setting STRIPE_PRICE_ID_{name.upper()} names {wrong}, which {told}. Give it" in str(refused.value)
    assert (counts(world), stored(world)) == (before, {})


def test_all_wrong_settings_are_told_at_once(world: World) -> None:
    with pytest.raises(CatalogueRefused, match=r"STRIPE_PRICE_ID_SOLO names price_1.*STRIPE_PRICE_ID_TEAM names price_2"):
        plan_of(world, solo="price_1", team="price_2")


@pytest.mark.parametrize("requests_before", [0, 2, 5, 9])
def test_an_apply_that_is_killed_makes_nothing_twice_when_it_runs_again(world: World, requests_before: int) -> None:
    """Killed when Stripe has made something and nobody has heard of it: a product, a price, a meter, a metered price."""
    world.simulator.script_faults([*[Fault("pass", path="/v1/")] * requests_before, Fault("hang_after_effect", path="/v1/")])
    arguments = [world.dsn, world.simulator.base_url, world.simulator.api_key]
    killed = subprocess.Popen([sys.executable, "-c", APPLY, *arguments], env=dict(os.environ), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(met["kind"] == "hang_after_effect" for met in world.simulator.faults()["met"]):
        assert killed.poll() is None and time.monotonic() < deadline, "the apply ended before it was killed"
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    world.simulator.clear_faults()
    assert 0 < sum(counts(world).values()) < sum(ALL.values()) and stored(world) == {}
    applied = apply(world)
    assert counts(world) == ALL and stored(world) == applied.price_ids
    assert plan_of(world).changes == []


def test_a_lost_answer_is_asked_for_again_and_nothing_is_made_twice(world: World) -> None:
    """Within one apply: the same key gets the same answer."""
    world.simulator.script_faults([Fault("reset_after_effect", path=f"/v1/{what}") for what in ("products", "prices", "billing/meters")])
    apply(world)
    assert counts(world) == ALL


def test_two_applies_at_once_make_everything_once(world: World) -> None:
    """Whoever comes second gets the first one's answers, looks, and finds."""
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(apply, [world, world])
    assert one.price_ids == other.price_ids == stored(world) and counts(world) == ALL


@pytest.mark.parametrize("kind", ["kept_error_before_effect", "kept_error_after_effect"])
@pytest.mark.parametrize("what", ["products", "prices", "billing/meters"])
def test_a_failure_that_stripe_remembers_does_not_last(world: World, kind: FaultKind, what: str) -> None:
    """It repeats a 500 for a day, whether or not it had done what it was asked for: after another look, another key is used."""
    world.simulator.script_faults([Fault(kind, path=f"/v1/{what}")])
    applied = apply(world)
    assert counts(world) == ALL and stored(world) == applied.price_ids


def test_what_was_made_and_undone_is_made_again(world: World) -> None:
    """Within the day in which Stripe would repeat its answer to the first creation."""
    first = apply(world)
    v1 = client(world).v1
    [meter] = [one for one in v1.billing.meters.list().data if one.event_name == "managed_ai_tokens_pure"]
    v1.billing.meters.deactivate(meter.id)
    again = apply(world)
    assert again.price_ids["managed_ai_pure"] != first.price_ids["managed_ai_pure"]
    new = v1.prices.retrieve(again.price_ids["managed_ai_pure"])
    assert new.recurring and new.recurring.meter != meter.id and plan_of(world).changes == []
    assert metered(world) >= {first.price_ids["managed_ai_pure"], new.id}


def test_where_stripe_is_not_there_a_later_try_goes_on(world: World) -> None:
    with unreliable_network(world.simulator.base_url) as network:
        world.stripe_base, network.broken_paths["/v1/billing/meters"] = network.base_url, 500
        with pytest.raises(StripeUnavailable):
            apply(world)
        network.broken_paths["/v1/billing/meters"] = 403
        with pytest.raises(StripeRefusesKey, match="read and write access to products, prices"):
            apply(world)
        network.broken_paths.clear()
        apply(world)
    assert counts(world) == ALL


def test_another_account_is_refused_before_anything_is_made(world: World) -> None:
    world.sql("UPDATE billing.ledger SET stripe_account_id = 'acct_other', stripe_livemode = false, pinned_at = now()")
    for attempt in (plan_of, apply):
        with pytest.raises(WrongStripeAccount, match="acct_other"):
            attempt(world)
    assert counts(world) == NOTHING


def test_billing_goes_through_what_set_up_made(world: World) -> None:
    """A token is billed on a subscription to the applied prices."""
    applied = apply(world)
    world.link("a")
    world.use("a", 5)
    world.bill()
    assert world.at_stripe() == world.marked() == {"a": 5}
    assert world.sql("SELECT DISTINCT price_id FROM billing.metered_item") == [(applied.price_ids[BUNDLED.name],)]
