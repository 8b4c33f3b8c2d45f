"""kill -9 at every SQL statement and every request of a run: the next run finishes it, nothing lost and nothing twice."""

from datetime import timedelta

from crash.kill_points import run_in_child
from token_billing.windows import Window
from world import World

#: Two tenants on one customer, one alone, one with nothing to bill and one that cannot be billed.
TOKENS = {"a": 5, "shares a's customer": 7, "b": 11, "zero": 0, "unlinked": 13}


def test_a_run_killed_anywhere_is_finished_by_the_next(world: World) -> None:
    """Each kill has an hour of its own; the points are counted, not listed."""
    world.link("a", "shares a's customer", "b", "zero")
    world.sql(
        "UPDATE tenants SET (stripe_customer_id, stripe_usage_item_id) = "
        "(SELECT stripe_customer_id, stripe_usage_item_id FROM tenants WHERE id = 'a') WHERE id LIKE 'shares%%'"
    )
    point, points = 0, 1
    while point <= points:
        hour = World(world.dsn, world.simulator, Window(world.window.start - timedelta(hours=point)))
        for tenant, tokens in TOKENS.items():
            hour.use(tenant, tokens)
        hour.sql("DELETE FROM billing.metered_item")  # so that every hour looks its items up again
        passed = run_in_child(hour.bill, point)
        if point == 0:
            assert passed is not None and passed > 50
            points = passed
        else:
            assert passed is None, f"the child outlived point {point}"
        hour.sql("UPDATE billing.customer_lease SET expires_at = now()")  # the dead run's leases run out
        assert hour.bill() == {"tokens": 36, "billed": 23, "pending": 0, "not_frozen": 0, "quarantined": 13}
        point += 1
    events = world.simulator.meter_events()
    assert len(events) == 3 * point, "an event more or less than one for each billable report"
    assert world.marked() == {tenant: tokens * point for tenant, tokens in TOKENS.items() if tenant != "unlinked"}
    assert sum(int(event["value"]) for event in events) == 23 * point
