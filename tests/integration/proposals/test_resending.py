"""A report that Stripe's meter proved to lack is sent anew on approval, if it is lacking still; it counts once."""

from datetime import timedelta

import pytest

from crash.kill_points import run_in_child
from office import Office
from token_billing.adapters import discrepancies
from token_billing.errors import ProposalRefused
from token_billing.proposals import Decision, Kind
from token_billing.reconciliation import Cause, Difference
from token_billing.windows import Window


@pytest.fixture
def absent(office: Office) -> Office:
    """Stripe took an hour's five tokens of tenant a and never counted them; the comparison has found so for more than a day."""
    world = office.world
    window = Window(world.window.end)
    office.bill(window, 5, window.end + timedelta(minutes=5))
    [(report_id, identifier)] = world.sql("SELECT id, identifier FROM billing.usage_report WHERE window_start = %s", window.start)
    world.simulator.disown([identifier])
    world.set_time(world.clock() + timedelta(hours=30))
    world.sql(
        "INSERT INTO billing.meter_difference "
        "SELECT customer_id, meter_id, window_start, 5, 0, %s, %s FROM billing.usage_report WHERE id = %s",
        window.end + timedelta(hours=1),
        world.clock(),
        report_id,
    )
    with world.connect() as db:
        found = Difference(Cause.MISSING_AT_STRIPE, "a", "missing", "a", report_id=report_id, expected_tokens=5, found_tokens=0)
        discrepancies.note_differences(db, ["a"], [found], world.clock())
    return office


def test_a_report_that_is_proven_absent_is_sent_anew_on_approval(absent: Office) -> None:
    """Its rows are given back, it goes out under another identifier, and the books agree again."""
    world = absent.world
    [proposal] = absent.proposed(Kind.RESEND)
    assert (proposal.what.tenant_id, proposal.what.token_count) == ("a", 5)
    absent.decide(Decision.RESEND)
    assert (absent.apply(), absent.apply()) == (1, 0)
    assert absent.proposed() == []
    world.bill()
    assert world.at_stripe() == world.marked() == {"a": 6_000_005}
    assert world.sql("SELECT cause, revoked_by FROM billing.revocation") == [("settled_summary", "ann")]
    assert absent.audited() == [("decide", "proposal 1", "ann"), ("apply", "proposal 1", "ann")]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE billing.meter_difference SET first_seen_at = last_seen_at - interval '23 hours'",
        "UPDATE billing.meter_difference SET our_token_count = 6, stripe_token_count = 2",
        "UPDATE billing.usage_report SET confirmed_at = now()",
        "UPDATE billing.discrepancy SET resolved_at = now()",
        "UPDATE billing.ledger SET epoch = 2, recovered_at = now()",
    ],
)
def test_what_is_not_proven_absent_is_not_proposed(absent: Office, change: str) -> None:
    """Not for long enough, not all of it, seen since, settled, or perhaps sent by a time that this database has forgotten."""
    absent.world.sql(change)
    assert absent.proposed() == []


def test_a_report_that_shows_up_meanwhile_is_not_sent_anew(absent: Office) -> None:
    """Its minute is read again right before; the decision comes to nothing, and a person declines it."""
    world = absent.world
    absent.decide(Decision.RESEND)
    [(event_name, identifier, at)] = world.sql("SELECT event_name, identifier, event_time FROM billing.usage_report WHERE token_count = 5")
    payload = {"stripe_customer_id": absent.customer(), "value": "5"}
    event = {"event_name": event_name, "payload": payload, "timestamp": int(at.timestamp()), "identifier": f"{identifier} at last"}
    absent.client.billing.meter_events.create(event)
    with pytest.raises(ProposalRefused, match="holds 5"):
        absent.apply()
    assert absent.apply() == 0
    assert world.marked() == {"a": 6_000_005} and world.sql("SELECT count(*) FROM billing.revocation") == [(0,)]
    assert absent.decide(Decision.DECLINED, number=1).decision == Decision.DECLINED


def test_a_resend_killed_after_the_revocation_is_noted_by_the_next_run(absent: Office) -> None:
    """Nothing is revoked a second time, though the report is being sent by then."""
    absent.decide(Decision.RESEND)
    passed = run_in_child(lambda: absent.apply(), "before note_applied #1")
    assert passed is None
    absent.lease_is_over()
    absent.world.bill()
    assert absent.apply() == 1
    assert absent.world.sql("SELECT count(*) FROM billing.revocation") == [(1,)]
    assert absent.world.at_stripe() == {"a": 6_000_005}
