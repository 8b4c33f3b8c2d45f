"""Promise 3, effectively once: whatever is repeated, at once or one after the other, Stripe counts each token once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from token_billing.adapters import sending
from token_billing.adapters.database import session
from token_billing.model import Meter, MeteredItem
from token_billing.windows import Window
from world import World, both_sinks, now


@both_sinks
def test_an_hour_of_usage_is_billed_to_the_token(world: World) -> None:
    """Rows, billed rows and Stripe's summaries agree for every tenant."""
    world.link("a", "b")
    for tokens in (3, 5, 8):
        world.use("a", tokens)
    world.use("b", 13)
    assert world.bill() == {"tokens": 29, "billed": 29, "pending": 0, "not_frozen": 0, "quarantined": 0}
    assert world.marked() == world.at_stripe() == {"a": 16, "b": 13}


@both_sinks
def test_billing_a_billed_hour_again_changes_nothing(world: World) -> None:
    """No second event, no second report, no error."""
    world.link("a")
    world.use("a", 5)
    first = world.bill()
    assert world.bill() == first
    assert world.received() == [5]


@both_sinks
def test_usage_that_commits_after_the_freeze_is_billed_as_the_next_revision(world: World) -> None:
    """A transaction that was open while the hour was frozen is in no report until it commits; then it is in exactly one."""
    world.link("a")
    world.use("a", 5)
    with world.connect() as slow_writer:
        world.use("a", 7, db=slow_writer)
        world.bill()
        assert world.at_stripe() == {"a": 5}
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 12}
    assert world.sql("SELECT revision, token_count FROM billing.usage_report ORDER BY revision") == [(0, 5), (1, 7)]


