"""The other sink: usage records of the legacy metered billing system, and what tells an operator that the wrong sink is set."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
import stripe

from legacy_account import PERIOD, legacy_price, link_to_usage_records, subscribe
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters import sending
from token_billing.errors import OperatorNeeded, ReportsLeftOver, StripeUnavailable, WrongSink
from token_billing.model import AttemptResult, Sink, Undelivered
from token_billing.settings import PushSettings
from unreliable_network import UnreliableNetwork
from world import World, now

NOT_LEGACY = {
    "status": 400,
    "error": {
        "type": "invalid_request_error",
        "message": "Cannot create a usage record for si_1 because it is not on the legacy metered billing system. "
        "Call /v1/billing/meter_events instead.",
    },
}
NO_LEGACY_PRICES = {
    "status": 400,
    "error": {
        "type": "invalid_request_error",
        "message": "Starting with Stripe version `2025-03-31.basil`, metered prices must be backed by meters.",
    },
}


@pytest.fixture
def sink() -> Sink:
    return Sink.USAGE_RECORDS


def client(simulator: StripeSimulator) -> stripe.StripeClient:
    return stripe.StripeClient(simulator.api_key, base_addresses={"api": simulator.base_url, "meter_events": simulator.base_url})


def share_an_item(world: World) -> None:
    """All tenants report to a's."""
    world.sql(
        "UPDATE tenants SET (stripe_customer_id, stripe_usage_item_id) = "
        "(SELECT stripe_customer_id, stripe_usage_item_id FROM tenants WHERE id = 'a')"
    )


# --- set, not added ------------------------------------------------------------------------------------------------------


def test_tenants_that_share_an_item_have_seconds_of_their_own(world: World) -> None:
    """Also more than an hour has minutes, in several chunks and in a later run: what is set twice at one second would be lost."""
    tenants = ["a", *(f"tenant {n:02}" for n in range(70))]
    world.link(*tenants)
    share_an_item(world)
    for n, tenant in enumerate(tenants):
        world.use(tenant, 2**n % 1009 + 1)
    world.freeze()
    world.push(replace(PushSettings(5000, 5000), largest_chunk=25))
    world.use("a", 5000)
    world.bill()
    assert sorted(world.received()) == sorted([*(2**n % 1009 + 1 for n in range(71)), 5000])
    assert all(world.window.start.timestamp() < one["timestamp"] < world.window.end.timestamp() for one in world.simulator.usage_records())


def test_tenants_of_one_item_that_name_different_customers_have_seconds_of_their_own(world: World) -> None:
    """Stripe bills the item, whatever customer is written beside it."""
    world.link("a", "b")
    world.sql("UPDATE tenants SET stripe_usage_item_id = (SELECT stripe_usage_item_id FROM tenants WHERE id = 'a')")
    world.use("a", 5)
    world.use("b", 7)
    world.bill()
    assert sorted(world.received()) == [5, 7]


def test_two_reports_of_one_item_at_one_second_are_refused_by_the_database(world: World) -> None:
    world.link("a", "b")
    share_an_item(world)
    world.use("a", 5)
    world.use("b", 7)
    world.freeze()
    with pytest.raises(psycopg.errors.UniqueViolation, match="one_usage_record_per_item_and_time"):
        world.sql(
            "UPDATE billing.usage_report SET sink = 'usage_records', customer_id = 'cus', usage_item_id = 'si', "
            "event_time = side_start, attempt_count = 1, first_attempted_at = now(), state = 'sending'"
        )


@pytest.mark.parametrize("hours", [1, 21, 24 * 20])
def test_an_unresolved_report_is_set_again_at_the_same_second_at_any_age(world: World, network: UnreliableNetwork, hours: int) -> None:
    """Nothing waits for an absence to hold, and nothing gets another name."""
    world.link("a")
    world.use("a", 5)
    network.always = "request lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    before = world.sql("SELECT identifier, event_time FROM billing.usage_report")
    network.always = "ok"
    world.set_time(now() + timedelta(hours=hours))
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}
    assert world.sql("SELECT identifier, event_time FROM billing.usage_report") == before


