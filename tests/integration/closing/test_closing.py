"""A draft is held until all usage of its periods is on it; nobody is left untold of one that goes without."""

from datetime import timedelta
from typing import Any

import pytest

from month_end import PERIOD_END, MonthEnd
from token_billing.adapters import closings
from token_billing.errors import InvoicesNotListed, StripeRefusesKey, StripeUnavailable
from token_billing.settings import ReconcileSettings
from token_billing.stages.exclude import exclude
from unreliable_network import unreliable_network

#: In minutes.
HOUR, DAY = 60, 24 * 60
#: When Stripe finalises a held draft, after its appearance.
HELD_UNTIL = 72 * HOUR - 30


def test_a_draft_is_held_until_its_last_hour_is_confirmed_and_then_let_go(month: MonthEnd) -> None:
    """Invoiced to the token, half an hour after it was complete."""
    month.use(1_000_000)
    month.at(5)
    assert month.close().held_count == 1
    assert month.finalises_after() == HELD_UNTIL
    month.at(35)
    month.bill(confirmed=False)
    month.at(6 * HOUR)
    assert month.close().released_count == 0
    month.confirm()
    assert month.close().released_count == 1
    assert month.finalises_after() == 6 * HOUR + 30
    month.at(6 * HOUR + 30)
    month.close()
    assert (month.invoice().status, month.quantity()) == ("paid", 1_000_000)
    assert month.told() == [] and month.check() is None


def test_a_period_without_usage_is_closed_when_its_last_hour_is(month: MonthEnd) -> None:
    month.at(5)
    month.close()
    month.at(35)
    month.bill()
    month.close()
    assert month.finalises_after() == 35 + 30
    month.at(2 * HOUR)
    month.close()
    assert month.world.sql("SELECT released_as, final_at IS NOT NULL, missing FROM billing.closing") == [("complete", True, None)]


def test_where_no_run_came_an_empty_hour_holds_nothing_up(month: MonthEnd) -> None:
    month.at(5)
    month.close()
    month.at(3 * HOUR)
    assert month.close().released_count == 1


def test_a_draft_that_is_not_ours_is_left_alone(month: MonthEnd) -> None:
    """No tenant's, and not the end of a period."""
    customer = month.shop.client.customers.create()
    month.at(-60)
    month.shop.client.subscriptions.create({"customer": customer.id, "items": [{"price": month.shop.prices["managed_ai_pure"]}]})
    month.at(5)
    assert month.close().draft_count == 1


def test_what_is_missing_is_told_before_the_limit_lets_it_go(month: MonthEnd) -> None:
    """In tokens, by tenant and reason; three hours before it is finalised."""
    month.use(1_000_000)
    month.use(7, minutes=-90)
    month.at(5)
    month.close()
    month.at(48 * HOUR - 10)
    month.close()
    assert month.told() == []
    month.at(48 * HOUR)
    assert month.close().incomplete_count == 1
    [told] = month.told()
    assert "lacks 1,000,007 tokens: tenant 'acme': 1,000,007 tokens of 2 hours from 2026-04-10T09:00Z on, not frozen yet" in told
    assert month.finalises_after() == 51 * HOUR
    assert "1,000,007 tokens" in str(month.check())


def test_what_a_limit_let_go_may_still_become_complete(month: MonthEnd) -> None:
    """Somebody acted on the alert, which then settles itself."""
    month.use(5)
    month.at(5)
    month.close()
    month.at(48 * HOUR)
    month.close()
    month.bill()
    assert month.close().released_count == 1
    assert month.told() == [] and month.finalises_after() == 48 * HOUR + 30
    month.at(49 * HOUR)
    month.close()
    assert month.quantity() == 5


def test_the_limit_is_a_setting_and_never_past_stripes_own(month: MonthEnd) -> None:
    month.settings = ReconcileSettings.from_environment({"BILLING_HOLD_HOURS": "72"})
    month.use(5)
    month.at(5)
    month.close()
    month.at(71 * HOUR)
    month.close()
    assert len(month.told()) == 1 and month.finalises_after() == HELD_UNTIL
    month.at(72 * HOUR)
    month.close()
    assert month.invoice().status == "paid" and len(month.told()) == 1


@pytest.mark.parametrize("grace", [1, 72])
def test_an_outage_around_the_periods_end_is_told_of(month: MonthEnd, grace: int) -> None:
    """With the account's longest grace before the invoice is final, else afterwards: nobody could have held it."""
    month.world.simulator.settings(invoice_grace_seconds=grace * 3600)
    month.use(5)
    month.at(70 * HOUR)
    assert month.close().incomplete_count == 1
    assert (month.invoice().status == "draft") == (grace == 72)
    assert "lacks 5 tokens" in month.told()[0] and "lacks 5 tokens" in str(month.check())


