"""What Stripe's meters count against what was accepted: what agrees is confirmed, what differs gets its cause."""

from datetime import timedelta

import pytest

from meters import Meters
from unreliable_network import UnreliableNetwork


def test_what_agrees_is_confirmed(billed: Meters) -> None:
    """Once it can show; then nothing waits, and Stripe is not asked again."""
    assert billed.compare() == {}, "a summary read at once would only tell that it lags"
    billed.at(0.5)
    assert billed.compare() == {"hours_agrees": 2, "reports_confirmed": 2, "reads": 2}
    assert billed.confirmed() == {"a": 50, "b": 70}
    billed.at(8)
    assert billed.compare() == {}
    assert billed.found() == [] and billed.require_none() == 0


def test_a_summary_that_lags_is_waited_for(billed: Meters) -> None:
    """However long it takes less than the settling: nothing is found, nothing alerts."""
    billed.world.simulator.settings(summary_delay_seconds=5 * 3600)
    for hours in (0.5, 1.5, 2.5, 4.5):
        billed.at(hours)
        assert billed.compare()["hours_not_settled"] == 2
        assert billed.confirmed() == {} and billed.found() == []
    billed.at(5.5)
    billed.compare()
    assert billed.confirmed() == {"a": 50, "b": 70}
    assert billed.differing_hours() == [] and billed.found() == []


def test_a_lost_event_is_missing_at_stripe(billed: Meters) -> None:
    """After it had time to settle; the other tenant's is confirmed meanwhile. A day later its absence counts as proven."""
    billed.lose("a")
    billed.at(0.5)
    billed.compare()
    assert billed.confirmed() == {"b": 70} and billed.found() == []
    billed.at(6.6)
    billed.compare()
    assert billed.found() == [("missing_at_stripe", "a", 50, 0)]
    ((report_id, stripe_id, details),) = billed.world.sql("SELECT report_id, stripe_id, details FROM billing.discrepancy")
    assert (report_id, stripe_id) == billed.world.sql("SELECT id, customer_id FROM billing.usage_report WHERE tenant_id = 'a'")[0]
    assert "proven" not in details
    billed.at(25)
    billed.compare()
    assert "proven" in billed.world.sql("SELECT details FROM billing.discrepancy")[0][0]
    assert billed.found() == [("missing_at_stripe", "a", 50, 0)]


def test_an_event_that_is_counted_twice_is_a_surplus(billed: Meters) -> None:
    billed.world.simulator.double_event(billed.identifier("a"))
    billed.conclude()
    assert billed.found() == [("surplus_at_stripe", "a", 50, 100)]
    assert billed.confirmed() == {"b": 70}


def test_what_others_report_is_a_foreign_identifier(billed: Meters) -> None:
    """In a minute of our report, and in one of nobody's."""
    billed.report(7, minute=billed.minute("a"))
    billed.report(11, identifier="another")
    billed.conclude()
    assert billed.found() == [("foreign_identifier", "a", 50, 68)]


def test_a_fraction_of_a_token_is_no_token_of_ours(billed: Meters, network: UnreliableNetwork) -> None:
    """Whoever reports it."""
    ((meter,),) = billed.world.sql("SELECT DISTINCT meter_id FROM billing.usage_report WHERE tenant_id = 'a'")

    def with_half_a_token(answer: dict[str, list[dict[str, float]]]) -> object:
        for summary in answer["data"]:
            summary["aggregated_value"] += 0.5
        return answer

    network.answers[f"/v1/billing/meters/{meter}/event_summaries"] = with_half_a_token
    billed.at(0.5)
    billed.compare()
    assert billed.confirmed() == {}


def test_tenants_that_share_a_customer_are_compared_together(meters: Meters) -> None:
    """Each of their reports is confirmed; one that is lost is told of its own tenant."""
    world = meters.world
    world.sql("UPDATE tenants SET stripe_customer_id = (SELECT stripe_customer_id FROM tenants WHERE id = 'a')")
    world.sql("UPDATE tenants SET stripe_usage_item_id = (SELECT stripe_usage_item_id FROM tenants WHERE id = 'a')")
    world.use("a", 50)
    world.use("b", 70)
    world.bill()
    meters.at(0.5)
    assert meters.compare() == {"hours_agrees": 1, "reports_confirmed": 2, "reads": 1}
    meters.at(1)
    world.use("b", 4)
    world.bill()
    world.simulator.lose_event(world.sql("SELECT identifier FROM billing.usage_report WHERE revision = 1")[0][0])
    for hours in (1.5, 7.6):
        meters.at(hours)
        meters.compare()
    assert meters.found() == [("missing_at_stripe", "b", 4, 0)]
    assert meters.confirmed() == {"a": 50, "b": 70}, "what was confirmed of the hour stays so"