def test_a_report_that_arrived_twice_is_counted_once(world: World, network: UnreliableNetwork) -> None:
    """Long after Stripe has forgotten the idempotency key."""
    world.link("a")
    world.use("a", 5)
    network.always = "answer lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    world.simulator.set_clock(now() + timedelta(days=3))
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}


@pytest.mark.parametrize(("how", "billed", "aside"), [("answer lost", {"a": 5, "b": 7}, 0), ("request lost", {"b": 7}, 5)])
def test_after_the_period_its_total_tells_what_arrived(
    world: World, network: UnreliableNetwork, how: str, billed: dict[str, int], aside: int
) -> None:
    """Stripe takes nothing more of a period that is over: what shows in its total is billed, what does not, a day later, is kept aside."""
    world.link("a", "b")
    share_an_item(world)
    world.use("b", 7)
    world.bill()
    world.use("a", 5)
    network.always = how
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    ((subscription,),) = world.sql("SELECT stripe_subscription_id FROM tenants WHERE id = 'a'")
    client(world.simulator).v1.subscriptions.update(subscription, {"billing_cycle_anchor": "now"})  # the period ends here
    for hours in (1, 21, 25):
        world.set_time(now() + timedelta(hours=hours))
        with suppress(ReportsLeftOver):
            world.push()
    world.mark_billed()
    assert world.marked() == billed
    assert sum(world.received()) == sum(billed.values())
    assert [one.quarantined_tokens for one in world.conservation() if one.tenant_id == "a"] == [aside]


@pytest.mark.parametrize(("minutes", "expected"), [(30, ("rejected", None)), (120, ("quarantined", "period_invoiced"))])
def test_usage_of_a_period_that_is_over_is_kept_aside(world: World, minutes: int, expected: tuple[str, str | None]) -> None:
    """While its invoice is a draft, Stripe itself refuses it; once that is final, nothing is sent."""
    world.simulator.reset(clock=world.window.start)
    with world.connect() as db:
        link_to_usage_records(db, ["a"], world.simulator.base_url, world.simulator.api_key, world.window.end - PERIOD)
    world.use("a", 5)
    world.set_time(world.window.end + timedelta(minutes=minutes))
    with suppress(ReportsLeftOver):
        world.bill()
    assert world.sql("SELECT state, quarantine_reason FROM billing.usage_report") == [expected]
    assert [one.quarantined_tokens for one in world.conservation()] == [5]
    assert world.received() == []


# --- the wrong sink ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "wrong"), [(Sink.USAGE_RECORDS, Sink.BILLING_METERS), (Sink.BILLING_METERS, Sink.USAGE_RECORDS)])
def test_a_sink_that_does_not_bill_the_item_ends_the_push_saying_what_to_set(world: World, right: Sink, wrong: Sink) -> None:
    """Nothing is sent, rejected, quarantined or lost, and all of it goes out once the setting is changed."""
    world.sink = right
    world.link("a")
    world.use("a", 5)
    world.sink = wrong
    world.freeze()
    for _ in range(2):
        with pytest.raises(WrongSink, match=f"BILLING_SINK={right}"):
            world.push()
    assert world.sql("SELECT state, attempt_count FROM billing.usage_report") == [("frozen", 0)]
    assert (world.simulator.meter_events(), world.simulator.usage_records()) == ([], [])
    world.sink = right
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}


@pytest.mark.parametrize("refusal", [NOT_LEGACY, NO_LEGACY_PRICES])
def test_stripes_refusal_of_the_sink_leaves_reports_as_they_were(
    world: World, network: UnreliableNetwork, refusal: dict[str, object]
) -> None:
    """The account was moved to meters since the item was looked up: after the change of the setting its reports go there."""
    world.link("a", "b")
    world.use("a", 5)
    world.use("b", 7)
    network.always = refusal
    world.freeze()
    with pytest.raises(WrongSink, match=r"Stripe said: .* BILLING_SINK=billing_meters"):
        world.push()
    assert world.sql("SELECT DISTINCT state, attempt_count, sink, event_time FROM billing.usage_report") == [("frozen", 0, None, None)]
    network.always = "ok"
    world.sql("DELETE FROM tenants")
    world.sink = Sink.BILLING_METERS
    world.link("a", "b")
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5, "b": 7}


