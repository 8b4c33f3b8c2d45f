"""Usage of an ended billing period is sent while its invoice is a draft, and kept aside once the invoice is final."""

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from token_billing.errors import BillingError, StripeUnavailable
from token_billing.model import Shard
from token_billing.stages.push import push
from token_billing.windows import HOUR, Window
from unreliable_network import UnreliableNetwork
from world import SETTINGS, World

#: Every subscription here begins at this instant; its first period ends a month later, in the middle of an hour.
BEGUN = datetime(2025, 10, 15, 12, 30, tzinfo=UTC)
PERIOD_END = datetime(2025, 11, 15, 12, 30, tzinfo=UTC)
#: The last whole hour of the period, the hour that holds its end, and the first whole one of the next.
LAST, STRADDLING, NEXT = (Window(datetime(2025, 11, 15, hour, tzinfo=UTC)) for hour in (11, 12, 13))
#: When its invoice finalises by itself.
FINAL = PERIOD_END + HOUR


@pytest.fixture
def month(world: World) -> World:
    """Tenant a (Bundled) has had a subscription for almost a month, and its item has been looked up."""
    world.simulator.reset(clock=BEGUN)
    world.simulator.settings(summary_delay_seconds=0)
    world.link("a")
    bill(world, Window(datetime(2025, 10, 15, 13, tzinfo=UTC)), 6_000_000, at=datetime(2025, 10, 15, 14, 5, tzinfo=UTC))
    return world


def bill(world: World, window: Window, tokens: int, *, at: datetime, tenant: str = "a") -> None:
    """The tenant's usage of a window, all of its minutes the last, goes through the stages at a time."""
    world.set_time(at)
    world.window = window
    world.use(tenant, tokens)
    world.bill()


def invoices(world: World, tenant: str = "a") -> list[Any]:
    """The tenant's invoices at Stripe but its first, newest first."""
    [(subscription,)] = world.sql("SELECT stripe_subscription_id FROM tenants WHERE id = %s", tenant)
    client = stripe.StripeClient(world.simulator.api_key, base_addresses={"api": world.simulator.base_url})
    listed = client.v1.invoices.list({"subscription": subscription})
    return [one for one in listed.data if one.billing_reason != "subscription_create"]


def metered_quantity(invoice: Any) -> int:
    return sum(line.quantity for line in invoice.lines.data if line.amount != 5000)


def reports(world: World) -> dict[datetime, tuple[str, str | None]]:
    """State and reason by window; the latest revision's."""
    found = world.sql("SELECT window_start, state, quarantine_reason FROM billing.usage_report ORDER BY revision")
    return {start: (state, reason) for start, state, reason in found}


def test_usage_of_an_ended_period_is_billed_while_its_invoice_is_a_draft(month: World) -> None:
    """It is on that invoice, to the cent: 7 million tokens, of which 5 are free, at $0.000005."""
    bill(month, LAST, 1_000_000, at=PERIOD_END + timedelta(minutes=30))
    month.set_time(FINAL)
    [ended] = invoices(month)
    assert (ended.status, metered_quantity(ended), ended.total) == ("paid", 7_000_000, 5000 + 1000)
    assert reports(month)[LAST.start] == ("billed", None)


def test_usage_of_a_period_whose_invoice_is_final_is_quarantined(month: World) -> None:
    """Stripe would take it and never bill it: it is not sent, its rows stay unmarked, and the tokens still add up."""
    before = len(month.simulator.meter_events())
    bill(month, LAST, 1_000_000, at=FINAL + timedelta(minutes=5))
    assert reports(month)[LAST.start] == ("quarantined", "period_invoiced")
    assert len(month.simulator.meter_events()) == before
    assert month.marked() == {"a": 6_000_000}
    assert [one.quarantined_tokens for one in month.conservation()] == [1_000_000]


def test_an_invoice_that_does_not_say_why_it_was_made_may_close_a_period(month: World, network: UnreliableNetwork) -> None:
    """What answers for Stripe may leave that out; the lines tell the period all the same."""
    unsaid = "billing_reason"
    network.answers["/v1/invoices"] = lambda page: {
        **page,
        "data": [{name: value for name, value in one.items() if name != unsaid} for one in page["data"]],
    }
    bill(month, LAST, 1_000_000, at=FINAL + timedelta(minutes=5))
    assert reports(month)[LAST.start] == ("quarantined", "period_invoiced")


