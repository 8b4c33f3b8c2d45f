"""Usage that came too late for its invoice: proposed with its amount, decided by a person, and billed once."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from meters import Meters
from office import AFTER, BEGUN, LAST, LATE_TOKENS, PERIOD_END, Office
from token_billing.adapters import discrepancies
from token_billing.errors import BillingError, NotRevocable, ProposalRefused, ReleaseRefused
from token_billing.model import Disowned, RevocationCause
from token_billing.proposals import Decision, Kind
from token_billing.reconciliation import Cause, Difference
from token_billing.stages.check_conservation import check_conservation
from token_billing.stages.quarantined import quarantined_usage
from token_billing.stages.read_invoices import read_invoices
from token_billing.stages.reconcile_invoices import compare_invoices
from token_billing.stages.release import acknowledge, release
from token_billing.stages.revoke import revoke
from token_billing.windows import HOUR, Window


def told(office: Office) -> list[tuple[Any, ...]]:
    return [
        (one.what.kind, one.what.tenant_id, one.what.token_count, one.what.amount_cents, one.what.currency) for one in office.proposed()
    ]


def invoices(office: Office) -> list[Any]:
    """The tenant's, newest first."""
    return list(office.client.invoices.list({"customer": office.customer()}).data)


def test_late_usage_is_proposed_with_what_it_would_have_added(late: Office) -> None:
    """Once, however often somebody looks; a million tokens above the free ones are $0.000005 each."""
    assert told(late) == told(late) == [(Kind.LATE_USAGE, "a", LATE_TOKENS, 500, "usd")]
    assert late.world.sql("SELECT count(*), max(decision) FROM billing.proposal") == [(1, None)]
    assert late.items() == [] and late.apply() == 0


def test_approved_late_usage_is_on_the_next_invoice(late: Office) -> None:
    """At the amount that was proposed, under the proposal's number; its reports stay aside, and who decided is kept."""
    [proposal] = late.proposed()
    assert late.decide(Decision.INVOICE_ITEM).applied_at is None
    assert late.apply() == 1 and late.apply() == 0
    assert late.items() == [(500, "usd", str(proposal.id))]
    assert late.proposed() == []
    assert late.audited() == [("decide", "proposal 1", "ann"), ("apply", "proposal 1", "ann")]
    assert late.world.states() == {"a": "quarantined"}
    assert late.world.sql("SELECT count(*), min(acknowledged_by) FROM billing.acknowledgement WHERE proposal_id = 1") == [(2, "ann")]
    assert check_conservation(late.world.connect, LAST)["quarantined"] == LATE_TOKENS - 10
    late.world.set_time(PERIOD_END + timedelta(days=32))
    read_invoices(late.world.connect, late.world.target, late.world.clock)
    compare_invoices(late.world.connect, late.world.target, late.world.clock, {})
    with late.world.connect() as db:
        assert discrepancies.open_discrepancies(db) == []
    assert [(one.usage.token_count, one.usage.standing) for one in quarantined_usage(late.world.connect)] == [(LATE_TOKENS, "proposal 1")]
    assert late.world.sql(
        "SELECT kind, amount_cents, proposal_id, period_start, period_end FROM billing.invoice_line WHERE kind = 'manual'"
    ) == [("manual", 500, proposal.id, BEGUN, PERIOD_END)]


def test_what_its_invoice_billed_counts_and_not_what_our_books_say(late: Office) -> None:
    """Once the invoice is read; somebody else's events filled the free tokens and more."""
    late.world.sql(
        "INSERT INTO billing.invoice (invoice_id, customer_id, status, currency, created_at, total_cents, read_at) "
        "SELECT invoice_id, 'cus', 'paid', 'usd', seen_at, 0, seen_at FROM billing.invoiced_period"
    )
    late.world.sql(
        "INSERT INTO billing.invoice_line (line_id, invoice_id, position, kind, usage_item_id, price_id, quantity, amount_cents, currency, "
        "period_start, period_end) SELECT 'il', invoice_id, 0, 'usage', usage_item_id, 'price', 4500000, 0, 'usd', period_start, "
        "period_end FROM billing.invoiced_period"
    )
    assert told(late) == [(Kind.LATE_USAGE, "a", LATE_TOKENS, 250, "usd")]