def test_what_stripe_rejected_afterwards_is_told_so(billed: Meters) -> None:
    """By an error event that named it, or by one of its meter that named only some of what it counts."""
    world = billed.world
    for tenant in ("a", "b"):
        billed.lose(tenant)
    world.sql(
        "INSERT INTO billing.discrepancy (cause, report_id, tenant_id, stripe_id, details, found_at) SELECT 'meter_error', id, tenant_id, "
        "identifier, 'meter_event_invalid_value', accepted_at FROM billing.usage_report WHERE tenant_id = 'a'"
    )
    world.sql(
        "INSERT INTO billing.stripe_event (event_id, event_type, happened_at, livemode, payload, came_by, received_at) SELECT 'evt', "
        "'v1.billing.meter.error_report_triggered', accepted_at, false, jsonb_build_object('related_object', "
        "jsonb_build_object('id', meter_id)), 'sweep', accepted_at FROM billing.usage_report WHERE tenant_id = 'b'"
    )
    world.sql("INSERT INTO billing.discrepancy (cause, stripe_id, details, found_at) VALUES ('meter_error', 'evt', '9 not counted', now())")
    billed.conclude()
    found = [one for one in billed.found() if one[0] != "meter_error"]
    assert found == [("rejected_asynchronously", "a", 50, 0), ("rejected_asynchronously", "b", 70, 0)]


def test_a_customer_that_stripe_does_not_know_is_told(billed: Meters) -> None:
    """Everybody else's usage is compared all the same."""
    billed.world.simulator.reset(clock=billed.world.clock())
    ((b_before, *_),) = billed.world.sql("SELECT stripe_customer_id FROM tenants WHERE id = 'b'")
    billed.world.link("c")  # takes the ids that a had
    billed.at(0.5)
    billed.compare()
    assert ("unknown_customer", None, 70, None) in billed.found()
    assert billed.world.sql("SELECT stripe_id, scope LIKE stripe_id || ' %%' FROM billing.discrepancy") == [(b_before, True)]


def test_usage_of_a_deleted_customer_that_does_not_show_is_told_so(billed: Meters) -> None:
    world = billed.world
    world.sql(
        "INSERT INTO billing.subscription_link (subscription_id, tenant_id, customer_id, linked_at, customer_deleted_at) "
        "SELECT 'sub', id, stripe_customer_id, now(), now() FROM tenants WHERE id = 'a'"
    )
    billed.lose("a")
    billed.conclude()
    assert billed.found() == [("unknown_customer", "a", 50, 0)]


def test_a_report_that_was_set_aside_and_arrived_is_a_surplus(billed: Meters) -> None:
    """Stripe bills what our books do not."""
    world = billed.world
    world.use("a", 9)
    world.freeze()
    world.push()
    ((aside,),) = world.sql("SELECT id FROM billing.usage_report WHERE revision = 1")
    with world.connect() as db:  # as a push leaves what it must not resend once its period's invoice is final
        db.execute("SET session_replication_role = replica")
        db.execute(
            "UPDATE billing.usage_report SET state = 'quarantined', accepted_at = NULL, quarantined_at = now(), may_have_arrived = true, "
            "quarantine_reason = 'period_invoiced' WHERE id = %s",
            (aside,),
        )
    billed.conclude()
    assert billed.found() == [("surplus_at_stripe", "a", 0, 9)]
    assert "set aside" in world.sql("SELECT details FROM billing.discrepancy")[0][0]


def test_a_known_surplus_that_stripe_does_not_cancel_is_no_news(billed: Meters) -> None:
    """It was told of where it was found; the hour agrees with both."""
    billed.report(50, minute=billed.minute("a"), identifier="given up")
    billed.world.sql(
        "INSERT INTO billing.surplus (report_id, identifier, token_count, how, found_at, attempt_count, attempted_at, gave_up_at, message) "
        "SELECT id, 'given up', 50, 'read_back', now(), 1, now(), now(), 'too late' FROM billing.usage_report WHERE tenant_id = 'a'"
    )
    billed.at(0.5)
    billed.compare()
    assert billed.confirmed() == {"a": 50, "b": 70} and billed.differing_hours() == []