@pytest.mark.parametrize("status", ["open", "void"])
def test_an_invoice_is_final_whether_or_not_it_is_paid(month: World, status: str) -> None:
    """Finalised by hand before its time, then voided."""
    month.set_time(PERIOD_END + timedelta(minutes=1))
    client = stripe.StripeClient(month.simulator.api_key, base_addresses={"api": month.simulator.base_url})
    [draft] = invoices(month)
    client.v1.invoices.finalize_invoice(draft.id, {"auto_advance": False})
    if status == "void":
        client.v1.invoices.void_invoice(draft.id)
    assert invoices(month)[0].status == status
    bill(month, LAST, 5, at=PERIOD_END + timedelta(minutes=10))
    assert reports(month)[LAST.start] == ("quarantined", "period_invoiced")


def test_a_held_draft_still_takes_usage_days_later(month: World) -> None:
    """Whoever closes the period holds the draft; late usage gets onto it as long as that lasts."""
    month.set_time(PERIOD_END + timedelta(minutes=1))
    client = stripe.StripeClient(month.simulator.api_key, base_addresses={"api": month.simulator.base_url})
    held_until = PERIOD_END + timedelta(hours=72)
    client.v1.invoices.update(invoices(month)[0].id, {"automatically_finalizes_at": int(held_until.timestamp())})
    bill(month, LAST, 1_000_000, at=PERIOD_END + timedelta(hours=70))
    bill(month, Window(LAST.start - HOUR), 5, at=held_until + timedelta(minutes=1))
    assert reports(month)[LAST.start] == ("billed", None)
    assert reports(month)[LAST.start - HOUR] == ("quarantined", "period_invoiced")
    assert metered_quantity(invoices(month)[0]) == 7_000_000


def test_the_hours_after_a_period_go_to_the_next_one(month: World) -> None:
    """An outage across the period's end: what is dated before it is too late, what is dated after it is billed."""
    recovered = FINAL + timedelta(hours=30)
    month.set_time(recovered)
    for window in (LAST, STRADDLING, NEXT):
        bill(month, window, 1_000, at=recovered)
    states = reports(month)
    assert states[LAST.start] == ("quarantined", "period_invoiced")
    assert states[STRADDLING.start] == ("quarantined", "period_invoiced")  # its report is dated at 12:00:30
    assert states[NEXT.start] == ("billed", None)


def test_late_rows_of_a_final_period_are_quarantined_weeks_later(month: World) -> None:
    """The next revision of an hour that was billed in time; the next period's usage goes on meanwhile."""
    bill(month, LAST, 10, at=LAST.end + timedelta(minutes=5))
    bill(month, NEXT, 20, at=NEXT.end + timedelta(minutes=5))
    later = NEXT.end + timedelta(days=20)
    bill(month, LAST, 7, at=later)
    bill(month, Window(later.replace(minute=0) - HOUR), 30, at=later)
    assert reports(month)[LAST.start] == ("quarantined", "period_invoiced")
    assert month.marked() == {"a": 6_000_000 + 60}


@pytest.mark.parametrize("left", ["unresolved", "sending"])
def test_a_report_that_may_have_arrived_is_read_back_and_not_quarantined(month: World, network: UnreliableNetwork, left: str) -> None:
    """Its answer was lost before the invoice became final, or its worker died: Stripe's summary says that it is on the invoice."""
    month.set_time(PERIOD_END + timedelta(minutes=10))
    month.window = LAST
    month.use("a", 1_000_000)
    network.always = "answer lost"
    month.freeze()
    with pytest.raises(StripeUnavailable):
        month.push()
    network.always = "ok"
    if left == "sending":  # as a worker leaves it that dies before it records anything
        month.sql("UPDATE billing.usage_report SET state = 'sending', may_have_arrived = false WHERE state = 'unresolved'")
    month.set_time(FINAL + timedelta(minutes=10))
    sent = len(network.meter_event_requests)
    with pytest.raises(BillingError, match=left):
        month.push()
    assert len(network.meter_event_requests) == sent  # Stripe would take it, for an invoice that takes nothing any more
    month.set_time(FINAL + timedelta(hours=20))
    month.bill()
    assert reports(month)[LAST.start] == ("billed", None)
    assert metered_quantity(invoices(month)[0]) == month.marked()["a"] == 7_000_000


def test_a_report_that_never_arrived_is_quarantined_once_that_is_proven(month: World, network: UnreliableNetwork) -> None:
    """The request was lost: absent for a day, then kept aside instead of being sent into a closed period."""
    month.set_time(PERIOD_END + timedelta(minutes=10))
    month.window = LAST
    month.use("a", 1_000_000)
    network.always = "request lost"
    month.freeze()
    with pytest.raises(StripeUnavailable):
        month.push()
    network.always = "ok"
    for hours in (20, 45):
        month.set_time(FINAL + timedelta(hours=hours))
        try:
            month.bill()
        except BillingError:
            assert hours == 20
    assert reports(month)[LAST.start] == ("quarantined", "period_invoiced")
    assert month.marked() == month.at_stripe() == {"a": 6_000_000}


