"""Errors planted on purpose: Stripe holds something wrong, and nothing tells of it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandbox.stripe_simulator.process import SimulatorFailed, StripeSimulator
from stripe_simulator.conftest import Billing, RawHttp

TIERS = {
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "tiers[0][up_to]": 1000,
    "tiers[0][unit_amount]": 0,
    "tiers[1][up_to]": "inf",
    "tiers[1][unit_amount_decimal]": "0.5",
}


@pytest.fixture
def price(raw, meter):
    """A thousand free, then half a cent each."""
    recurring = {"recurring[interval]": "month", "recurring[usage_type]": "metered", "recurring[meter]": meter}
    return raw.post("/v1/prices", {"currency": "usd", "product_data[name]": "Tokens", **recurring, **TIERS}).body["id"]


@pytest.fixture
def subscription(billing, customer, price):
    return billing.subscription(customer, billing.price(), **{"items[1][price]": price})


@pytest.fixture(params=["draft", "final"])
def invoice(request, raw, billing, subscription, customer, now, pass_time) -> dict:
    """1,500 tokens: $19.00 in advance, and $2.50; a draft that will finalise, or one that has."""
    billing.send(customer, 1500, now)
    pass_time(days=31, minutes=30 if request.param == "draft" else 90)
    found: dict = raw.get("/v1/invoices", {"subscription": subscription["id"]}).body["data"][0]
    assert (found["status"] == "draft") == (request.param == "draft") and found["total"] == 2150
    return found


@pytest.fixture
def at_last(raw, invoice, pass_time):
    """The invoice, final."""

    def read() -> dict:
        pass_time(hours=2)
        found: dict = raw.get(f"/v1/invoices/{invoice['id']}").body
        assert found["status"] == "paid" and found["total"] == sum(line["amount"] for line in found["lines"]["data"])
        return found

    return read


def lines_of(invoice) -> list[tuple[int, int]]:
    return [(line["quantity"], line["amount"]) for line in invoice["lines"]["data"]]


def test_an_event_is_lost_doubled_or_changed(billing, simulator, meter, customer, now):
    """By its identifier, in the summaries at once; no report, no event."""
    for identifier in ("a", "b", "c"):
        billing.send(customer, 100, now, identifier)
    simulator.lose_event("a")
    doubled = simulator.double_event("b")
    simulator.change_event("c", value=7, at=now + timedelta(hours=1))
    assert billing.total(meter, customer, now, now + timedelta(hours=1)) == 200
    assert billing.total(meter, customer, now + timedelta(hours=1), now + timedelta(hours=2)) == 7
    listed = {event["identifier"]: (event["status"], event["value"]) for event in simulator.meter_events()}
    assert listed == {"a": ("rejected", "100"), "b": ("accepted", "100"), "c": ("accepted", "7"), doubled: ("accepted", "100")}
    with pytest.raises(SimulatorFailed, match="no meter event is counted"):
        simulator.lose_event("a")


def test_what_is_planted_outlives_the_process(tmp_path, now):
    """As all else."""
    for started in range(2):
        with StripeSimulator.start(state_dir=tmp_path, clock=now) as simulator:
            billing = Billing(RawHttp(simulator.base_url, simulator.api_key))
            if not started:
                simulator.settings(summary_delay_seconds=0)
                meter, customer = billing.meter(), billing.customer()
                for identifier in ("a", "b", "c"):
                    billing.send(customer, 100, now, identifier)
                simulator.lose_event("a")
                simulator.double_event("b")
                simulator.change_event("c", value=7)
            assert billing.total(meter, customer, now, now + timedelta(hours=1)) == 207


def test_a_price_is_edited_in_place(raw, billing, simulator, price, subscription, customer, now, pass_time):
    """Unit amount or tiers; drafts and later invoices follow, final ones stay. No event of these days tells of it."""
    billing.send(customer, 1500, now)
    pass_time(days=31, hours=2)
    tiers = [{"up_to": 500, "unit_amount_decimal": "0"}, {"up_to": "inf", "unit_amount_decimal": "0.25", "flat_amount": 3}]
    simulator.edit_price(price, tiers=tiers)
    billing.send(customer, 1500, now + timedelta(days=31))
    pass_time(days=31)
    later, final, _ = raw.get("/v1/invoices", {"subscription": subscription["id"]}).body["data"]
    assert (final["total"], lines_of(later)) == (2150, [(1, 1900), (500, 0), (1000, 250), (0, 3)])
    shown = raw.get(f"/v1/prices/{price}", {"expand[]": "tiers"}).body["tiers"]
    assert [(tier["up_to"], tier["unit_amount_decimal"]) for tier in shown] == [(500, "0"), (None, "0.25")]
    base = subscription["items"]["data"][0]["price"]["id"]
    assert simulator.edit_price(base, unit_amount_decimal="2000.5")["unit_amount"] is None
    assert raw.get(f"/v1/prices/{base}").body["unit_amount_decimal"] == "2000.5"
    assert raw.get("/v1/events", {"type": "price.*"}).body["data"] == []


def test_the_period_of_metered_lines_is_shifted(simulator, invoice, at_last):
    """All of them, or one that is named."""
    simulator.shift_period(invoice["id"], 3600)
    simulator.shift_period(invoice["id"], 60, line=invoice["lines"]["data"][0]["id"])
    before, after = ([line["period"]["start"] for line in one["lines"]["data"]] for one in (invoice, at_last()))
    assert [later - earlier for earlier, later in zip(before, after, strict=True)] == [60, 3600, 3600]


def test_a_lines_quantity_amount_or_price_is_changed(billing, simulator, invoice, price, meter, at_last):
    """Of the metered line of most units, or of one that is named."""
    other = billing.metered_price(meter)
    simulator.change_line(invoice["id"], quantity=1001)
    simulator.change_line(invoice["id"], invoice["lines"]["data"][2]["id"], amount=251, price=other)
    changed = at_last()
    assert lines_of(changed) == [(1, 1900), (1001, 0), (500, 251)]
    assert (changed["total"], changed["amount_paid"]) == (2151, 2151)
    assert [line["pricing"]["price_details"]["price"] for line in changed["lines"]["data"]][1:] == [price, other]


def test_an_invoice_is_in_another_currency(simulator, invoice, at_last):
    """With the same numbers."""
    simulator.change_currency(invoice["id"], "eur")
    changed = at_last()
    assert {changed["currency"], *(line["currency"] for line in changed["lines"]["data"])} == {"eur"}


def test_lines_are_dropped_and_added(raw, simulator, invoice, at_last):
    """An added one is an invoice item's, which is there."""
    simulator.drop_line(invoice["id"])
    simulator.add_line(invoice["id"], 123)
    changed = at_last()
    assert lines_of(changed) == [(1, 1900), (500, 250), (1, 123)]
    details = changed["lines"]["data"][-1]["parent"]["invoice_item_details"]
    assert raw.get(f"/v1/invoiceitems/{details['invoice_item']}").body["invoice"] == invoice["id"]


def test_usage_is_billed_twice(simulator, invoice, at_last):
    """All lines of the item, under ids of their own."""
    simulator.double_usage(invoice["id"])
    changed = at_last()
    assert lines_of(changed) == [(1, 1900), (1000, 0), (500, 250), (1000, 0), (500, 250)]
    assert len({line["id"] for line in changed["lines"]["data"]}) == 5


def test_what_makes_no_sense_is_not_planted(simulator, invoice):
    """An invoice or line that is not there, and no number."""
    for line in ("il_nothing", None):
        with pytest.raises(SimulatorFailed):
            simulator.drop_line("in_nothing" if line is None else invoice["id"], line)
    with pytest.raises(SimulatorFailed, match="whole number"):
        simulator._plant("shift_period", invoice=invoice["id"], seconds="x")
    with pytest.raises(SimulatorFailed, match="No such price"):
        simulator.edit_price("price_nothing", unit_amount_decimal="1")