def test_the_longest_grace_needs_no_hold(month: MonthEnd) -> None:
    """The draft stays as Stripe planned it, until it is complete."""
    month.world.simulator.settings(invoice_grace_seconds=72 * 3600)
    month.use(5)
    month.at(5)
    assert month.close().held_count == 0
    month.at(35)
    month.bill()
    assert month.close().released_count == 1


def test_rows_that_come_when_it_was_let_go_hold_it_again(month: MonthEnd) -> None:
    month.at(35)
    month.bill()
    month.close()
    assert month.finalises_after() == HOUR  # as Stripe planned it: it is complete
    month.use(3)
    month.at(45)
    assert month.close().held_count == 1
    assert month.finalises_after() == HELD_UNTIL
    month.at(50)
    month.bill()
    month.close()
    assert month.finalises_after() == 50 + 30
    month.use(4)
    month.at(60)
    assert month.close().held_count == 1


def test_rows_that_came_too_late_for_it_are_told(month: MonthEnd) -> None:
    """Between the last look and its finalisation."""
    month.at(35)
    month.bill()
    month.close()
    month.use(3)
    month.at(70)
    assert month.close().incomplete_count == 1
    assert "is final since 2026-04-10T11:30Z and lacks 3 tokens" in month.told()[0]
    month.bill()
    month.close()
    assert "quarantined" in month.told()[0]


def test_a_report_that_arrived_after_the_invoice_was_final_is_told(month: MonthEnd) -> None:
    """Stripe accepted it, its meters show it, and no invoice will."""
    month.use(3)
    month.at(35)
    month.close()
    month.bill()
    month.shop.client.invoices.finalize_invoice(month.invoice().id)
    month.world.sql("UPDATE billing.usage_report SET accepted_at = accepted_at + interval '1 second'")
    month.at(45)
    assert month.close().incomplete_count == 1
    assert "accepted after the invoice was final" in month.told()[0]


def test_usage_of_other_periods_and_tenants_holds_nothing_up(month: MonthEnd) -> None:
    """Of the next period from its first instant on, of another subscription, and of nobody's."""
    month.shop.add_tenants("other", "nobody")
    month.shop.buy("pure", client_reference_id="other")
    month.at(35)
    month.bill()
    month.use(1, minutes=0)
    month.use(2, minutes=-10, tenant="other")
    month.use(4, minutes=-10, tenant="nobody")
    month.close()
    assert month.world.sql("SELECT missing FROM billing.closing") == [(None,)]
    month.use(8, minutes=-0.001)
    month.close()
    month.at(61)
    month.freeze()
    month.close()
    assert "8 tokens of 1 hour" in month.world.sql("SELECT missing FROM billing.closing")[0][0]


def test_quarantined_usage_is_waited_for_until_somebody_acknowledges_it(month: MonthEnd) -> None:
    month.use(5)
    month.at(35)
    month.freeze()
    month.world.sql("UPDATE billing.usage_report SET state = 'quarantined', quarantined_at = now(), quarantine_reason = 'too_many_digits'")
    month.close()
    assert "quarantined, and nobody has acknowledged it" in month.world.sql("SELECT missing FROM billing.closing")[0][0]
    month.world.sql(
        "INSERT INTO billing.acknowledgement (report_id, acknowledged_by, acknowledged_at, reason) "
        "SELECT id, 'ann', now(), 'a test of ours' FROM billing.usage_report WHERE state = 'quarantined'"
    )
    assert month.close().released_count == 1


def test_usage_that_somebody_keeps_aside_is_not_waited_for(month: MonthEnd) -> None:
    """The decision is on record already."""
    exclude(month.world.connect, "acme", "internal", PERIOD_END.replace(hour=0, minute=0), "ann")
    month.use(5)
    month.at(35)
    month.bill()
    month.close()
    assert month.world.sql("SELECT missing FROM billing.closing") == [(None,)]


def test_usage_that_waits_for_a_decision_is_waited_for(month: MonthEnd) -> None:
    month.use(5)
    month.at(35)
    month.freeze()
    month.world.sql(
        "INSERT INTO billing.hold (report_id, reason, token_count, limit_tokens, held_at) "
        "SELECT id, 'absurd_total', 5, 1, now() FROM billing.usage_report"
    )
    month.close()
    assert "held until somebody decides" in month.world.sql("SELECT missing FROM billing.closing")[0][0]


