"""What proposals come to, what may be decided about them, and how what they made is known again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from token_billing.periods import BillingPeriod
from token_billing.proposals import (
    Candidate,
    Decision,
    Kind,
    LateUsage,
    Made,
    Proposal,
    credit_note,
    forgotten,
    idempotency_key,
    invoice_item,
    late_usage,
    metadata,
    overbilled,
    recognised,
)
from token_billing.rating import Price, PricingMode, Tier

START = datetime(2026, 1, 1, tzinfo=UTC)
PERIOD = BillingPeriod(START, START + timedelta(days=31))
#: Five million tokens are free, the others are $0.000005 each.
BUNDLED = Price("bundled", "usd", PricingMode.GRADUATED, (Tier(5_000_000), Tier(None, Decimal("0.0005"))))


def usage(tenant: str, tokens: int, item: str = "si", period: BillingPeriod = PERIOD) -> Candidate:
    about = {"tenant_id": tenant, "customer_id": "cus", "usage_item_id": item, "period": period}
    return Candidate(Kind.LATE_USAGE, f"aside {item} {tenant}", tokens, "e", **about)  # type: ignore[arg-type]


def test_late_usage_of_one_bill_is_worth_together_what_all_of_it_adds() -> None:
    """Two tenants share a customer: the first one's usage takes the free tokens that were left, the other one's finds them used."""
    found = [LateUsage(usage(tenant, 600_000), 4_400_000, BUNDLED) for tenant in ("b", "a")]
    assert [(one.tenant_id, one.amount_cents) for one in late_usage(found)] == [("a", 0), ("b", 300)]
    assert [one.amount_cents for one in late_usage([LateUsage(usage("a", 1_200_000), 4_400_000, BUNDLED)])] == [300]


def test_another_item_or_period_is_another_bill() -> None:
    """Each has free tokens of its own."""
    later = BillingPeriod(PERIOD.end, PERIOD.end + timedelta(days=28))
    found = [usage("a", 600_000), usage("a", 600_000, item="other"), usage("a", 600_000, period=later)]
    assert [one.amount_cents for one in late_usage(LateUsage(one, 4_400_000, BUNDLED) for one in found)] == [0, 0, 0]


def test_usage_whose_price_is_not_known_can_be_written_off_only() -> None:
    """Nobody knows what to bill."""
    [one] = late_usage([LateUsage(usage("a", 5), 0, None)])
    assert one.amount_cents is None and one.choices == (Decision.WRITE_OFF, Decision.DECLINED)
    [priced] = late_usage([LateUsage(usage("a", 5), 0, BUNDLED)])
    assert priced.choices[0] == Decision.INVOICE_ITEM


@pytest.mark.parametrize(
    ("expected", "found", "cents"),
    [((6_000_000, 500), (6_500_000, 750), 250), ((6_000_000, None), (6_500_000, None), 250), ((None, 500), (None, 800), 300)],
)
def test_what_was_billed_too_much_is_worth_the_difference(
    expected: tuple[int | None, int | None], found: tuple[int | None, int | None], cents: int
) -> None:
    """In cents where both are known, else by the price; less than nothing is no reason for a credit note."""
    candidate = Candidate(Kind.OVERBILLED, "s", 0, "e", invoice_id="in")
    one = overbilled(candidate, expected, found, BUNDLED, "usd")
    assert one is not None and (one.amount_cents, one.currency) == (cents, "usd") and one.choices[0] == Decision.CREDIT_NOTE
    assert overbilled(candidate, found, expected, BUNDLED, "usd") is None
    assert overbilled(candidate, (None, None), (*found[:1], None), None, "usd") is None


@pytest.fixture
def proposal() -> Proposal:
    what = replace(usage("a", 600_000), amount_cents=300, currency="usd", invoice_id="in_1")
    return Proposal(7, what, START, Decision.INVOICE_ITEM, "ann", START)


def test_what_a_proposal_made_is_known_by_its_metadata(proposal: Proposal) -> None:
    """Not by a number alone, which a restored database gives to another one."""
    said = metadata(proposal, "ledger")
    mine = Made("ii_1", said["proposal"], said["subject"])
    assert recognised(proposal, [Made("ii_0", "6", said["subject"]), mine]) == "ii_1"
    assert recognised(proposal, [Made("ii_2", "7", "something else")]) is None
    assert forgotten(proposal, [Made("ii_0", "6", said["subject"])]) == "ii_0"
    assert forgotten(proposal, [Made("ii_2", "7", "something else")]) is None


def test_the_key_is_the_same_until_stripe_has_refused_it(proposal: Proposal) -> None:
    """And another one for another decision, or a proposal of that number in another copy of the ledger."""
    key = idempotency_key(proposal, "ledger")
    assert idempotency_key(replace(proposal, attempt_count=3, attempted_at=START), "ledger") == key
    others = [replace(proposal, key_number=1), replace(proposal, decision=Decision.CREDIT_NOTE), replace(proposal, proposed_at=PERIOD.end)]
    assert len({key, *(idempotency_key(one, "ledger") for one in others)}) == 4


def test_requests_name_amount_tenant_period_and_proposal(proposal: Proposal) -> None:
    """On the subscription's next invoice where it has one; of a paid invoice to the customer's balance."""
    item = invoice_item(proposal, "ledger", "sub")
    assert (item["amount"], item["currency"], item["subscription"], item["customer"]) == (300, "usd", "sub", "cus")
    assert "600,000 tokens of 2026-01-01 to 2026-02-01" in item["description"] and "Usage of a" in item["description"]
    assert (item["metadata"]["ledger"], item["metadata"]["proposal"]) == ("ledger", "7")
    assert "subscription" not in invoice_item(proposal, "ledger", None)
    assert credit_note(proposal, "ledger", is_paid=True)["credit_amount"] == 300
    assert "credit_amount" not in credit_note(proposal, "ledger", is_paid=False)
