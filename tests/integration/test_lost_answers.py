"""What Stripe answers, or fails to answer, and what becomes of the report: unknown is never failed, and nothing is counted twice."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import stripe

from token_billing.adapters import ledger
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.errors import ReportsLeftOver, StripeRefusesKey, StripeUnavailable, WrongStripeAccount
from token_billing.model import Shard, StripeAccount
from token_billing.stages.push import push
from unreliable_network import UnreliableNetwork, unreliable_network
from world import SETTINGS, World, both_sinks, now

RATE_LIMITED = {"status": 429, "error": {"type": "invalid_request_error", "code": "rate_limit", "message": "Too many requests"}}
NO_METER = {"status": 400, "error": {"type": "invalid_request_error", "message": "No active meter found"}}
NOT_STRIPE = {"status": 200, "error": {"type": "none", "message": "It works!"}}
BROKEN = {"status": 500, "error": {"type": "api_error", "message": "Something went wrong"}}


@pytest.fixture
def network(world: World) -> Iterator[UnreliableNetwork]:
    """Lies between the product and the simulator; one tenant has five tokens frozen."""
    world.link("a")
    world.use("a", 5)
    with unreliable_network(world.simulator.base_url) as network:
        world.stripe_base = network.base_url
        yield network


@both_sinks
@pytest.mark.parametrize(
    "trouble",
    [
        "answer lost",
        "request lost",
        "garbled answer",
        "answer cut off",
        NOT_STRIPE,
        BROKEN,
        {**BROKEN, "after": True},
        RATE_LIMITED,
        {**RATE_LIMITED, "headers": {"Retry-After": "1"}},
    ],
)
def test_a_passing_trouble_is_overcome_within_the_task(world: World, network: UnreliableNetwork, trouble: Any) -> None:
    """Twice over: the request is sent again under the same identifier, and the duplicate refusal it may meet is our own."""
    network.troubles.extend([trouble] * 2)
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}
    assert world.received() == [5]


@both_sinks
@pytest.mark.parametrize(
    "trouble",
    ["answer lost", "request lost", "garbled answer", "answer cut off", NOT_STRIPE, BROKEN, {**BROKEN, "after": True}],
)
def test_a_lasting_trouble_leaves_the_report_unresolved_and_a_later_run_bills_it(
    world: World, network: UnreliableNetwork, trouble: Any
) -> None:
    """The task fails, saying so; nothing is marked; the next run finds out or sends again."""
    network.always = trouble
    world.freeze()
    with pytest.raises(StripeUnavailable, match="stripe_default"):
        world.push()
    world.mark_billed()
    assert (world.states(), world.marked()) == ({"a": "unresolved"}, {})
    network.always = "ok"
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}
    assert world.received() == [5]


@both_sinks
def test_a_replayed_error_is_not_met_under_the_same_key_twice(world: World, network: UnreliableNetwork) -> None:
    """Stripe stores a 500 for its key and would replay it for a day; the identifier alone de-duplicates."""
    network.troubles.extend([{**BROKEN, "after": True}, {**BROKEN, "headers": {"Idempotent-Replayed": "true"}}])
    world.bill()
    keys = [request["idempotency-key"] for request in network.meter_event_requests]
    assert keys[1] == keys[0] and keys[2] == f"{keys[0]}#1"
    assert world.marked() == world.at_stripe() == {"a": 5}


def test_waiting_as_long_as_stripe_asks(world: World, network: UnreliableNetwork) -> None:
    """Retry-After is obeyed."""
    network.troubles.append({**RATE_LIMITED, "headers": {"Retry-After": "2"}})
    world.freeze()
    began = time.monotonic()
    world.push()
    assert time.monotonic() - began >= 2


@both_sinks
def test_a_refused_report_is_rejected_and_the_others_are_billed(world: World, network: UnreliableNetwork) -> None:
    """Its tokens are shown as quarantined, the task fails so that somebody is told, and nothing is sent again."""
    world.link("b")
    world.use("b", 7)
    network.troubles.append(NO_METER)
    world.freeze()
    for _ in range(2):
        with pytest.raises(ReportsLeftOver, match="1 reports rejected"):
            world.push()
    world.mark_billed()
    assert sorted(world.states().values()) == ["billed", "rejected"]
    assert len(network.meter_event_requests) == 2
    assert sum(one.quarantined_tokens for one in world.conservation()) in (5, 7)
    assert all(one.holds for one in world.conservation())


@both_sinks
def test_whatever_stripe_says_can_be_recorded(world: World, network: UnreliableNetwork) -> None:
    """NUL, half a surrogate pair, a very long message: the outcome is written down all the same."""
    said = {"type": "invalid_request_error", "message": "nul \0 half \ud800 long " + "x" * 100_000}
    network.troubles.append({"status": 400, "error": said})
    world.freeze()
    with pytest.raises(ReportsLeftOver, match="rejected"):
        world.push()
    assert world.states() == {"a": "rejected"}


@both_sinks
def test_a_refusal_after_an_unknown_attempt_is_no_rejection(world: World, network: UnreliableNetwork) -> None:
    """The first request may have arrived: only Stripe's own figures can tell."""
    network.troubles.extend(["answer lost", NO_METER])
    world.freeze()
    with pytest.raises(ReportsLeftOver, match="unresolved"):
        world.push()
    assert world.states() == {"a": "unresolved"}


