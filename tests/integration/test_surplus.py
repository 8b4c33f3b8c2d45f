"""A worker that was paused right before its write and goes on days later: what Stripe then has twice is found and cancelled."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import stripe

from late_worker import LateWorker, clock_in
from sandbox.stripe_simulator.faults import Fault
from token_billing.adapters import sending
from token_billing.errors import ReportsLeftOver, StripeUnavailable, SurplusAtStripe
from token_billing.model import Accepted, AttemptResult, Disowned, RevocationCause
from token_billing.stages.revoke import revoke
from unreliable_network import UnreliableNetwork, unreliable_network
from world import World


@pytest.fixture
def network(world: World) -> Iterator[UnreliableNetwork]:
    """Lies between the late worker and the simulator."""
    with unreliable_network(world.simulator.base_url) as network:
        yield network


@pytest.fixture
def pass_to(world: World, tmp_path: Path) -> Callable[[float], None]:
    """Sets everybody's clock to so many hours from now."""
    file = tmp_path / "hours"
    file.write_text("0")
    world.clock = clock_in(file)

    def set_clocks(hours: float) -> None:
        file.write_text(str(hours))
        world.simulator.set_clock(world.clock())

    return set_clocks


@pytest.fixture
def worker(world: World, network: UnreliableNetwork, pass_to: Any, tmp_path: Path) -> Iterator[LateWorker]:
    """It was about to send the five tokens of tenant a."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    worker = LateWorker(
        world.dsn, network.base_url, world.simulator.api_key, world.window, tmp_path / "hours", Path(os.environ["AIRFLOW_HOME"])
    )
    yield worker
    worker.kill()


@pytest.fixture
def resent(world: World, worker: LateWorker, pass_to: Callable[[float], None]) -> World:
    """Another run found the report absent twice, a day apart, and sent it as generation 1."""
    pass_to(24)
    with pytest.raises(ReportsLeftOver, match=r"sending|unresolved"):
        world.push()
    pass_to(48.1)
    world.bill()
    assert world.sql("SELECT generation, state FROM billing.usage_report") == [(1, "billed")]
    assert world.at_stripe() == {"a": 5}
    return world


def die_after_the_write(worker: LateWorker, network: UnreliableNetwork) -> None:
    """The worker goes on; its request has left it when it is killed, and reaches Stripe."""

    def kill() -> str:
        worker.kill()
        return "answer lost"

    network.troubles.append(kill)
    assert worker.go_on() == -9


def surplus(world: World) -> list[tuple[Any, ...]]:
    return world.sql("SELECT how, token_count, cancelled_at IS NOT NULL, gave_up_at IS NOT NULL FROM billing.surplus ORDER BY id")


def test_a_late_worker_that_tells_of_its_write_is_undone(resent: World, worker: LateWorker) -> None:
    """Stripe has the report twice until the next run; the newer generation is left as it is."""
    assert worker.go_on() == 0
    assert resent.at_stripe() == {"a": 10}
    assert surplus(resent) == [("late_answer", 5, False, False)]
    assert resent.cancel_surplus() == 1
    assert resent.at_stripe() == resent.marked() == {"a": 5}
    assert surplus(resent) == [("late_answer", 5, True, False)]
    ((identifier,),) = resent.sql("SELECT identifier FROM billing.usage_report")
    assert [event["identifier"] for event in resent.simulator.meter_events() if event["status"] == "accepted"] == [identifier]


def test_a_late_worker_that_dies_after_its_write_is_undone(
    resent: World, worker: LateWorker, network: UnreliableNetwork, pass_to: Callable[[float], None]
) -> None:
    """Nobody tells; the minute of a report that was sent anew is read again for long enough."""
    assert resent.cancel_surplus() == 0
    pass_to(49)
    die_after_the_write(worker, network)
    assert resent.at_stripe() == {"a": 10}
    pass_to(50)
    assert resent.cancel_surplus() == 1
    assert resent.at_stripe() == resent.marked() == {"a": 5}
    assert surplus(resent) == [("read_back", 5, True, False)]
    for hours in (51, 57, 70):
        pass_to(hours)
        assert resent.cancel_surplus() == 0


def test_a_slow_worker_whose_report_is_still_the_same_generation_is_accepted(
    world: World, worker: LateWorker, pass_to: Callable[[float], None]
) -> None:
    """Paused for a few hours: its write is the first, another run's is refused as a duplicate, or not needed."""
    pass_to(3)
    assert worker.go_on() == 0
    world.bill()
    assert world.at_stripe() == world.marked() == {"a": 5}
    assert (surplus(world), world.cancel_surplus()) == ([], 0)


