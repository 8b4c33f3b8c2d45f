"""What Stripe disowned, told to a database that was restored since: it need not know under which identifier Stripe counts a report."""

from contextlib import suppress
from datetime import timedelta

import pytest

from restored_worlds import bill_for_days, recover_by_command, restore
from sandbox.postgres import PostgresServer
from token_billing.errors import BillingError, NotRevocable
from token_billing.model import Disowned, RevocationCause
from token_billing.stages.recover import recover
from token_billing.stages.revoke import revoke
from world import World

EVIDENCE = "meter_event_customer_not_found: No such customer"


def identifier_of(world: World) -> str:
    ((identifier,),) = world.sql("SELECT identifier FROM billing.usage_report")
    return str(identifier)


def revoke_on(world: World, identifier: str | None, cause: RevocationCause = RevocationCause.ERROR_REPORT, *, resend: bool = True) -> None:
    ((report_id,),) = world.sql("SELECT id FROM billing.usage_report")
    revoke(world.connect, Disowned(report_id, cause, EVIDENCE, identifier), world.clock, revoked_by="ann", resend=resend)


def push_unanswered(world: World) -> str:
    """The event arrives, the answer does not; Stripe disowns the event at once. Returns its identifier."""
    world.simulator.script_faults(["error_after_effect"] * 5)
    with suppress(BillingError):
        world.push()
    world.simulator.script_faults([])
    world.simulator.disown([identifier_of(world)])
    return identifier_of(world)


def counted(world: World) -> int:
    return world.at_stripe()["a"]


@pytest.fixture
def found(world: World, elsewhere: PostgresServer) -> tuple[World, str]:
    """A restored database that found its report in its hour: what Stripe counts is the event that the lost time sent under the next
    identifier, because the one that this copy knows, which is returned, had been disowned."""
    disowned = push_unanswered(world)
    restored = restore(world, elsewhere)
    world.set_time(world.clock() + timedelta(hours=21))
    bill_for_days(world)
    assert (world.states(), counted(world)) == ({"a": "billed"}, 5)
    restored.set_time(world.clock())
    recover_by_command(restored)
    bill_for_days(restored, 0.5)
    assert restored.states() == {"a": "billed"}
    assert identifier_of(world) != identifier_of(restored) == disowned
    return restored, disowned


@pytest.mark.parametrize("resend", [True, False])
def test_what_was_found_in_its_hour_is_not_disowned_by_news_of_an_identifier(found: tuple[World, str], resend: bool) -> None:
    restored, disowned = found
    with pytest.raises(
        NotRevocable, match=r"under another identifier.*summary.*lacks the report's 5 tokens.*--missing-in-summary.*Nothing was changed"
    ):
        revoke_on(restored, disowned, resend=resend)
    bill_for_days(restored)
    assert (restored.marked(), counted(restored)) == ({"a": 5}, 5)
    assert restored.sql("SELECT * FROM billing.revocation") == []


def test_what_a_settled_summary_lacks_after_a_restore_is_sent_anew(found: tuple[World, str]) -> None:
    """Whatever the identifier was under which it counted, it does no more."""
    restored, _ = found
    restored.simulator.disown([event["identifier"] for event in restored.simulator.meter_events()])
    revoke_on(restored, None, RevocationCause.SETTLED_SUMMARY)
    assert restored.marked() == {}
    bill_for_days(restored)
    assert (restored.marked(), counted(restored)) == ({"a": 5}, 5)


def test_what_the_lost_time_revoked_and_sent_anew_is_not_revoked_by_the_copy(world: World, elsewhere: PostgresServer) -> None:
    """The copy knows the identifier under which it was accepted, and not that it was given up since."""
    world.bill()
    restored, disowned = restore(world, elsewhere), identifier_of(world)
    world.simulator.disown([disowned])
    revoke_on(world, disowned)
    world.bill()
    restored.set_time(restored.clock() + timedelta(hours=30))
    recover_by_command(restored)
    with pytest.raises(NotRevocable, match="under another identifier"):
        revoke_on(restored, disowned)
    bill_for_days(restored)
    assert (restored.marked(), counted(restored)) == ({"a": 5}, 5)


def test_a_wrong_clock_during_the_recovery_does_not_make_such_news_proof(world: World, elsewhere: PostgresServer) -> None:
    """A clock that is behind takes the hour of a report for one that has not ended, of which the lost time sent nothing."""
    disowned = push_unanswered(world)
    restored = restore(world, elsewhere)
    world.set_time(world.clock() + timedelta(hours=21))
    bill_for_days(world)
    recover(restored.connect, restored.keeper, lambda: world.window.end - timedelta(minutes=1), recovered_by="ops")
    restored.set_time(world.clock())
    bill_for_days(restored, 0.5)
    with pytest.raises(NotRevocable, match="under another identifier"):
        revoke_on(restored, disowned)
    bill_for_days(restored)
    assert (restored.marked(), counted(restored)) == ({"a": 5}, 5)