@pytest.mark.parametrize("by_hand", [{"automatically_finalizes_at": 90}, {"auto_advance": False}])
def test_what_somebody_decided_about_a_draft_stands(month: MonthEnd, by_hand: dict[str, object]) -> None:
    """It is told all the same: of a draft that is not finalised by itself, at the limit."""
    month.use(5)
    month.at(5)
    month.close()
    if minutes := by_hand.get("automatically_finalizes_at"):
        by_hand = {"automatically_finalizes_at": int(PERIOD_END.timestamp()) + int(str(minutes)) * 60}
    month.shop.client.invoices.update(month.invoice().id, by_hand)  # type: ignore[arg-type]
    before = month.invoice().automatically_finalizes_at
    month.at(40)
    assert month.close().held_count == 0
    assert month.invoice().automatically_finalizes_at == before
    assert len(month.told()) == (1 if before else 0)
    month.at(48 * HOUR)
    month.close()
    assert len(month.told()) == 1


def test_a_draft_that_nobody_finalises_is_looked_at_until_somebody_has_settled_that(month: MonthEnd) -> None:
    """And as long as any of its usage can be sent; it costs no run anything then, months later."""
    month.use(5)
    month.at(5)
    month.close()
    month.shop.client.invoices.update(month.invoice().id, {"auto_advance": False})
    month.at(49 * HOUR)
    month.close()

    def looked_at(days: int) -> int:
        with month.world.connect() as db:
            return len(closings.open_closings(db, PERIOD_END + timedelta(days=days)))

    assert looked_at(99) == 1
    month.world.sql("UPDATE billing.discrepancy SET resolved_at = now(), resolved_by = 'ann' WHERE cause = 'period_incomplete'")
    assert (looked_at(20), looked_at(37)) == (1, 0)


def test_who_finalises_an_incomplete_draft_by_hand_is_told(month: MonthEnd) -> None:
    month.use(5)
    month.at(5)
    month.close()
    month.shop.client.invoices.finalize_invoice(month.invoice().id)
    month.at(15)
    month.close()
    assert "lacks 5 tokens" in month.told()[0]
    assert month.world.sql("SELECT final_at FROM billing.closing") == [(PERIOD_END.replace(minute=35),)]


def test_a_cancelled_subscriptions_last_draft_is_held(month: MonthEnd) -> None:
    month.use(5, minutes=-41)
    month.at(-40)
    month.shop.client.subscriptions.cancel(month.subscription, {"invoice_now": True})
    month.shop.sync()
    month.at(-35)
    assert month.close().held_count == 1
    month.at(-28)
    month.bill(minutes=-41)
    month.close()
    month.at(2 * HOUR)
    month.close()
    assert month.quantity() == 5
    assert month.shop.open_discrepancies() == [("short_grace", None)], "an end with an invoice is none without"


def test_somebody_is_told_at_once_and_then_once_a_day_until_it_is_settled(month: MonthEnd) -> None:
    """By two runs, since a worker may die between writing down that it tells and telling."""
    month.use(5)
    month.at(70)
    month.close()
    said = []
    for minutes in (70, 80, 90, HOUR + DAY, 71 + DAY, 81 + DAY, 100 + DAY):
        month.at(minutes)
        said.append(month.check() is not None)
    assert said == [True, True, False, False, True, True, False]
    month.world.sql("UPDATE billing.discrepancy SET resolved_at = now(), resolved_by = 'ann'")
    month.at(72 + 2 * DAY)
    month.close()
    assert month.check() is None and month.told() == []


def test_a_warning_stands_until_the_newest_draft_shows_the_longest_grace(month: MonthEnd) -> None:
    """It fails no run."""

    def warnings() -> list[str]:
        found = month.world.sql("SELECT details FROM billing.discrepancy WHERE cause = 'short_grace' AND resolved_at IS NULL")
        return [details for (details,) in found]

    assert "no draft was seen yet" in warnings()[0]
    month.use(5)
    month.at(5)
    month.close()
    month.close()
    assert "had 1:00:00" in warnings()[0]
    assert month.check() is None
    month.world.simulator.settings(invoice_grace_seconds=72 * 3600)
    month.at(31 * DAY)
    month.close()
    assert warnings() == []


