"""Why a charge differs from our rows, one cause at a time; what cannot be explained exactly is not explained."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from token_billing.charges import Charge, Facts, KnownPart, Trial, about_the_same, charges_of
from token_billing.invoice_evidence import Evidence, SentReport
from token_billing.invoice_reconciliation import Compared, compare_charge, compare_manual_line
from token_billing.invoices import Invoice, InvoiceLine, LineKind
from token_billing.periods import BillingPeriod
from token_billing.rating import Price, PricingMode, Tier, rate

HOUR = timedelta(hours=1)
START, END = datetime(2026, 3, 10, 10, 30, tzinfo=UTC), datetime(2026, 4, 10, 10, 30, tzinfo=UTC)
PERIOD, FINAL = BillingPeriod(START, END), END + HOUR
BUNDLED = Price("bundled", "usd", PricingMode.GRADUATED, (Tier(5_000_000), Tier(None, Decimal("0.0005"))))
INVOICE = Invoice("in_1", "cus_1", "sub_1", "subscription_cycle", "paid", "usd", END, None, FINAL, 0, FINAL)
PART = KnownPart("acme", "sub_1", "si_1", "bundled", "mtr_1", PERIOD, START, END)
FACTS = Facts({"si_1": [PART]}, {"bundled": BUNDLED}, our_prices=frozenset({"bundled"}), customers={"cus_1": ("acme",)})


def lines(tokens: int, price: Price = BUNDLED, period: BillingPeriod = PERIOD, **more: Any) -> list[InvoiceLine]:
    """As Stripe bills so many tokens."""
    return [
        InvoiceLine(f"il_{n}", LineKind.USAGE, "si_1", "bundled", one.quantity, None, one.amount_cents, "usd", period)
        for n, one in enumerate(rate(price, tokens))
    ]


def charge(billed: list[InvoiceLine], invoice: Invoice = INVOICE, facts: Facts = FACTS) -> Charge:
    [one] = about_the_same(charges_of(invoice, billed), facts)
    return one


def report(tokens: int, *, hours: int = 5, item: str = "si_1", accepted: timedelta = timedelta(), **more: Any) -> SentReport:
    """Of an hour of the period; accepted two minutes after it, or so long after the invoice was final."""
    window = START.replace(minute=0) + hours * HOUR
    at = FINAL + accepted if accepted else window + HOUR
    return SentReport(
        hours,
        "acme",
        item,
        window,
        window + timedelta(minutes=40),
        tokens,
        **{"counts": True, **more},
        first_attempted_at=at,
        accepted_at=at,
    )


def causes(compared: Compared | None) -> list[str]:
    assert compared is not None
    return [str(one.cause) for one in compared.differences]


def explained(billed: int, reports: list[SentReport], counted: dict[int, int] | None = None, cancelled: int = 0) -> Compared:
    """A charge of so many tokens beside the reports; `counted`: Stripe's hours where they are not what was sent."""
    hours = {one.window_start: 0 for one in reports}
    for one in reports:
        hours[one.window_start] += one.token_count if one.counts else 0
    hours |= {START.replace(minute=0) + hour * HOUR: tokens for hour, tokens in (counted or {}).items()}
    ours = sum(one.token_count for one in reports if one.counts and one.usage_item_id == "si_1")
    compared = compare_charge(charge(lines(billed)), ours, FACTS, Evidence(reports, hours, cancelled))
    assert compared is not None
    return compared


def test_what_our_rows_come_to_is_no_difference() -> None:
    compared = compare_charge(charge(lines(6_000_000)), 6_000_000, FACTS)
    assert compared is not None and not compared.needs_evidence and causes(compared) == []
    assert (compared.our_tokens, compared.stripe_tokens, compared.our_cents, compared.stripe_cents) == (6_000_000, 6_000_000, 500, 500)