def test_a_duplicate_refusal_without_an_attempt_of_ours_is_not_taken_for_acceptance(world: World) -> None:
    """Somebody else, or an older copy of this ledger, sent that identifier: with what value, nobody here knows."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    ((identifier,),) = world.sql("SELECT identifier FROM billing.usage_report")
    _send_as_somebody_else(world, identifier, 999)
    for _ in range(2):  # nor does our own refused attempt make the next refusal ours
        with pytest.raises(ReportsLeftOver, match="recorded no attempt"):
            world.push()
    assert world.states() == {"a": "unresolved"}


def _send_as_somebody_else(world: World, identifier: str, value: int, timestamp: int | None = None) -> None:
    ((customer,),) = world.sql("SELECT stripe_customer_id FROM tenants WHERE id = 'a'")
    base = world.simulator.base_url
    client = stripe.StripeClient(world.simulator.api_key, base_addresses={"api": base, "meter_events": base})
    client.v1.billing.meter_events.create(
        {
            "event_name": "managed_ai_tokens_bundled",
            "identifier": identifier,
            "payload": {"stripe_customer_id": customer, "value": str(value)},
            "timestamp": timestamp or int(world.window.start.timestamp()),
        }
    )


def test_what_may_have_arrived_is_never_resent_blindly_after_twenty_hours(world: World, network: UnreliableNetwork) -> None:
    """Stripe knows an identifier again for a day only; after that a resend could be counted a second time, and summaries that lag
    behind prove nothing yet."""
    world.simulator.settings(summary_delay_seconds=1_000_000)
    network.always = "answer lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    sent = len(network.meter_event_requests)
    world.clock = lambda: now() + timedelta(hours=20, minutes=1)
    with pytest.raises(ReportsLeftOver, match="unresolved"):
        world.push()
    assert len(network.meter_event_requests) == sent
    assert world.states() == {"a": "unresolved"}


def test_the_age_is_checked_again_before_each_write(world: World, network: UnreliableNetwork) -> None:
    """Also between the tries of one attempt: a worker may have slept in between."""
    slept = timedelta()

    def sleep_after_sending() -> str:
        nonlocal slept
        slept = timedelta(hours=21)
        return "answer lost"

    world.clock = lambda: now() + slept
    network.troubles.append(sleep_after_sending)
    world.freeze()
    with pytest.raises(ReportsLeftOver, match="unresolved"):
        world.push()
    assert len(network.meter_event_requests) == 1
    assert world.states() == {"a": "unresolved"}


@both_sinks
def test_a_wrong_key_fails_naming_the_connection_and_a_later_run_bills(world: World) -> None:
    """Nothing is noted, sent or marked."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    wrong = StripeTarget("sk_test_wrong", world.simulator.base_url, sandbox=True)
    with pytest.raises(StripeRefusesKey, match="stripe_default"):
        push(world.connect, wrong, world.window, Shard(0, 1), now, SETTINGS, world.keeper)
    assert world.sql("SELECT state, attempt_count FROM billing.usage_report") == [("frozen", 0)]
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}


@both_sinks
def test_an_unreachable_stripe_fails_naming_the_connection_and_a_later_run_bills(world: World) -> None:
    """The same where nobody listens."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    world.stripe_base = "http://127.0.0.1:9"
    with pytest.raises(StripeUnavailable, match="stripe_default"):
        world.push()
    assert world.sql("SELECT state, attempt_count FROM billing.usage_report") == [("frozen", 0)]
    world.stripe_base = None
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}


@both_sinks
def test_a_key_revoked_in_the_middle_of_a_push_leaves_reports_to_be_sent(world: World, network: UnreliableNetwork) -> None:
    """Stripe did nothing with them, so however late the key is mended they are sent, not read back."""
    network.always = {"status": 401, "error": {"type": "invalid_request_error", "message": "Expired API Key"}}
    world.freeze()
    with pytest.raises(StripeRefusesKey, match="stripe_default"):
        world.push()
    assert world.states() == {"a": "frozen"}
    network.always = "ok"
    world.clock = lambda: now() + timedelta(hours=30)
    world.push()
    assert world.states() == {"a": "accepted"}


@pytest.mark.parametrize(("pinned", "told"), [("stripe_account_id = 'acct_other'", "acct_other"), ("stripe_livemode = true", "live mode")])
def test_a_ledger_bills_one_stripe_account_only(world: World, pinned: str, told: str) -> None:
    """The account and mode of the first contact are pinned."""
    world.link("a")
    world.use("a", 5)
    world.bill()
    world.use("a", 7)
    world.freeze()
    world.sql("ALTER TABLE billing.ledger DISABLE TRIGGER a_pin_holds")
    world.sql(f"UPDATE billing.ledger SET {pinned}")
    with pytest.raises(WrongStripeAccount, match=f"this ledger bills .*{told}"):
        world.push()
    assert len(world.simulator.meter_events()) == 1


def test_of_two_first_contacts_one_pins_the_account(world: World) -> None:
    """The other one looked before it did, and is refused."""
    with world.connect() as db:
        ledger.pin_account(db, None, StripeAccount("acct_first", livemode=False), now())
        with pytest.raises(WrongStripeAccount, match="this ledger bills acct_first"):
            ledger.pin_account(db, None, StripeAccount("acct_second", livemode=False), now())


def test_a_push_waits_for_a_customer_that_another_run_holds(world: World) -> None:
    """One call at a time per customer and meter: a living lease is respected, a dead run's lease runs out."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    ((customer,),) = world.sql("SELECT stripe_customer_id FROM tenants")
    world.sql(
        "INSERT INTO billing.customer_lease VALUES (%s, 'managed_ai_tokens_bundled', gen_random_uuid(), now() + interval '3 seconds')",
        customer,
    )
    began = time.monotonic()
    world.push()
    assert time.monotonic() - began >= 2.5
    assert world.states() == {"a": "accepted"}


