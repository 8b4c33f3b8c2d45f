"""A report that is taken back beside proposals about its period: its usage is billed once, and nobody is left without a way."""

from contextlib import suppress

import pytest

from meters import Meters
from office import AFTER, BEGUN, LAST, Office
from token_billing.errors import BillingError, ProposalRefused, ReleaseRefused
from token_billing.model import Disowned, RevocationCause
from token_billing.proposals import Decision, Kind
from token_billing.stages.read_invoices import read_invoices
from token_billing.stages.reconcile_invoices import compare_invoices
from token_billing.stages.release import release
from token_billing.stages.revoke import revoke
from token_billing.windows import Window

FIRST = Window(BEGUN.replace(hour=13, minute=0))


def compare(office: Office) -> None:
    Meters(office.world).compare()
    read_invoices(office.world.connect, office.world.target, office.world.clock)
    compare_invoices(office.world.connect, office.world.target, office.world.clock, {})


def take_back(office: Office) -> None:
    """As the runbook says under "Disowned reports"; the next push finds its period's invoice final."""
    disowned = Disowned(1, RevocationCause.SETTLED_SUMMARY, "its minute lacks it", None)
    revoke(office.world.connect, disowned, office.world.clock, revoked_by="bob")


def push_again(office: Office) -> None:
    office.world.window = FIRST
    office.world.bill()


@pytest.fixture
def lost(office: Office) -> Office:
    """Stripe's meter lost the month's six million tokens, and the month's final invoice lacks them."""
    [(identifier,)] = office.world.sql("SELECT identifier FROM billing.usage_report")
    office.world.simulator.lose_event(identifier)
    Meters(office.world).conclude()
    office.world.set_time(AFTER)
    compare(office)
    return office


def test_what_a_final_invoice_lacks_is_not_proposed_to_be_sent_anew(lost: Office) -> None:
    """Sent anew, it would be on no invoice either."""
    assert [one.what.kind for one in lost.proposed()] == [Kind.LATE_USAGE]


@pytest.mark.parametrize("decided_before_the_push", [False, True])
def test_usage_that_was_taken_back_is_carried_forward_once(lost: Office, decided_before_the_push: bool) -> None:
    """What the comparison found before it was taken back stands no more: the report itself is what is proposed."""
    take_back(lost)
    if decided_before_the_push:
        assert lost.proposed() == []
    push_again(lost)
    compare(lost)
    [proposal] = lost.proposed()
    assert proposal.what.subject.startswith("aside") and proposal.what.token_count == 6_000_000
    lost.decide(Decision.INVOICE_ITEM)
    assert lost.apply() == 1
    compare(lost)
    assert lost.proposed() == [] and lost.items() == [(500, "usd", str(proposal.id))]


def resend_decided(office: Office) -> int:
    """Somebody decided to send the report anew before its invoice was final, and nothing could be carried out."""
    [(identifier,)] = office.world.sql("SELECT identifier FROM billing.usage_report")
    office.world.simulator.lose_event(identifier)
    meters = Meters(office.world)
    meters.conclude()
    meters.at(40)
    meters.compare()
    [resend] = office.proposed(Kind.RESEND)
    office.decide(Decision.RESEND, number=resend.id)
    return resend.id


def test_a_resend_is_not_carried_out_into_a_final_period(office: Office) -> None:
    """It is refused, so that a person can decline it, and what its invoice lacks is proposed."""
    number = resend_decided(office)
    office.world.set_time(AFTER)
    compare(office)
    with pytest.raises(ProposalRefused, match="is final by now"):
        office.apply()
    assert office.apply() == 0
    assert office.decide(Decision.DECLINED, number=number).decision == Decision.DECLINED
    assert [one.what.kind for one in office.proposed()] == [Kind.LATE_USAGE]


def test_a_resend_of_what_was_billed_otherwise_is_refused(office: Office) -> None:
    """And no run repeats it."""
    number = resend_decided(office)
    office.world.set_time(AFTER)
    compare(office)
    [late] = office.proposed(Kind.LATE_USAGE)
    office.decide(Decision.WRITE_OFF, number=late.id)
    office.world.sql("DELETE FROM billing.invoiced_period")
    office.world.sql("DELETE FROM billing.invoice_line")  # nobody knows of the final invoice any more
    with pytest.raises(ProposalRefused, match=f"proposal {late.id} has billed"):
        office.apply()
    assert office.apply() == 0
    assert office.decide(Decision.DECLINED, number=number).decision == Decision.DECLINED


def test_usage_that_an_error_event_disowned_is_proposed_once_its_invoice_is_final(office: Office) -> None:
    """A person speaks first as long as it can be sent; then nothing but an invoice item is left."""
    [(identifier,)] = office.world.sql("SELECT identifier FROM billing.usage_report WHERE id = 1")
    office.world.simulator.lose_event(identifier)
    disowned = Disowned(1, RevocationCause.ERROR_REPORT, "x", identifier)
    revoke(office.world.connect, disowned, office.world.clock, revoked_by="sync", resend=False)
    assert office.proposed() == []
    office.bill(LAST, 10, AFTER)
    with pytest.raises(ReleaseRefused, match="`python -m billing_airflow proposals` shows"):
        release(office.world.connect, [1], by="ann", reason="mended", clock=office.world.clock)
    assert sorted(one.what.token_count for one in office.proposed()) == [6_000_010]
    office.decide(Decision.INVOICE_ITEM)
    with suppress(BillingError):
        office.apply()
    assert [amount for amount, *_ in office.items()] == [500]