def test_usage_within_the_free_tokens_asks_stripe_for_nothing(office: Office) -> None:
    """It is done at once; and what comes later still finds those free tokens used."""
    office.world.link("b")
    start = Window(office.world.window.start + 2 * HOUR)
    office.bill(start, 4_500_000, start.end + timedelta(minutes=5), tenant="b")
    after = AFTER + timedelta(hours=3)
    office.bill(LAST, 400_000, after, tenant="b")
    assert [(one.what.amount_cents, one.what.token_count) for one in office.proposed()] == [(0, 400_000)]
    assert office.decide(Decision.INVOICE_ITEM).applied_at is not None
    assert office.apply() == 0
    office.bill(Window(LAST.start - HOUR), 400_000, after, tenant="b")
    assert [(one.what.amount_cents, one.what.token_count) for one in office.proposed()] == [(150, 400_000)]


def test_a_write_off_asks_stripe_for_nothing_and_is_proposed_no_more(late: Office) -> None:
    """It is done when it is decided."""
    late.decide(Decision.WRITE_OFF)
    assert late.apply() == 0 and late.items() == [] and late.proposed() == []
    assert late.audited() == [("decide", "proposal 1", "ann"), ("apply", "proposal 1", "ann")]


def test_what_was_declined_comes_back_with_other_figures_only(late: Office) -> None:
    """All of it then, for none of it was settled."""
    late.decide(Decision.DECLINED)
    assert late.proposed() == []
    late.bill(Window(LAST.start - 2 * HOUR), 200_000, AFTER)
    assert told(late) == [(Kind.LATE_USAGE, "a", LATE_TOKENS + 200_000, 600, "usd")]


def test_a_decision_is_about_the_figures_that_were_seen(late: Office) -> None:
    """More usage came meanwhile: the old proposal is withdrawn, and the new one is another question."""
    [seen] = late.proposed()
    late.bill(Window(LAST.start - 2 * HOUR), 200_000, AFTER)
    with pytest.raises(ProposalRefused, match="withdrawn"):
        late.decide(Decision.INVOICE_ITEM, number=seen.id)
    late.decide(Decision.INVOICE_ITEM)
    late.apply()
    assert [amount for amount, *_ in late.items()] == [600]


def test_of_several_who_decide_at_once_one_does(late: Office) -> None:
    """In the UI and by command, otherwise and alike: what is applied is what was decided first."""
    [proposal] = late.proposed()
    choices = [Decision.INVOICE_ITEM, Decision.WRITE_OFF, Decision.DECLINED] * 2

    def one(n: int) -> Decision | None:
        try:
            return late.decide(choices[n], by=f"person {n}", number=proposal.id).decision
        except ProposalRefused:
            return None

    with ThreadPoolExecutor(6) as people:
        decided = [choice for choice in people.map(one, range(6)) if choice]
    assert len(decided) == 1
    late.apply()
    assert len(late.items()) == (decided == [Decision.INVOICE_ITEM])
    assert [action for action, *_ in late.audited()].count("decide") == 1


@pytest.mark.parametrize("first", [Decision.INVOICE_ITEM, Decision.WRITE_OFF, Decision.DECLINED])
def test_a_decision_stands(late: Office, first: Decision) -> None:
    """Told again by the same person, by a task that is tried again, it changes nothing; nobody else changes it."""
    late.decide(first)
    late.apply()
    late.decide(first, number=1)
    with pytest.raises(ProposalRefused, match="a decision stands"):
        late.decide(Decision.WRITE_OFF, by="bob", number=1)
    assert [action for action, *_ in late.audited()].count("decide") == 1


def test_what_cannot_be_decided_is_refused(late: Office) -> None:
    """Nothing changes."""
    late.proposed()
    for decision, number, match in ((Decision.CREDIT_NOTE, 1, "it takes"), (Decision.WRITE_OFF, 77, "no proposal 77")):
        with pytest.raises(ProposalRefused, match=match):
            late.decide(decision, number=number)
    with pytest.raises(ProposalRefused, match="who decides"):
        late.decide(Decision.WRITE_OFF, by=" ")
    assert late.audited() == []