def test_a_late_write_while_the_new_generation_has_no_answer_is_undone_and_the_report_is_sent_once(
    world: World, worker: LateWorker, pass_to: Callable[[float], None]
) -> None:
    """What the minute holds of the surplus is not taken for the report."""
    pass_to(24)
    with pytest.raises(ReportsLeftOver):
        world.push()
    pass_to(48.1)
    world.simulator.script_faults(["reset_before_effect"] * 5)
    with pytest.raises(StripeUnavailable):
        world.push()
    assert worker.go_on() == 1, "its report is unresolved, as it says"
    assert world.states() == {"a": "unresolved"} and world.at_stripe() == {"a": 5}
    pass_to(69)
    with pytest.raises(ReportsLeftOver):
        world.push()
    assert world.cancel_surplus() == 1
    for hours in (70, 92, 93):
        pass_to(hours)
        with pytest.raises(ReportsLeftOver):
            world.push()
    pass_to(118)
    world.bill()
    assert world.at_stripe() == world.marked() == {"a": 5}


def test_a_late_answer_about_the_event_that_counts_cancels_nothing(
    world: World, worker: LateWorker, network: UnreliableNetwork, pass_to: Callable[[float], None]
) -> None:
    """The new generation's requests were lost, and the late write was read back as the report: the answer is no news of a second one."""
    pass_to(24)
    with pytest.raises(ReportsLeftOver):
        world.push()
    pass_to(48.1)
    world.simulator.script_faults(["reset_before_effect"] * 5)
    with pytest.raises(StripeUnavailable):
        world.push()
    die_after_the_write(worker, network)
    pass_to(69)
    world.bill()
    assert world.states() == {"a": "billed"}
    record_late_answer(world)
    for hours in (69.1, 70, 76):
        pass_to(hours)
        assert world.cancel_surplus() == 0
        assert world.at_stripe() == world.marked() == {"a": 5}
        assert world.sql("SELECT resolved_at IS NULL FROM billing.surplus") == [(hours < 75,)], "a summary may lag behind"
    assert world.sql("SELECT cancelled_at, gave_up_at, resolved_by FROM billing.surplus") == [(None, None, "the summary of its minute")]


def record_late_answer(world: World) -> None:
    """What a worker does last, here long after its write."""
    ((report_id, identifier),) = world.sql("SELECT report_id, identifier FROM billing.push_attempt WHERE attempt = 1")
    with world.connect() as db:
        sending.record_outcomes(db, [AttemptResult(report_id, 1, identifier, Accepted(), False, 0, True)], world.clock())


# --- The same, by a network that delivers a request two days late: without a process of its own ---------------------------------------


@pytest.fixture
def delayed(world: World, pass_to: Callable[[float], None]) -> World:
    """A request is on its way for two days; its report is proven absent and sent as generation 1. Clocks stand at 48.1 hours."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    world.simulator.script_faults(["delayed_delivery", *["reset_before_effect"] * 4])
    with pytest.raises(StripeUnavailable):
        world.push()
    pass_to(24)
    with pytest.raises(ReportsLeftOver):
        world.push()
    pass_to(48.1)
    world.bill()
    return world


@pytest.fixture
def doubled(delayed: World) -> World:
    """It has arrived."""
    assert delayed.simulator.release_delayed() == [200]
    assert delayed.at_stripe() == {"a": 10}
    return delayed


CANCELLATIONS = "/v1/billing/meter_event_adjustments"


def test_two_runs_at_once_cancel_once(doubled: World) -> None:
    """Under one idempotency key."""

    def run(_: int) -> int:
        try:
            return doubled.cancel_surplus()
        except StripeUnavailable:  # the other's request was under way
            return 0

    with ThreadPoolExecutor() as threads:
        assert sum(threads.map(run, range(3))) >= 1
    assert surplus(doubled) == [("read_back", 5, True, False)]
    assert doubled.at_stripe() == {"a": 5}


def test_an_answer_recorded_while_a_generation_begins_is_surplus_too(world: World) -> None:
    """The two transactions meet at the report: the answer waits, and then speaks of what is no longer the report's own."""
    world.link("a")
    world.use("a", 5)
    world.freeze()
    world.simulator.script_faults(["reset_before_effect"] * 5)
    with pytest.raises(StripeUnavailable):
        world.push()
    with ThreadPoolExecutor() as thread, world.connect() as db:
        db.execute("UPDATE billing.usage_report SET state = 'frozen', generation = 1, identifier = 'next', may_have_arrived = false")
        recorded = thread.submit(record_late_answer, world)
        while not world.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            assert not recorded.done()
        db.commit()
        recorded.result(timeout=10)
    assert world.states() == {"a": "frozen"}
    assert surplus(world) == [("late_answer", 5, False, False)]