def test_a_draft_that_cannot_be_held_is_told_of(month: MonthEnd) -> None:
    """Stripe cannot be reached any more, or does not let this key write: the hour it has left is for somebody to act."""
    month.use(5)
    month.at(5)
    path = f"/v1/invoices/{month.invoice().id}"
    with unreliable_network(month.world.simulator.base_url) as network:
        month.world.stripe_base = network.base_url
        network.broken_writes[path] = 500
        with pytest.raises(StripeUnavailable):
            month.close()
        assert "lacks 5 tokens" in month.told()[0] and month.check() is not None
        network.broken_writes[path] = 403
        with pytest.raises(StripeRefusesKey, match="write access to invoices"):
            month.close()
        network.broken_writes.clear()
        month.close()
    assert month.told() == [] and month.finalises_after() == HELD_UNTIL


def test_a_stand_in_without_invoices_is_said(month: MonthEnd) -> None:
    """What became of them meanwhile is looked at when there is a list again."""
    month.use(5)
    month.at(2 * HOUR)
    with unreliable_network(month.world.simulator.base_url) as network:
        month.world.stripe_base = network.base_url
        network.broken_paths["/v1/invoices"] = 404
        with pytest.raises(InvoicesNotListed, match="invoices cannot be listed"):
            month.close()
    month.world.stripe_base = None
    month.at(2 * HOUR + 10)
    month.close()
    assert "lacks 5 tokens" in month.told()[0]


def test_an_invoice_that_cannot_be_understood_is_told_and_keeps_no_other_from_being_held(month: MonthEnd) -> None:
    """The draft beside it is held."""
    month.use(5)
    month.at(5)
    with unreliable_network(month.world.simulator.base_url) as network:
        month.world.stripe_base = network.base_url
        network.answers["/v1/invoices"] = lambda page: {**page, "data": [{**page["data"][0], "id": "in_odd", "lines": 7}, *page["data"]]}
        with pytest.raises(InvoicesNotListed, match="in_odd cannot be understood"):
            month.close()
    assert month.finalises_after() == HELD_UNTIL


@pytest.mark.parametrize("left_out", ["the null sibling of a line's parent", "the reason"])
def test_a_draft_of_which_a_stand_in_says_less_is_held(month: MonthEnd, left_out: str) -> None:
    """An invoice item's line names no subscription item; and an invoice need not say why it was made."""
    month.use(5)
    month.at(5)

    def says_less(one: dict[str, Any]) -> dict[str, Any]:
        if left_out == "the reason":
            said = {name: value for name, value in one.items() if name != "billing_reason"}
            return {**said, "lines": {**one["lines"], "data": []}}
        item = {**one["lines"]["data"][0], "id": "il_odd", "parent": {"type": "invoice_item_details", "invoice_item_details": {}}}
        return {**one, "lines": {**one["lines"], "data": [item, *one["lines"]["data"]]}}

    with unreliable_network(month.world.simulator.base_url) as network:
        month.world.stripe_base = network.base_url
        network.answers["/v1/invoices"] = lambda page: {**page, "data": [says_less(one) for one in page["data"]]}
        month.close()
    assert month.finalises_after() == HELD_UNTIL


@pytest.mark.parametrize("told", ["left out", "null"])
def test_a_first_invoice_that_does_not_say_what_it_is_closes_nothing(begun: MonthEnd, told: str) -> None:
    """It is final and names the item for the month that begins, whose last hour is billed all the same."""

    def unsaid(one: dict[str, Any]) -> dict[str, Any]:
        said = {name: value for name, value in one.items() if name != "billing_reason"}
        return said if told == "left out" else {**said, "billing_reason": None}

    with unreliable_network(begun.world.simulator.base_url) as network:
        begun.world.stripe_base = network.base_url
        network.answers["/v1/invoices"] = lambda page: {**page, "data": [unsaid(one) for one in page["data"]]}
        begun.close()
        begun.at(-65)
        begun.close()
        begun.use(5, -40)
        begun.at(2)
        begun.bill(-40)
    assert begun.world.states() == {"acme": "billed"}


def test_a_draft_that_was_deleted_is_told(month: MonthEnd) -> None:
    month.at(5)
    month.close()
    with unreliable_network(month.world.simulator.base_url) as network:
        month.world.stripe_base = network.base_url
        network.answers["/v1/invoices"] = lambda listed: {**listed, "data": []}
        network.broken_paths[f"/v1/invoices/{month.invoice().id}"] = 404
        month.close()
    assert "deleted the draft" in month.told()[0]
    month.world.stripe_base = None
    month.close()
    assert month.told() == []