def test_an_item_that_was_moved_to_a_meter_is_billed_by_it_once_the_setting_says_so(world: World) -> None:
    """Stripe keeps its refusal under the first idempotency key, which is not met again."""
    world.link("a")
    world.use("a", 5)
    world.bill()
    api = client(world.simulator)
    meter = api.v1.billing.meters.create(
        {
            "display_name": "tokens",
            "event_name": "tokens",
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
    )
    price = api.v1.prices.create(
        {
            "currency": "usd",
            "unit_amount_decimal": "0.002",
            "recurring": {"interval": "year", "usage_type": "metered", "meter": meter.id},
            "product_data": {"name": "tokens"},
        }
    )
    ((item,),) = world.sql("SELECT stripe_usage_item_id FROM tenants")
    api.v1.subscription_items.update(item, {"price": price.id})
    world.use("a", 7)
    world.freeze()
    with pytest.raises(WrongSink, match="not on the legacy metered billing system"):
        world.push()
    world.sink = Sink.BILLING_METERS
    world.bill()
    assert world.marked() == {"a": 12}
    assert [int(event["value"]) for event in world.simulator.meter_events()] == [7]


def test_of_two_kinds_of_prices_the_one_that_fits_is_billed_before_the_push_ends(world: World) -> None:
    world.link("legacy")
    world.sink = Sink.BILLING_METERS
    world.link("metered")
    world.use("legacy", 5)
    world.use("metered", 7)
    world.freeze()
    with pytest.raises(WrongSink, match="BILLING_SINK=usage_records"):
        world.push()
    assert world.states() == {"legacy": "frozen", "metered": "accepted"}
    world.sink = Sink.USAGE_RECORDS
    world.bill()
    assert world.marked() == {"legacy": 5, "metered": 7}


def test_a_refusal_of_the_sink_after_an_unknown_answer_is_not_taken_back(world: World, network: UnreliableNetwork) -> None:
    """The first request may have arrived: the report keeps its attempt and its sink."""
    world.link("a")
    world.use("a", 5)
    network.troubles.extend(["answer lost", NOT_LEGACY])
    world.freeze()
    with pytest.raises(ReportsLeftOver, match="unresolved"):
        world.push()
    assert world.sql("SELECT state, sink FROM billing.usage_report") == [("unresolved", "usage_records")]


def test_a_report_stays_with_the_sink_of_its_first_attempt(world: World, network: UnreliableNetwork) -> None:
    """A retry under another setting goes where the attempt may have arrived."""
    world.link("a")
    world.use("a", 5)
    network.always = "answer lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    world.sink = Sink.BILLING_METERS
    world.bill()
    assert (world.simulator.meter_events(), [one["quantity"] for one in world.simulator.usage_records()]) == ([], [5])


def test_a_late_refusal_of_the_sink_takes_nothing_back_that_may_have_arrived(world: World, network: UnreliableNetwork) -> None:
    """It is of an attempt that was not the last one."""
    world.link("a")
    world.use("a", 5)
    network.always = "answer lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    ((report, identifier),) = world.sql("SELECT id, identifier FROM billing.usage_report")
    late = Undelivered("refused", 400, try_again=False, wrong_sink=True)
    with world.connect() as db:
        sending.record_outcomes(db, [AttemptResult(report, 1, identifier, late, False, 0, True)], now())
    assert world.sql("SELECT state, attempt_count, sink FROM billing.usage_report") == [("unresolved", 1, "usage_records")]


def test_what_may_have_arrived_stays_attempted(world: World, network: UnreliableNetwork) -> None:
    """The database refuses to forget it."""
    world.link("a")
    world.use("a", 5)
    network.always = "answer lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    with pytest.raises(psycopg.errors.CheckViolation, match="what may have arrived stays attempted"):
        world.sql(
            "UPDATE billing.usage_report SET attempt_count = 0, first_attempted_at = NULL, sink = NULL, state = 'frozen', "
            "may_have_arrived = false"
        )


def test_an_item_without_a_metered_price_is_quarantined_under_either_sink(world: World) -> None:
    """It is no question of the sink."""
    world.link("a")
    created = client(world.simulator).v1.prices.create(
        {"currency": "usd", "unit_amount": 100, "recurring": {"interval": "year"}, "product_data": {"name": "flat"}}
    )
    _, _, item = subscribe(client(world.simulator), created.id, "flat", now() - timedelta(days=40))
    world.sql("UPDATE tenants SET stripe_usage_item_id = %s", item)
    world.use("a", 5)
    assert world.bill()["quarantined"] == 5
    assert world.sql("SELECT quarantine_reason FROM billing.usage_report") == [("item_not_metered",)]


@pytest.mark.parametrize("adds_up", ["sum", "max", "last_during_period"])
def test_only_a_legacy_price_that_sums_is_reported_to(world: World, network: UnreliableNetwork, adds_up: str) -> None:
    """Under another aggregation, reports of an hour each would not add up to what was used; only the legacy version shows which it is."""
    world.link("a")
    world.use("a", 5)
    ((item,),) = world.sql("SELECT stripe_usage_item_id FROM tenants")
    price = client(world.simulator).v1.subscription_items.retrieve(item).price.id
    network.answers[f"/v1/prices/{price}"] = lambda body: {**body, "recurring": {**body["recurring"], "aggregate_usage": adds_up}}
    assert world.bill()["billed"] == (5 if adds_up == "sum" else 0)
    assert world.sql("SELECT quarantine_reason FROM billing.usage_report") == [(None if adds_up == "sum" else "item_not_metered",)]


@pytest.mark.parametrize("text", ["usage records", "meters", "BILLING_METERS"])
def test_the_setting_takes_nothing_but_a_sink(text: str) -> None:
    with pytest.raises(OperatorNeeded, match=r"BILLING_SINK is .*billing_meters or usage_records"):
        PushSettings.from_environment("sk_test", {"BILLING_SINK": text})


def test_the_setting_chooses_the_sink() -> None:
    assert PushSettings.from_environment("sk_test", {}).sink is Sink.BILLING_METERS
    assert PushSettings.from_environment("sk_test", {"BILLING_SINK": "usage_records"}).sink is Sink.USAGE_RECORDS


def test_an_invoice_bills_the_usage_records_of_its_period(world: World) -> None:
    """As far as the stand-in goes: the records of the period, at the price's rate."""
    world.link("a")
    world.use("a", 5000)
    world.bill()
    world.simulator.set_clock(now() + PERIOD)
    ((subscription,),) = world.sql("SELECT stripe_subscription_id FROM tenants")
    invoices = client(world.simulator).v1.invoices.list({"subscription": subscription})
    assert [line.quantity for invoice in invoices for line in invoice.lines if line.quantity] == [5000]


def test_legacy_prices_and_usage_records_need_their_api_version(world: World) -> None:
    """The stand-in refuses them under the pinned version, as Stripe does."""
    world.link("a")
    ((item,),) = world.sql("SELECT stripe_usage_item_id FROM tenants")
    api = client(world.simulator)
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        api.raw_request("post", f"/v1/subscription_items/{item}/usage_records", quantity=1, timestamp=1, action="set")
    with pytest.raises(stripe.InvalidRequestError, match="must be backed by meters"):
        api.v1.prices.create({"currency": "usd", "unit_amount": 1, "recurring": {"interval": "year", "usage_type": "metered"}})
    assert legacy_price(api)