def test_a_tie_may_be_rounded_either_way_and_says_so() -> None:
    """5,001,000 tokens above the free ones come to half a cent."""
    for cents in (0, 1):
        free, paid = lines(5_001_000)
        compared = compare_charge(charge([free, replace(paid, amount_cents=cents)]), 5_001_000, FACTS)
        assert compared is not None and (causes(compared), compared.is_tie, compared.our_cents) == ([], True, cents)
    assert causes(compare_charge(charge([free, replace(paid, amount_cents=2)]), 5_001_000, FACTS)) == ["wrong_price"]


def test_late_reports_explain_exactly_what_is_missing() -> None:
    """Sent after the invoice was final; or shortly before, if it is those that come to the difference."""
    late = explained(6_000_000, [report(6_000_000), report(7, hours=9, accepted=HOUR)])
    assert causes(late) == ["late_after_finalisation"] and late.differences[0].expected_tokens == 7
    close = [report(6_000_000), report(7, hours=9, accepted=-HOUR / 6), report(5, hours=10, accepted=-HOUR / 2)]
    assert causes(explained(6_000_005, close)) == causes(explained(6_000_007, close)) == ["late_after_finalisation"]
    assert causes(explained(6_000_001, close)) == ["unexplained"]


def test_an_hour_that_stripes_meter_lacks_is_missing_and_one_with_too_much_a_duplicate() -> None:
    missing = explained(6_000_000, [report(6_000_000), report(7, hours=9)], {9: 0})
    [one] = missing.differences
    assert (one.cause, one.window_start, one.expected_tokens, one.found_tokens) == (
        "missing_hour",
        START.replace(minute=0) + 9 * HOUR,
        7,
        0,
    )
    assert causes(explained(6_000_021, [report(6_000_000), report(7, hours=9)], {9: 21})) == ["duplicate"]
    both = explained(6_000_025, [report(6_000_000), report(7, hours=9), report(14, hours=11)], {9: 21, 11: 4})
    assert sorted(causes(both)) == ["duplicate", "missing_hour"]


def test_an_hour_across_the_periods_end_may_differ_by_what_lies_beyond_it() -> None:
    """The other period's usage is missing there, not this one's."""
    beyond = int((END - START) / HOUR)
    reports = [report(6_000_000), report(7, hours=9), report(3, hours=beyond)._replace(event_time=END + HOUR / 4)]
    evidence = Evidence(reports, {reports[0].window_start: 6_000_000})
    compared = compare_charge(charge(lines(6_000_000)), 6_000_007, FACTS, evidence)
    assert compared is not None and [one.expected_tokens for one in compared.differences] == [7]


def test_two_items_of_a_customer_on_one_meter_each_bill_all_of_it() -> None:
    compared = explained(6_000_009, [report(6_000_000), report(9, item="si_2")])
    assert causes(compared) == ["duplicate"] and "si_2" in compared.differences[0].details


def test_what_was_cancelled_when_the_invoice_was_final_is_a_duplicate_on_it() -> None:
    assert causes(explained(6_000_007, [report(6_000_000)], cancelled=7)) == ["duplicate"]


def test_usage_whose_answer_was_lost_is_not_called_a_duplicate() -> None:
    """Stripe counts it, and it will be found out."""
    compared = explained(6_000_007, [report(6_000_000), report(7, hours=9, counts=False)], {9: 7})
    assert causes(compared) == ["unexplained"] and "answer was lost" in compared.differences[0].details


def test_what_nothing_comes_to_exactly_stays_unexplained() -> None:
    compared = explained(6_000_001, [report(6_000_000), report(7, hours=9)], {9: 0})
    assert causes(compared) == ["unexplained"]


@pytest.mark.parametrize(
    "edited, cause",
    [
        (replace(BUNDLED, tiers=(Tier(5_000_000), Tier(None, Decimal("0.0006")))), "wrong_price"),
        (replace(BUNDLED, tiers=(Tier(4_000_000), Tier(None, Decimal("0.0005")))), "wrong_tier"),
    ],
)
def test_a_price_that_was_edited_at_stripe_is_told_as_that(edited: Price, cause: str) -> None:
    facts = replace(FACTS, edited={"bundled": edited})
    compared = compare_charge(charge(lines(6_000_000, edited)), 6_000_000, facts)
    assert causes(compared) == [cause] and compared is not None and "was edited at Stripe" in compared.differences[0].details
    # Without having read it anew, the lines themselves tell.
    assert causes(compare_charge(charge(lines(6_000_000, edited)), 6_000_000, FACTS)) == [cause]


