"""A restored database that reports to usage records: what was attempted is set again, the rest is decided by its item's period."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from restored_worlds import bill_for_days, recover_by_command, sent
from token_billing.errors import ReportsLeftOver, StripeUnavailable
from token_billing.model import Sink
from unreliable_network import unreliable_network
from world import World


@pytest.fixture
def sink() -> Sink:
    return Sink.USAGE_RECORDS


def test_what_the_copy_knows_as_attempted_is_set_again_at_once(world: World, snapshot: Callable[[], World]) -> None:
    """Its time is known, so it cannot be counted twice, whatever else of the lost time its item's period holds."""
    # `snapshot` is of the frozen report: the attempt is made up as a dead worker would have left it.
    world.push()
    ((customer, item, event_time),) = world.sql("SELECT customer_id, usage_item_id, event_time FROM billing.usage_report")
    world.use("a", 7)
    world.bill()
    restored = snapshot()
    restored.sql(
        "UPDATE billing.usage_report SET state = 'sending', sink = 'usage_records', customer_id = %s, usage_item_id = %s, event_time = %s, "
        "attempt_count = 1, first_attempted_at = frozen_at",
        customer,
        item,
        event_time,
    )
    recover_by_command(restored)
    restored.bill()
    assert (restored.marked(), sent(restored)) == ({"a": 5}, [5, 7])


def test_a_period_that_holds_what_nobody_here_knows_leaves_the_report_to_a_person(world: World, snapshot: Callable[[], World]) -> None:
    """Rows were lost with the time since the copy: whose usage the period's total is cannot be told."""
    world.push()
    world.use("a", 7)
    world.bill()
    restored = snapshot()
    recover_by_command(restored)
    bill_for_days(restored)
    assert restored.states() == {"a": "unresolved"}
    assert sent(restored) == [5, 7]


def test_what_the_lost_time_did_not_send_is_set_once_after_a_day_of_absence(world: World, snapshot: Callable[[], World]) -> None:
    """Not before, and under the name it has."""
    with unreliable_network(world.simulator.base_url) as network:
        network.always = "request lost"
        with pytest.raises(StripeUnavailable):
            replace(world, stripe_base=network.base_url).push()
        restored = snapshot()
        recover_by_command(restored)
        restored = replace(restored, stripe_base=network.base_url)
        network.always, before = "ok", len(network.meter_event_requests)
        for hours in (0, 23):
            restored.set_time(restored.clock() + timedelta(hours=hours))
            with pytest.raises(ReportsLeftOver, match="unresolved"):
                restored.push()
        assert len(network.meter_event_requests) == before
        restored.set_time(restored.clock() + timedelta(hours=2))
        restored.bill()
    assert (restored.marked(), sent(restored)) == ({"a": 5}, [5])
    assert restored.sql("SELECT generation FROM billing.usage_report") == [(0,)]
