"""One call at a time per customer and meter, as long as its lease is held, also where the one who held it died."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from token_billing.errors import ReportsLeftOver
from token_billing.model import Sink
from unreliable_network import UnreliableNetwork
from world import SETTINGS, World, both_sinks, now


@both_sinks
@pytest.mark.parametrize("largest_chunk", [1000, 2])
def test_a_customers_reports_are_sent_one_after_the_other(world: World, network: UnreliableNetwork, largest_chunk: int) -> None:
    """Those of one chunk, and those of the next one, which otherwise follows as the first runs out."""
    tenants = [f"tenant {n}" for n in range(6)]
    world.link(*tenants)
    world.sql(
        "UPDATE tenants SET (stripe_customer_id, stripe_usage_item_id) = "
        "(SELECT stripe_customer_id, stripe_usage_item_id FROM tenants WHERE id = 'tenant 0')"
    )
    for tenant in tenants:
        world.use(tenant, 5)
    under_way, at_once, counting = 0, list[int](), threading.Lock()

    def take_a_while() -> str:
        nonlocal under_way
        with counting:
            under_way += 1
            at_once.append(under_way)
        time.sleep(0.1)
        with counting:
            under_way -= 1
        return "ok"

    network.always = take_a_while
    world.freeze()
    world.push(replace(SETTINGS, largest_chunk=largest_chunk))
    assert at_once == [1] * len(tenants)


@both_sinks
def test_a_customer_stays_leased_while_its_report_is_on_the_network(world: World, network: UnreliableNetwork) -> None:
    """What is recorded meanwhile gives other leases back."""
    tenants = ["a", "b", "c"]
    world.link(*tenants)
    for tenant in tenants:
        world.use(tenant, 5)
    leased_then = list[set[str]]()

    def look() -> str:
        time.sleep(0.3)
        leased_then.append(
            {customer for (customer,) in world.sql("SELECT coalesce(nullif(customer_id, ''), counter) FROM billing.customer_lease")}
        )
        return "ok"

    network.always = look
    world.freeze()
    world.push(replace(SETTINGS, largest_chunk=1, concurrency=1))
    column = "customer_id" if world.sink is Sink.BILLING_METERS else "usage_item_id"
    customers = [customer for (customer,) in world.sql(f"SELECT {column} FROM billing.usage_report ORDER BY id")]
    assert all(customer in leased for customer, leased in zip(customers, leased_then, strict=True))
    assert world.sql("SELECT count(*) FROM billing.customer_lease") == [(0,)]


def test_what_is_frozen_while_a_push_waits_is_left_to_its_own(world: World) -> None:
    """Whether that may be sent was not looked at when this one began."""
    world.link("a", "b")
    world.use("a", 5)
    world.freeze()
    world.sql(
        "INSERT INTO billing.customer_lease SELECT stripe_customer_id, 'managed_ai_tokens_bundled', gen_random_uuid(), "
        "now() + interval '3 seconds' FROM tenants WHERE id = 'a'"
    )
    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(world.push)
        time.sleep(1)
        world.use("b", 7)
        world.sql(
            "INSERT INTO billing.metered_item SELECT tenant.stripe_usage_item_id, price_id, meter_id, problem, now() "
            "FROM billing.metered_item, tenants tenant WHERE tenant.id = 'b'"
        )
        world.freeze()
        pushing.result()
    assert world.states() == {"a": "accepted", "b": "frozen"}


@pytest.fixture
def died(world: World, network: UnreliableNetwork) -> World:
    """A worker has sent the report when it is killed; its lease has run out."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    if (worker := os.fork()) == 0:
        world.push()
        os._exit(0)

    def kill() -> str:
        os.kill(worker, signal.SIGKILL)
        return "ok"

    network.troubles.append(kill)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGKILL
    world.sql("UPDATE billing.customer_lease SET expires_at = '-infinity'")
    return world


@both_sinks
@pytest.mark.parametrize(("hours", "requests"), [(1, 2), (21, 1)])
def test_what_a_worker_sent_before_it_died_is_billed_once(died: World, network: UnreliableNetwork, hours: int, requests: int) -> None:
    """Nothing tells how its request ended: within 20 hours Stripe recognises the identifier, later its summary is read."""
    assert died.states() == {"a": "sending"}
    died.clock = lambda: now() + timedelta(hours=hours)
    died.bill()
    assert died.marked() == died.at_stripe() == {"a": 5}
    assert len(network.meter_event_requests) == requests
    assert died.received() == [5]


@both_sinks
def test_a_refusal_after_a_worker_died_is_no_rejection(died: World, network: UnreliableNetwork) -> None:
    """Stripe refuses what it would have taken a moment ago, and has taken."""
    network.troubles.append({"status": 400, "error": {"type": "invalid_request_error", "message": "No active meter found"}})
    with pytest.raises(ReportsLeftOver, match="unresolved"):
        died.push()