def test_one_line_for_all_tiers_will_do_if_its_amount_is_right() -> None:
    """As what answers for Stripe may show it."""
    [one] = [replace(lines(6_000_000)[0], quantity=6_000_000, amount_cents=500)]
    assert causes(compare_charge(charge([one]), 6_000_000, FACTS)) == []
    assert causes(compare_charge(charge([replace(one, amount_cents=501)]), 6_000_000, FACTS)) != []


def test_one_line_for_all_tiers_may_be_rounded_once() -> None:
    """Three tiers of 0.4 cents are nothing each, and 1.2 cents together."""
    tiers = (Tier(1000, Decimal("0.0004")), Tier(2000, Decimal("0.0004")), Tier(None, Decimal("0.0004")))
    facts = replace(FACTS, prices={"bundled": Price("bundled", "usd", PricingMode.GRADUATED, tiers)})
    one = replace(lines(6_000_000)[0], quantity=3000)
    found = {cents: causes(compare_charge(charge([replace(one, amount_cents=cents)]), 3000, facts)) for cents in (0, 1, 2)}
    assert found == {0: [], 1: [], 2: ["wrong_tier"]}


def test_what_differs_in_many_ways_at_once_is_given_up_in_time() -> None:
    """Twelve reports that may be late and twelve hours that differ have sixteen million combinations."""
    late = [report(1000 + 7**n % 997, hours=600 + n, accepted=timedelta(minutes=1)) for n in range(12)]
    lost = [report(5000 + 13 * n, hours=n + 1) for n in range(12)]
    assert causes(explained(999_999_999, [*late, *lost], {n + 1: 0 for n in range(12)})) == ["unexplained"]


def test_a_line_of_another_time_or_price_is_wrong_and_counts_for_its_charge() -> None:
    """Not as a charge of its own, which nothing would explain."""
    free, paid = lines(6_000_000)
    moved = replace(paid, period=BillingPeriod(START + timedelta(days=1), END + timedelta(days=1)))
    assert causes(compare_charge(charge([free, moved]), 6_000_000, FACTS)) == ["wrong_period"]
    assert causes(compare_charge(charge([free, replace(paid, price_id="other")]), 6_000_000, FACTS)) == ["wrong_price"]


def test_a_line_of_no_period_is_about_the_one_that_its_invoice_closes() -> None:
    """However far off it is, and whichever other period it holds more of; also at a price that the item has only afterwards."""
    before, after = BillingPeriod(START - timedelta(days=31), START), BillingPeriod(END, END + timedelta(days=30))
    parts = [PART._replace(period=one, billed_from=one.start, billed_until=one.end) for one in (before, PERIOD)]
    following = PART._replace(price_id="other", period=after, billed_from=after.start, billed_until=after.end)
    for facts in (FACTS, replace(FACTS, parts={"si_1": parts}), replace(FACTS, parts={"si_1": [*parts, following]})):
        for days in (-70, -20, -1, 1, 20, 31, 70):
            moved = BillingPeriod(START + timedelta(days=days), END + timedelta(days=days))
            one = charge(lines(6_000_000, period=moved), facts=facts)
            assert (facts.agreed_price(one), facts.agreed_period(one)) == ("bundled", PERIOD), days


def test_what_is_billed_before_its_period_ends_is_of_the_time_that_the_line_names() -> None:
    """A subscription ended early, soon after its period began or later, and the line may name all of the period: no period that is known
    had ended since the last one."""
    known = replace(FACTS, parts={"si_1": [PART, PART._replace(period=None, billed_from=None, billed_until=None)]})
    for used in (timedelta(minutes=5), timedelta(days=5)):
        cut = replace(INVOICE, created_at=END + used)
        for until in (END + used, END + timedelta(days=30)) if used > HOUR else (END + used,):
            one = charge(lines(6_000_000, period=BillingPeriod(END, until)), cut, known)
            assert known.agreed_period(one) == one.period