@pytest.mark.parametrize(
    "kind", ["reset_before_effect", "reset_after_effect", "kept_error_before_effect", "error_after_effect", "rate_limit"]
)
def test_a_cancellation_without_a_known_answer_is_asked_for_again(doubled: World, kind: Any, pass_to: Callable[[float], None]) -> None:
    """By the next run; Stripe counts once in the end, whatever became of the first."""
    doubled.simulator.script_faults([Fault(kind=kind, path=CANCELLATIONS)] * 2)
    for hours in (49, 50):
        pass_to(hours)
        with pytest.raises(StripeUnavailable, match="cancellation of 1 events"):
            doubled.cancel_surplus()
        assert surplus(doubled) == [("read_back", 5, False, False)]
    pass_to(51)
    assert doubled.cancel_surplus() == 1
    assert doubled.at_stripe() == {"a": 5}
    assert surplus(doubled) == [("read_back", 5, True, False)]


def test_a_surplus_that_is_still_counted_is_not_taken_for_another(doubled: World, pass_to: Callable[[float], None]) -> None:
    """The report gave up a third identifier, of which nothing arrived."""
    doubled.sql(
        "UPDATE billing.push_attempt SET attempt = 5 WHERE attempt = 1;"
        "INSERT INTO billing.push_attempt (report_id, attempt, identifier, noted_at) SELECT id, 1, 'older', now() FROM billing.usage_report"
    )
    doubled.simulator.script_faults([Fault(kind="reset_before_effect", path=CANCELLATIONS)] * 3)
    for hours in (49, 50):
        pass_to(hours)
        with pytest.raises(StripeUnavailable, match="cancellation of 1 events"):
            doubled.cancel_surplus()
        assert surplus(doubled) == [("read_back", 5, False, False)]


def test_an_unreachable_stripe_leaves_everything_to_the_next_run(doubled: World, pass_to: Callable[[float], None]) -> None:
    """Nothing is noted as tried that was not."""
    doubled.stripe_base = "http://127.0.0.1:9"
    with pytest.raises(StripeUnavailable, match="stripe_default"):
        doubled.cancel_surplus()
    doubled.stripe_base = None
    pass_to(50)
    assert doubled.cancel_surplus() == 1
    assert doubled.at_stripe() == {"a": 5}


def test_what_stripe_will_not_cancel_any_more_is_told_until_somebody_settles_it(doubled: World, pass_to: Callable[[float], None]) -> None:
    """Found too late, since no run looked for a day: tenant and tokens are named, in every run, and other work is not held up."""
    pass_to(72.2)
    for hours in (72.2, 73.2, 90):
        pass_to(hours)
        with pytest.raises(SurplusAtStripe, match="5 tokens of tenant 'a' too much"):
            doubled.cancel_surplus()
    assert surplus(doubled) == [("read_back", 5, False, True)]
    assert doubled.sql("SELECT attempt_count, message LIKE '%%24 hours%%' FROM billing.surplus") == [(1, True)]
    doubled.sql("UPDATE billing.surplus SET resolved_at = now(), resolved_by = 'ann', message = message || '; credited by cn_1'")
    pass_to(103)
    assert doubled.cancel_surplus() == 0


def test_a_minute_is_read_once_an_hour_and_later_twice_a_day(delayed: World, pass_to: Callable[[float], None]) -> None:
    """As long as Stripe takes the event; and a day more, for it to be cancelled."""
    looked = []
    for hours in (48.2, 48.5, 49.2, 50.2, 90, 96, 102, 30 * 24, 36.5 * 24):
        pass_to(hours)
        before = delayed.sql("SELECT looked_at FROM billing.surplus_look")
        assert delayed.cancel_surplus() == 0
        looked.append(delayed.sql("SELECT looked_at FROM billing.surplus_look") != before)
    assert looked == [True, False, True, True, True, False, True, True, False]