@pytest.mark.parametrize("decision", [Decision.INVOICE_ITEM, Decision.WRITE_OFF])
def test_what_a_proposal_settled_is_neither_released_nor_acknowledged(late: Office, decision: Decision) -> None:
    """It would be billed twice; also while its invoice item is yet to be made."""
    late.decide(decision)
    late.world.sql("DELETE FROM billing.invoiced_period")  # as if the period could still be billed
    with pytest.raises(ReleaseRefused, match="proposal 1 has billed it otherwise"):
        release(late.world.connect, [2], by="bob", reason="now", clock=late.world.clock)
    with pytest.raises(ReleaseRefused, match="settled by proposal 1"):
        acknowledge(late.world.connect, [2], by="bob", reason="now", clock=late.world.clock)
    assert late.proposed() == []


def find(office: Office, cause: Cause, expected: tuple[int, int], found: tuple[int, int], tokens_on_invoice: int) -> str:
    """What a comparison of the ended period's invoice would say of its first usage line; returns the invoice."""
    read_invoices(office.world.connect, office.world.target, office.world.clock)
    usage = "FROM billing.invoice_line WHERE kind = 'usage' GROUP BY 1 HAVING sum(quantity) = %s"
    [(invoice_id, line_id)] = office.world.sql(f"SELECT invoice_id, min(line_id) {usage}", tokens_on_invoice)
    figures = {"expected_tokens": expected[0], "found_tokens": found[0], "expected_cents": expected[1], "found_cents": found[1]}
    one = Difference(cause, invoice_id, "found", "a", line_id, currency="usd", **figures)
    with office.world.connect() as db:
        discrepancies.note_differences(db, [invoice_id], [one], office.world.clock())
    return str(invoice_id)


def test_usage_that_stripe_took_after_the_final_invoice_is_proposed_too(late: Office) -> None:
    """On top of what the invoice billed, and of what is aside; the finding is settled, and what is found later is the rest alone."""
    find(late, Cause.LATE_AFTER_FINALISATION, (300_000, 150), (0, 0), 6_000_000)
    assert sorted((one.what.token_count, one.what.amount_cents) for one in late.proposed()) == [(300_000, 150), (LATE_TOKENS, 500)]
    for proposal in late.proposed():
        late.decide(Decision.INVOICE_ITEM, number=proposal.id)
    assert late.apply() == 2
    assert sorted(amount for amount, *_ in late.items()) == [150, 500]
    with late.world.connect() as db:
        assert discrepancies.open_discrepancies(db) == []
    find(late, Cause.LATE_AFTER_FINALISATION, (500_000, 250), (0, 0), 6_000_000)
    assert [(one.what.token_count, one.what.amount_cents) for one in late.proposed()] == [(200_000, 100)]


@pytest.mark.parametrize("decision", [Decision.INVOICE_ITEM, Decision.WRITE_OFF, Decision.DECLINED])
def test_what_stripe_lost_of_an_hour_is_settled_with_what_its_invoice_lacks(office: Office, decision: Decision) -> None:
    """The meter's loss and the invoice's are one: billed otherwise, no comparison tells of it again. Another hour's loss stays."""
    meters = Meters(office.world)
    office.bill(next_hour := Window(office.world.window.end), 7, next_hour.end + timedelta(minutes=5))
    lost = [identifier for (identifier,) in office.world.sql("SELECT identifier FROM billing.usage_report ORDER BY window_start")]
    for identifier in lost:
        office.world.simulator.lose_event(identifier)
    meters.conclude()
    assert meters.found() == [("missing_at_stripe", "a", 6_000_000, 0), ("missing_at_stripe", "a", 7, 0)]
    office.world.set_time(AFTER)

    def compare() -> None:
        meters.compare()
        read_invoices(office.world.connect, office.world.target, office.world.clock)
        compare_invoices(office.world.connect, office.world.target, office.world.clock, {})

    compare()
    late = next(one for one in office.proposed(Kind.LATE_USAGE) if one.what.token_count == 6_000_000)
    office.decide(decision, number=late.id)
    office.apply()
    office.world.set_time(AFTER + timedelta(days=1))
    compare()
    found = [("missing_at_stripe", "a", 7, 0), ("missing_hour", "a", 7, 0)]
    if decision == Decision.DECLINED:
        found += [("missing_at_stripe", "a", 6_000_000, 0), ("missing_hour", "a", 6_000_000, 0)]
    assert sorted(meters.found()) == sorted(found)