@pytest.mark.parametrize("cancelled", ["NULL", "(SELECT max(accepted_at) FROM billing.usage_report)"])
def test_an_hour_waits_for_a_surplus_to_leave(billed: Meters, cancelled: str) -> None:
    """One that is to be cancelled, or was just now."""
    billed.world.sql(
        "INSERT INTO billing.surplus (report_id, identifier, token_count, how, found_at, attempt_count, attempted_at, cancelled_at) "
        f"SELECT id, 'given up', 50, 'read_back', now(), 1, now(), {cancelled} FROM billing.usage_report WHERE tenant_id = 'a'"
    )
    billed.at(0.5)
    billed.compare()
    assert billed.confirmed() == {"b": 70}


def test_a_difference_that_goes_away_settles_itself(billed: Meters) -> None:
    """Here because the lost report was sent anew."""
    billed.lose("a")
    billed.conclude()
    assert [one[0] for one in billed.found()] == ["missing_at_stripe"]
    billed.revoke("a")
    billed.world.bill()
    billed.at(7.5)
    billed.compare()
    assert billed.found() == [] and billed.confirmed() == {"a": 50, "b": 70}
    assert billed.world.sql("SELECT resolved_by FROM billing.discrepancy") == [(None,)]


def test_foreign_usage_in_an_hour_without_ours_is_found_at_the_periods_end(billed: Meters) -> None:
    """The period is read as a whole once, and by hour only where its total differs."""
    world = billed.world
    start, end = world.window.start - timedelta(days=8), world.window.end + timedelta(hours=1)
    billed.report(33, hour=world.window.start - timedelta(days=3))
    billed.at(0.5)
    billed.compare()
    assert billed.confirmed() == {"a": 50, "b": 70}
    end_period(billed, start, end)
    billed.at(7.1)
    assert billed.compare() == {"periods_compared": 2, "hours_not_settled": 1, "reads": 4}
    assert billed.differing_hours() == [world.window.start - timedelta(days=3)] and billed.found() == []
    billed.at(13.2)
    assert billed.compare() == {"hours_to_explain": 1, "reads": 1}
    assert billed.found() == [("foreign_identifier", None, 0, 33)]


def test_usage_before_the_cut_over_hour_is_another_jobs(billed: Meters) -> None:
    """A period is compared from there on only."""
    world = billed.world
    start, end = world.window.start - timedelta(days=8), world.window.end + timedelta(hours=1)
    billed.report(33, hour=world.window.start - timedelta(days=3))
    world.sql("ALTER TABLE billing.ledger DISABLE TRIGGER USER")
    world.sql("UPDATE billing.ledger SET cut_over = %s", world.window.start)
    end_period(billed, start, end)
    billed.at(7.1)
    assert billed.compare()["reads"] == 4, "two customers' hours and two periods"
    assert billed.differing_hours() == []


def end_period(meters: Meters, start: object, end: object) -> None:
    meters.world.sql(
        "INSERT INTO billing.invoiced_period (usage_item_id, invoice_id, period_start, period_end, invoice_status, seen_at) "
        "SELECT stripe_usage_item_id, 'in_' || id, %s, %s, 'paid', now() FROM tenants",
        start,
        end,
    )


@pytest.mark.parametrize("seen_before", [False, True])
def test_an_hour_that_nobody_looked_into_is_explained_however_late(billed: Meters, seen_before: bool) -> None:
    """Nothing ran for weeks, or only once."""
    billed.lose("a")
    if seen_before:
        billed.at(24 * 33)
        billed.compare()
    for hours in (1, 8, 15):
        billed.at(24 * 37 + hours)
        billed.compare()
    assert billed.found() == [("missing_at_stripe", "a", 50, 0)]


def test_an_hour_that_differs_is_read_no_more_once_nothing_can_change_it(billed: Meters) -> None:
    """Whether or not somebody has settled it: Stripe takes nothing that old."""
    billed.lose("a")
    billed.conclude()
    for days, reads in ((35, 2), (37, 0), (38, 0)):  # the hour, and the minute of its report
        billed.at(24 * days)
        billed.compare()  # also the ended period, once
        billed.at(24 * days + 13)
        assert billed.compare().get("reads", 0) == reads
    assert billed.found() == [("missing_at_stripe", "a", 50, 0)]