def test_without_reports_sent_anew_stripe_is_not_asked(world: World) -> None:
    """Not even for the account."""
    world.link("a")
    world.use("a", 5)
    world.bill()
    world.stripe_base = "http://127.0.0.1:9"
    assert world.cancel_surplus() == 0


def test_what_no_event_of_ours_explains_is_told_once(delayed: World, pass_to: Callable[[float], None]) -> None:
    """Another system reports to the same customer and minute: nothing is cancelled, and a person is asked to look."""
    send_as_somebody_else(delayed, 3)
    with pytest.raises(SurplusAtStripe, match="3 tokens of tenant 'a' that no event of this ledger explains"):
        delayed.cancel_surplus()
    pass_to(50)
    assert delayed.cancel_surplus() == 0
    assert delayed.sql("SELECT unexplained_token_count FROM billing.surplus_look") == [(3,)]
    assert (surplus(delayed), delayed.at_stripe()) == ([], {"a": 8})


def test_a_quarantined_report_counts_for_nothing(delayed: World, pass_to: Callable[[float], None]) -> None:
    """Disowned and kept aside: whatever arrives of it later is too much."""
    ((report_id, identifier),) = delayed.sql("SELECT id, identifier FROM billing.usage_report")
    delayed.simulator.disown([identifier])
    revoke(delayed.connect, Disowned(report_id, RevocationCause.OPERATOR, "gone"), delayed.clock, revoked_by="ann", resend=False)
    delayed.simulator.release_delayed()
    assert delayed.at_stripe() == {"a": 5}
    pass_to(50)
    assert delayed.cancel_surplus() == 1
    assert (delayed.at_stripe(), delayed.marked()) == ({}, {})


def send_as_somebody_else(world: World, tokens: int) -> None:
    ((customer, event_name, event_time),) = world.sql("SELECT customer_id, event_name, event_time FROM billing.usage_report")
    base = world.simulator.base_url
    client = stripe.StripeClient(world.simulator.api_key, base_addresses={"api": base, "meter_events": base})
    client.v1.billing.meter_events.create(
        {
            "event_name": event_name,
            "identifier": "foreign",
            "payload": {"stripe_customer_id": customer, "value": str(tokens)},
            "timestamp": int(event_time.timestamp()),
        }
    )


SURPLUS = (
    "INSERT INTO billing.surplus (report_id, identifier, token_count, how, found_at, attempt_count, attempted_at, {more}) "
    "SELECT id, 'i', 5, 'read_back', now(), 1, now(), {values} FROM billing.usage_report"
)


@pytest.mark.parametrize(
    "change",
    [
        SURPLUS.format(more="message", values="''"),
        SURPLUS.format(more="gave_up_at", values="now()"),
        SURPLUS.format(more="cancelled_at, gave_up_at, message", values="now(), now(), 'm'"),
        SURPLUS.format(more="resolved_at", values="now()"),
        SURPLUS.format(more="resolved_at, resolved_by", values="now(), ' '"),
        SURPLUS.format(more="cancelled_at, resolved_at, resolved_by", values="now(), now(), 'ann'"),
        SURPLUS.format(more="key_number", values="-1"),
        SURPLUS.format(more="key_number", values="0").replace("1, now(), 0", "0, now(), 0"),
        SURPLUS.format(more="cancelled_at", values="now()").replace("1, now(), now()", "0, NULL, now()"),
        SURPLUS.format(more="key_number", values="0").replace("'read_back'", "'guess'"),
        SURPLUS.format(more="key_number", values="0").replace("'i', 5", "'i', 0"),
        SURPLUS.format(more="key_number", values="0").replace("'i', 5", "'', 5"),
        "; ".join([SURPLUS.format(more="key_number", values="0")] * 2),
    ],
)
def test_an_impossible_surplus_is_refused(world: World, change: str) -> None:
    """Times without tries, two ends, an end without a reason or a name, one identifier twice."""
    world.use("a", 5)
    world.freeze()
    with pytest.raises(psycopg.IntegrityError):
        world.sql(change)
    world.sql(SURPLUS.format(more="cancelled_at", values="now()"))