def test_an_overbilled_invoice_is_credited(office: Office) -> None:
    """Somebody else's events were on it: half a million tokens, $2.50; a credit note gives them back, once."""
    [(event_name,)] = office.world.sql("SELECT event_name FROM billing.meter")
    payload = {"stripe_customer_id": office.customer(), "value": "500000"}
    event = {"event_name": event_name, "payload": payload, "timestamp": int(office.world.clock().timestamp())}
    office.client.billing.meter_events.create(event)
    office.world.set_time(AFTER)
    invoice_id = find(office, Cause.DUPLICATE, (0, 0), (500_000, 250), 6_500_000)
    [proposal] = office.proposed(Kind.OVERBILLED)
    assert (proposal.what.token_count, proposal.what.amount_cents) == (500_000, 250)
    office.decide(Decision.CREDIT_NOTE)
    assert (office.apply(), office.apply()) == (1, 0)
    [note] = office.client.credit_notes.list({"invoice": invoice_id}).data
    assert (note.amount, note.metadata["proposal"]) == (250, str(proposal.id))
    assert office.proposed() == []
    for tokens, cents, rest in ((500_000, 200, []), (600_000, 310, [(100_000, 60)])):  # the finding comes back with other figures
        find(office, Cause.DUPLICATE, (0, 0), (tokens, cents), 6_500_000)
        assert [(one.what.token_count, one.what.amount_cents) for one in office.proposed()] == rest


@pytest.mark.parametrize("decision", [Decision.INVOICE_ITEM, Decision.WRITE_OFF, Decision.DECLINED])
def test_what_was_billed_otherwise_is_not_taken_back(office: Office, decision: Decision) -> None:
    """Sent anew into its final period, it would be quarantined, and carried forward a second time."""
    office.world.set_time(AFTER)
    find(office, Cause.MISSING_HOUR, (6_000_000, 500), (0, 0), 6_000_000)
    office.decide(decision)
    office.apply()
    disowned = Disowned(1, RevocationCause.SETTLED_SUMMARY, "its minute lacks it", None)
    if decision == Decision.DECLINED:
        revoke(office.world.connect, disowned, office.world.clock, revoked_by="bob")
        return
    with pytest.raises(NotRevocable, match="proposal 1 has billed"):
        revoke(office.world.connect, disowned, office.world.clock, revoked_by="bob")
    assert office.world.sql("SELECT state FROM billing.usage_report") == [("billed",)]


def test_what_was_carried_forward_is_not_billed_again_when_the_invoice_is_voided(office: Office) -> None:
    """The voided invoice lacks it as well; what is left is worth what it was worth on that invoice."""
    office.world.set_time(AFTER)
    find(office, Cause.LATE_AFTER_FINALISATION, (300_000, 150), (0, 0), 6_000_000)
    office.decide(Decision.INVOICE_ITEM)
    assert office.apply() == 1
    invoice_id = find(office, Cause.VOIDED_INVOICE, (6_300_000, 650), (0, 0), 6_000_000)
    office.world.sql("UPDATE billing.invoice SET status = 'void' WHERE invoice_id = %s", invoice_id)
    assert [(one.what.token_count, one.what.amount_cents) for one in office.proposed()] == [(6_000_000, 500)]


def test_a_pause_keeps_decisions_from_being_carried_out(late: Office) -> None:
    """They are kept, and carried out after it."""
    late.decide(Decision.INVOICE_ITEM)
    late.world.sql("INSERT INTO billing.pause (paused_by, paused_at, reason) VALUES ('ops', now(), 'why')")
    with pytest.raises(BillingError, match="paused"):
        late.apply()
    assert late.items() == []
    late.world.sql("UPDATE billing.pause SET resumed_by = 'ops', resumed_at = now()")
    assert late.apply() == 1