def test_another_customers_invoice_is_no_obstacle(month: World) -> None:
    """Tenant b subscribed ten days later: its period goes on while a's has ended."""
    month.set_time(BEGUN + timedelta(days=10))
    month.link("b")
    month.set_time(FINAL + timedelta(minutes=5))
    month.window = LAST
    month.use("a", 5)
    month.use("b", 7)
    month.bill()
    assert month.states() == {"a": "quarantined", "b": "billed"}


def test_a_cancelled_subscriptions_last_period_is_checked_too(month: World) -> None:
    """Its item has no other period to look forward to."""
    client = stripe.StripeClient(month.simulator.api_key, base_addresses={"api": month.simulator.base_url})
    [(subscription,)] = month.sql("SELECT stripe_subscription_id FROM tenants")
    client.v1.subscriptions.update(subscription, {"cancel_at_period_end": True})
    bill(month, LAST, 10, at=PERIOD_END + timedelta(minutes=30))
    bill(month, LAST, 7, at=FINAL + timedelta(minutes=5))
    assert month.sql("SELECT revision, state FROM billing.usage_report WHERE window_start = %s ORDER BY 1", LAST.start) == [
        (0, "billed"),
        (1, "quarantined"),
    ]


def test_stripe_is_asked_once_an_item_and_period(month: World, network: UnreliableNetwork) -> None:
    """Not at all within the period; at its end for the item; for its invoice only as long as that is a draft."""
    asked = network.read_paths

    def asks(window: Window, at: datetime) -> list[str]:
        asked.clear()
        bill(month, window, 5, at=at)
        return sorted({path.split("/")[2] for path in asked} - {"account", "billing", "prices"})

    assert asks(Window(LAST.start - 2 * HOUR), LAST.start) == []
    assert asks(Window(LAST.start - HOUR), PERIOD_END + timedelta(minutes=1)) == ["invoices", "subscription_items"]
    assert asks(LAST, PERIOD_END + timedelta(minutes=2)) == []  # it was a draft a minute ago
    assert asks(Window(LAST.start - 3 * HOUR), FINAL + timedelta(minutes=2)) == ["invoices"]
    assert asks(Window(LAST.start - 4 * HOUR), FINAL + timedelta(hours=3)) == []
    assert asks(NEXT, FINAL + timedelta(hours=4)) == []


def test_pushes_at_once_agree_about_what_is_too_late(month: World) -> None:
    """Forty tenants whose period has ended, and four pushes, two of each shard."""
    late = [f"t{n}" for n in range(40)]
    month.link(*late)
    month.set_time(FINAL + timedelta(hours=2))  # they came some two hours after tenant a
    month.window = LAST
    for tenant in late:
        month.use(tenant, 5)
    month.freeze()

    def push_shard(number: int) -> None:
        push(month.connect, month.target, LAST, Shard(number % 2, 2), month.clock, SETTINGS, month.keeper)

    before = len(month.simulator.meter_events())
    with ThreadPoolExecutor(4) as pushes:
        list(pushes.map(push_shard, range(4)))
    month.mark_billed()
    states = month.states()
    assert {states[tenant] for tenant in late} == {"quarantined"}
    assert len(month.simulator.meter_events()) == before
    assert month.sql("SELECT count(DISTINCT usage_item_id), count(*) FROM billing.invoiced_period") == [(40, 40)]


def test_without_an_answer_about_invoices_nothing_is_sent(month: World, network: UnreliableNetwork) -> None:
    """A later try finds out."""
    network.broken_paths["/v1/invoices"] = 500
    with pytest.raises(StripeUnavailable):
        bill(month, LAST, 5, at=FINAL + timedelta(minutes=5))
    assert reports(month)[LAST.start] == ("frozen", None)
    network.broken_paths.clear()
    month.bill()
    assert reports(month)[LAST.start] == ("quarantined", "period_invoiced")


def test_a_stand_in_without_invoices_is_sent_to_unchecked(
    month: World, network: UnreliableNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be known stops nothing, and is said."""
    network.broken_paths["/v1/invoices"] = 404
    with caplog.at_level(logging.WARNING):
        bill(month, LAST, 5, at=FINAL + timedelta(minutes=5))
    assert reports(month)[LAST.start] == ("billed", None)
    assert "sent unchecked" in caplog.text