def test_a_trial_asks_for_nothing() -> None:
    """And only a trial does."""
    free = [replace(line, amount_cents=0) for line in lines(6_000_000)]
    trial = replace(FACTS, subscriptions={"sub_1": Trial(PERIOD, False)})
    assert causes(compare_charge(charge(free), 6_000_000, trial)) == []
    assert causes(compare_charge(charge(free), 6_000_000, FACTS)) == ["wrong_price"]


def test_a_void_invoice_bills_its_usage_nowhere() -> None:
    """Unless another one does, or collection was paused."""
    void = charge(lines(6_000_000), replace(INVOICE, status="void"))
    assert causes(compare_charge(void, 6_000_000, FACTS)) == ["voided_invoice"]
    assert causes(compare_charge(void, 6_000_000, replace(FACTS, billed_elsewhere={void.stripe_id: "in_2"}))) == []
    assert causes(compare_charge(void, 6_000_000, replace(FACTS, subscriptions={"sub_1": Trial(None, True)}))) == []


def test_what_cannot_be_compared_is_said_and_is_no_difference() -> None:
    before = compare_charge(charge(lines(6_000_000)), 5, replace(FACTS, cut_over=START + HOUR))
    first = compare_charge(charge(lines(0), replace(INVOICE, billing_reason="subscription_create")), 5, FACTS)
    part = compare_charge(charge(lines(3), replace(INVOICE, billing_reason="subscription_threshold")), 5, FACTS)
    rest = charge(lines(3))
    other = compare_charge(rest, 5, replace(FACTS, billed_in_part={rest.stripe_id: "in_2"}, billed_elsewhere={rest.stripe_id: "in_2"}))
    for compared, said in ((before, "cut-over"), (first, "first invoice"), (part, "threshold"), (other, "in_2")):
        assert compared is not None and said in compared.note and causes(compared) == [] and compared.our_tokens is None


def test_items_of_other_products_are_nobodys_business() -> None:
    """An item at a price of ours that no tenant is linked to is told of, if it bills anything."""
    nobody = replace(FACTS, parts={})
    assert causes(compare_charge(charge(lines(6), facts=nobody), 0, nobody)) == ["unlinked_tenant"]
    assert causes(compare_charge(charge(lines(0), facts=nobody), 0, nobody)) == []
    assert compare_charge(charge(lines(6), facts=nobody), 0, replace(nobody, our_prices=frozenset())) is None


def test_a_line_by_hand_is_told_of_unless_a_proposal_made_it() -> None:
    line = InvoiceLine("il_9", LineKind.MANUAL, None, None, 1, None, 250, "usd", PERIOD, "Late usage", "ii_1", 7)
    for facts, expected in (
        (replace(FACTS, proposals={7: (250, "usd")}), []),
        (replace(FACTS, proposals={7: (251, "usd")}), ["manual_line"]),
        (FACTS, ["manual_line"]),
    ):
        assert causes(compare_manual_line(INVOICE, line, facts)) == expected
    assert compare_manual_line(INVOICE, replace(line, kind=LineKind.PRORATION), FACTS) is None
    assert compare_manual_line(replace(INVOICE, customer_id="cus_of_others"), line, FACTS) is None


def test_pieces_are_valued_so_that_they_add_up() -> None:
    """Tokens late and missing above the free tier: together they are worth what the invoice lacks."""
    compared = explained(4_000_000, [report(4_000_000), report(2_000_000, hours=9), report(1_000_000, hours=11, accepted=HOUR)], {9: 0})
    worth = [(one.cause, one.expected_cents) for one in compared.differences]
    assert sum(cents or 0 for _, cents in worth) == compared.our_cents == 1_000 and len(worth) == 2