@both_sinks
def test_no_request_starts_that_could_outlast_its_lease(world: World, network: UnreliableNetwork) -> None:
    """With a lease no longer than a time-out nothing may be sent, and the report stays to be sent."""
    world.freeze()
    with pytest.raises(ReportsLeftOver, match="frozen"):
        world.push(replace(SETTINGS, lease=timedelta(seconds=0.5)))
    assert network.meter_event_requests == []


@pytest.fixture
def doubtful(world: World, network: UnreliableNetwork) -> World:
    """The only attempt's answers were lost, a day ago by now."""
    network.always = "answer lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    world.clock = lambda: now() + timedelta(hours=24)
    return world


def test_beyond_a_day_a_report_that_arrived_is_found_in_its_own_minute(doubtful: World, network: UnreliableNetwork) -> None:
    """It is accepted without being sent again."""
    sent = len(network.meter_event_requests)
    doubtful.bill()
    assert doubtful.marked() == doubtful.at_stripe() == {"a": 5}
    assert len(network.meter_event_requests) == sent


def test_beyond_a_day_a_report_is_sent_again_only_after_its_absence_held_for_another(world: World, network: UnreliableNetwork) -> None:
    """Zero twice, 24 hours apart; then under a new identifier, for the old one may be forgotten or not."""
    network.always = "request lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    ((first_identifier,),) = world.sql("SELECT identifier FROM billing.usage_report")
    for hours in (24, 36, 47):
        world.clock = lambda hours=hours: now() + timedelta(hours=hours)
        with pytest.raises(ReportsLeftOver, match="unresolved"):
            world.push()
    world.clock = lambda: now() + timedelta(hours=48, minutes=1)
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}
    ((identifier, generation),) = world.sql("SELECT identifier, generation FROM billing.usage_report")
    assert generation == 1 and identifier != first_identifier
    assert [event["identifier"] for event in world.simulator.meter_events()] == [identifier]


def test_beyond_a_day_anything_but_our_own_value_or_nothing_is_for_a_person(doubtful: World) -> None:
    """Another system reports to the same customer, meter and minute: nobody here can tell whose tokens those are."""
    ((event_time,),) = doubtful.sql("SELECT event_time FROM billing.usage_report")
    _send_as_somebody_else(doubtful, "foreign", 3, int(event_time.timestamp()))
    for days in (1, 2, 3):
        doubtful.clock = lambda days=days: now() + timedelta(days=days)
        with pytest.raises(ReportsLeftOver, match="unresolved"):
            doubtful.push()
    assert doubtful.at_stripe() == {"a": 8}


def test_an_absence_that_was_interrupted_begins_anew(world: World, network: UnreliableNetwork) -> None:
    """For a while the minute held what nobody could explain: what it lacked before that proves nothing any more."""
    network.always = "request lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    ((event_time,),) = world.sql("SELECT event_time FROM billing.usage_report")
    for hours in (24, 36, 49):
        world.clock = lambda hours=hours: now() + timedelta(hours=hours)
        if hours == 36:
            _send_as_somebody_else(world, "foreign", 3, int(event_time.timestamp()))
        with pytest.raises(ReportsLeftOver, match="unresolved"):
            world.push()
        if hours == 36:
            world.simulator.disown(["foreign"])
    assert world.at_stripe() == {}


def test_beyond_35_days_a_report_proven_absent_is_quarantined(world: World, network: UnreliableNetwork) -> None:
    """It can no longer be sent."""
    network.always = "request lost"
    world.freeze()
    with pytest.raises(StripeUnavailable):
        world.push()
    network.always = "ok"
    world.clock = lambda: now() + timedelta(days=34)
    with pytest.raises(ReportsLeftOver):
        world.push()
    world.clock = lambda: now() + timedelta(days=36)
    assert world.bill()["quarantined"] == 5
    assert world.sql("SELECT quarantine_reason FROM billing.usage_report") == [("older_than_35_days",)]