@both_sinks
def test_rows_that_arrive_between_freeze_and_mark_are_not_marked_unbilled(world: World) -> None:
    """The job this replaces marked every unbilled row, also those it had not summed."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    world.use("a", 7)
    world.push()
    world.mark_billed()
    assert world.marked() == world.at_stripe() == {"a": 5}
    assert [one.unfrozen_tokens for one in world.conservation()] == [7]


@both_sinks
def test_four_runs_of_one_hour_at_once_bill_it_once(world: World) -> None:
    """Retries, backfills and two schedulers may run the same stages at the same time."""
    tenants = [f"tenant {n}" for n in range(30)]
    world.link(*tenants)
    for tenant in tenants:
        world.use(tenant, 11)
    with ThreadPoolExecutor(4) as runs:
        for run in [runs.submit(world.bill) for _ in range(4)]:
            run.result()
    assert world.marked() == world.at_stripe() == dict.fromkeys(tenants, 11)
    assert world.received() == [11] * len(tenants)


def test_freezing_while_many_write_loses_and_doubles_no_row(world: World) -> None:
    """Writers with long transactions and rollbacks, and freezes all the while: every committed row is in exactly one revision."""

    def write(writer: int) -> int:
        committed = 0
        for turn in range(12):
            with world.connect() as db:
                for _ in range(3):
                    world.use("a", 1, db=db)
                    world.use("b", 1, db=db)
                if (writer + turn) % 4 == 0:
                    db.rollback()
                else:
                    committed += 3
        return committed

    world.link("a", "b")
    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, number) for number in range(5)]
        while not all(writer.done() for writer in writers):
            world.freeze()
        committed = sum(writer.result() for writer in writers)
    world.bill()
    frozen = dict(world.sql("SELECT tenant_id, sum(row_count)::int FROM billing.usage_report GROUP BY tenant_id"))
    assert frozen == world.marked() == world.at_stripe() == {"a": committed, "b": committed}


@pytest.mark.parametrize("offset", [timedelta(), timedelta(microseconds=-1), timedelta(minutes=59, seconds=59, microseconds=999_999)])
def test_a_row_on_the_edge_of_an_hour_belongs_to_exactly_one(world: World, offset: timedelta) -> None:
    """On the exact hour it is the new hour's, a microsecond earlier the old one's."""
    world.link("a")
    world.use("a", 5, at=world.window.start + offset)
    later = World(world.dsn, world.simulator, world.window)
    earlier = World(world.dsn, world.simulator, Window(world.window.start - timedelta(hours=1)))
    billed = [sum(one.values()) for one in (earlier.bill(), later.bill())]
    assert billed == ([10, 0] if offset < timedelta() else [0, 10])  # tokens and billed
    assert world.at_stripe() == {"a": 5}


@pytest.mark.parametrize("tenant", ["with space", "o'quote\"s;--", "株式会社🤖", "x" * 120, "%s %(a)s {b} \\ #1"])
def test_a_tenant_may_be_called_anything(world: World, tenant: str) -> None:
    """Spaces, quotes, unicode, 120 characters, what looks like SQL or a format."""
    world.link(tenant)
    world.use(tenant, 5)
    world.bill()
    assert world.marked() == world.at_stripe() == {tenant: 5}


@both_sinks
def test_the_largest_counts_and_identical_rows_are_billed_exactly(world: World) -> None:
    """2³¹−1 tokens in one call, and three calls that equal each other in every column but the id."""
    world.link("a")
    moment = world.window.start + timedelta(minutes=7)
    for _ in range(3):
        world.use("a", 2**31 - 1, at=moment)
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 3 * (2**31 - 1)}


@both_sinks
def test_a_zero_total_needs_no_call_and_still_ends_billed(world: World) -> None:
    """Not even a customer is needed for nothing, and Stripe may be unreachable."""
    world.use("nobody", 0)
    world.stripe_base = "http://127.0.0.1:9"
    world.bill()
    assert world.states() == {"nobody": "billed"}
    assert world.sql("SELECT billed FROM token_usage") == [(True,)]
    assert world.received() == []


def test_usage_is_dated_inside_its_hour_whenever_it_is_pushed(world: World) -> None:
    """The job this replaces stamped usage with the time of the push, which may be in the next period."""
    world = World(world.dsn, world.simulator, Window(world.window.start - timedelta(days=3)))
    world.link("a")
    world.use("a", 5)
    world.bill()
    (event,) = world.simulator.meter_events()
    assert world.window.start.timestamp() < event["timestamp"] < world.window.end.timestamp()


def test_tenants_that_share_a_customer_have_minutes_of_their_own(world: World) -> None:
    """So that reading one minute back speaks of one report alone."""
    world.link("a", "b")
    world.sql(
        "UPDATE tenants SET (stripe_customer_id, stripe_usage_item_id) = "
        "(SELECT stripe_customer_id, stripe_usage_item_id FROM tenants WHERE id = 'a')"
    )
    world.use("a", 5)
    world.use("b", 7)
    world.bill()
    world.use("a", 11)
    world.bill()
    events = world.simulator.meter_events()
    assert sorted(int(event["value"]) for event in events) == [5, 7, 11]
    assert len({event["timestamp"] // 60 for event in events}) == 3


def test_a_report_older_than_35_days_is_quarantined_and_never_sent(world: World) -> None:
    """Stripe would refuse it; its tokens are shown as quarantined."""
    world = World(world.dsn, world.simulator, Window(world.window.start - timedelta(days=36)))
    world.link("a")
    world.use("a", 5)
    assert world.bill()["quarantined"] == 5
    assert world.sql("SELECT state, quarantine_reason FROM billing.usage_report") == [("quarantined", "older_than_35_days")]
    assert world.simulator.meter_events() == []


def test_a_total_of_more_digits_than_stripe_counts_is_quarantined(world: World) -> None:
    """Fifteen digits are Stripe's limit; the pipeline's own sums go further."""
    world.link("a")
    world.sql(
        "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) "
        "SELECT 'a', 'm', 2147483647, 2147483647, %s FROM generate_series(1, 240000)",
        world.window.start,
    )
    world.bill()
    assert world.sql("SELECT state, quarantine_reason FROM billing.usage_report") == [("quarantined", "too_many_digits")]


@both_sinks
def test_an_unlinked_tenants_usage_is_quarantined_with_the_reason(world: World) -> None:
    """The job this replaces skipped it in silence. The others are billed all the same."""
    world.link("linked", "no customer", "no item", "flat item")
    world.sql("UPDATE tenants SET stripe_customer_id = NULL WHERE id = 'no customer'")
    world.sql("UPDATE tenants SET stripe_usage_item_id = '' WHERE id = 'no item'")
    world.sql("UPDATE tenants SET stripe_usage_item_id = 'si_unknown' WHERE id = 'flat item'")
    for tenant in ("linked", "no customer", "no item", "flat item", "unknown"):
        world.use(tenant, 5)
    assert world.bill() == {"tokens": 25, "billed": 5, "pending": 0, "not_frozen": 0, "quarantined": 20}
    assert dict(world.sql("SELECT tenant_id, quarantine_reason FROM billing.usage_report")) == {
        "linked": None,
        "no customer": "no_customer",
        "no item": "no_subscription_item",
        "flat item": "item_not_metered",
        "unknown": "unknown_tenant",
    }


def test_a_window_that_is_still_open_is_not_frozen(world: World) -> None:
    """Its usage is not complete."""
    from token_billing.errors import WindowStillOpen

    open_world = World(world.dsn, world.simulator, Window(now().replace(minute=0, second=0, microsecond=0)))
    with pytest.raises(WindowStillOpen):
        open_world.freeze()
    assert world.sql("SELECT count(*) FROM billing.fence") == [(0,)]


def test_two_runs_that_learn_of_the_same_meters_do_not_wait_for_each_other(world: World) -> None:
    """They may look them up in any order."""
    barrier = threading.Barrier(2, timeout=20)

    def learn(backwards: bool) -> None:
        with session(world.connect) as db:
            for number in range(100):
                pairs = [f"{number} {letter}" for letter in "abcdef"]
                items = [MeteredItem(f"si {pair}", "price", Meter(f"mtr {pair}", f"e {pair}", "c", "v")) for pair in pairs]
                barrier.wait()
                with db.transaction():
                    sending.set_metered_items(db, items[::-1] if backwards else items, now())

    with ThreadPoolExecutor(max_workers=2) as both:
        for done in [both.submit(learn, backwards) for backwards in (False, True)]:
            done.result()
    assert world.sql("SELECT count(*) FROM billing.metered_item") == [(600,)]
