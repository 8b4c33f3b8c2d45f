"""One call at a time per customer and meter, as long as its lease is held, also where the one who held it died."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from unreliable_network import UnreliableNetwork, unreliable_network
from world import SETTINGS, World, now


@pytest.fixture
def network(world: World) -> Iterator[UnreliableNetwork]:
    with unreliable_network(world.simulator.base_url) as network:
        world.stripe_base = network.base_url
        yield network


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


def test_a_customer_stays_leased_while_its_report_is_on_the_network(world: World, network: UnreliableNetwork) -> None:
    """What is recorded meanwhile gives other leases back."""
    tenants = ["a", "b", "c"]
    world.link(*tenants)
    for tenant in tenants:
        world.use(tenant, 5)
    leased_then = list[set[str]]()

    def look() -> str:
        time.sleep(0.3)
        leased_then.append({customer for (customer,) in world.sql("SELECT customer_id FROM billing.customer_lease")})
        return "ok"

    network.always = look
    world.freeze()
    world.push(replace(SETTINGS, largest_chunk=1, concurrency=1))
    customers = [customer for (customer,) in world.sql("SELECT customer_id FROM billing.usage_report ORDER BY id")]
    assert all(customer in leased for customer, leased in zip(customers, leased_then, strict=True))
    assert world.sql("SELECT count(*) FROM billing.customer_lease") == [(0,)]


@pytest.mark.parametrize("hours", [1, 21])
def test_what_a_worker_sent_before_it_died_is_not_sent_as_if_for_the_first_time(
    world: World, network: UnreliableNetwork, hours: int
) -> None:
    """Nothing tells how its request ended: within 20 hours Stripe recognises the identifier, later its summary is read."""
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
    assert world.states() == {"a": "sending"}
    world.sql("UPDATE billing.customer_lease SET expires_at = '-infinity'")  # the dead worker's lease runs out
    world.clock = lambda: now() + timedelta(hours=hours)
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 5}
    assert len(world.simulator.meter_events()) == 1
