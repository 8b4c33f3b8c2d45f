"""A quarantined report is sent once its cause is gone and somebody has said so; never twice, and never unseen."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import psycopg
import pytest

from crash.places import places
from office import AFTER, LAST, Office
from token_billing.adapters import releases
from token_billing.errors import BillingError, ProposalRefused, ReleaseRefused
from token_billing.model import Disowned, RevocationCause
from token_billing.proposals import Decision, Kind
from token_billing.stages.check_conservation import check_conservation
from token_billing.stages.late_usage import late_windows
from token_billing.stages.release import acknowledge, audit_trail, release
from token_billing.stages.revoke import revoke
from token_billing.windows import HOUR, Window
from world import World


def report_of(world: World, tenant: str) -> int:
    [(report_id,)] = world.sql("SELECT id FROM billing.usage_report WHERE tenant_id = %s", tenant)
    return int(report_id)


def let_go(world: World, tenant: str) -> None:
    release(world.connect, [report_of(world, tenant)], by="ann", reason="mended", clock=world.clock)


def mend(world: World, tenant: str) -> None:
    """Somebody links the tenant, who had subscribed long before."""
    world.sql(
        "UPDATE tenants SET (stripe_customer_id, stripe_subscription_id, stripe_usage_item_id) = "
        "(SELECT stripe_customer_id, stripe_subscription_id, stripe_usage_item_id FROM tenants WHERE id = 'a') WHERE id = %s",
        tenant,
    )


@pytest.fixture
def unlinked(office: Office) -> Office:
    """Tenant b has no customer, and five tokens that were quarantined for it within the present period."""
    office.world.sql("INSERT INTO tenants (id, name) VALUES ('b', 'b')")
    window = Window(office.world.window.end)
    office.bill(window, 5, window.end + timedelta(minutes=5), tenant="b")
    assert office.world.states()["b"] == "quarantined"
    return office


def test_a_quarantine_whose_cause_is_gone_is_proposed_for_release_and_billed(unlinked: Office) -> None:
    """Not before it is mended; approved, the next late run sends it."""
    world = unlinked.world
    assert unlinked.proposed() == []
    mend(world, "b")
    [proposal] = unlinked.proposed(Kind.RELEASE)
    assert (proposal.what.tenant_id, proposal.what.token_count) == ("b", 5)
    assert unlinked.decide(Decision.RELEASE).applied_at is not None
    assert world.states()["b"] == "frozen" and unlinked.proposed() == []
    world.set_time(world.clock() + 2 * HOUR)
    assert world.window in late_windows(world.connect, world.clock)
    world.bill()
    assert world.states()["b"] == "billed" and sorted(world.received()) == [5, 6_000_000]
    [_, released, _] = audit_trail(world.connect)
    assert (released.action, released.subject, released.decided_by) == ("release", f"report {report_of(world, 'b')}", "ann")
    assert released.before["quarantine_reason"] == "no_customer" and released.after["state"] == "frozen"


def test_a_mended_quarantine_is_late_usage_once_its_period_is_final(unlinked: Office) -> None:
    """The push of tenant a's late usage learns that; and when it is older than 35 days, whatever is known of its invoice."""
    mend(unlinked.world, "b")
    unlinked.bill(LAST, 7, AFTER)
    assert sorted((one.what.kind, one.what.tenant_id, one.what.token_count) for one in unlinked.proposed()) == [
        (Kind.LATE_USAGE, "a", 7),
        (Kind.LATE_USAGE, "b", 5),
    ]
    with pytest.raises(ReleaseRefused, match="is final"):
        let_go(unlinked.world, "b")
    unlinked.world.sql("DELETE FROM billing.invoiced_period WHERE period_end < now()")
    unlinked.world.set_time(AFTER + timedelta(days=36))
    assert {(one.what.kind, one.what.tenant_id) for one in unlinked.proposed()} == {(Kind.LATE_USAGE, "a"), (Kind.LATE_USAGE, "b")}
    with pytest.raises(ReleaseRefused, match="older_than_35_days"):
        let_go(unlinked.world, "b")


def test_what_stands_in_the_way_is_told(unlinked: Office) -> None:
    """And nothing is released with it; a name and a reason are asked for."""
    world = unlinked.world
    [b, a] = [report_of(world, tenant) for tenant in ("b", "a")]
    for reports, match in (([b], "its cause stands: no_customer"), ([b, a], "not quarantined|its cause stands"), ([99], "no report 99")):
        with pytest.raises(ReleaseRefused, match=match):
            release(world.connect, reports, by="ann", reason="why", clock=world.clock)
    for by, reason in ((" ", "why"), ("ann", "")):
        with pytest.raises(ReleaseRefused, match="who decides"):
            release(world.connect, [b], by=by, reason=reason, clock=world.clock)
    assert audit_trail(world.connect) == [] and world.states()["b"] == "quarantined"


def test_an_approval_of_what_is_quarantined_no_more_changes_nothing(unlinked: Office) -> None:
    """Somebody released it by command before."""
    mend(unlinked.world, "b")
    [proposal] = unlinked.proposed()
    let_go(unlinked.world, "b")
    with pytest.raises(ProposalRefused, match="withdrawn"):
        unlinked.decide(Decision.RELEASE, number=proposal.id)
    assert [action for action, *_ in unlinked.audited()] == ["release"]


def test_a_disowned_report_goes_on_under_an_identifier_of_its_own(office: Office) -> None:
    """Stripe disowned it, it was kept aside, its cause was mended: it is sent once more and counts once."""
    world = office.world
    world.simulator.disown([world.sql("SELECT identifier FROM billing.usage_report")[0][0]])
    disowned = Disowned(report_of(world, "a"), RevocationCause.OPERATOR, "no customer")
    revoke(world.connect, disowned, world.clock, revoked_by="ann", resend=False)
    assert office.proposed() == []
    world.set_time(world.clock() + timedelta(days=3))
    before = world.sql("SELECT generation, identifier FROM billing.usage_report")
    let_go(world, "a")
    [(generation, identifier)] = world.sql("SELECT generation, identifier FROM billing.usage_report")
    assert generation == before[0][0] + 1 and identifier != before[0][1]
    world.bill()
    assert world.at_stripe() == world.marked() == {"a": 6_000_000}


@pytest.mark.parametrize("reason", ["before_adoption", "refused_at_gate"])
def test_what_only_a_person_can_release_is_not_proposed(office: Office, reason: str) -> None:
    """By command it goes."""
    world = office.world
    world.window = Window(world.window.end)
    world.set_time(world.window.end + timedelta(minutes=5))
    world.use("a", 7)
    world.freeze()
    aside = "state = 'quarantined', quarantined_at = now(), quarantine_reason = %s"
    world.sql(f"UPDATE billing.usage_report SET {aside} WHERE state = 'frozen'", reason)
    assert office.proposed() == []
    [(report_id,)] = world.sql("SELECT id FROM billing.usage_report WHERE state = 'quarantined'")
    release(world.connect, [report_id], by="ann", reason="it is ours", clock=world.clock)
    world.bill()
    assert world.marked() == world.at_stripe() == {"a": 6_000_007}


def test_what_a_restored_database_may_have_forgotten_is_not_released(unlinked: Office) -> None:
    """The lost time may have released and sent it, or billed it by an invoice item."""
    mend(unlinked.world, "b")
    unlinked.world.sql("UPDATE billing.ledger SET epoch = 2, recovered_at = now()")
    with pytest.raises(ReleaseRefused, match="restored"):
        let_go(unlinked.world, "b")
    [proposal] = unlinked.proposed()
    with pytest.raises(ReleaseRefused, match="restored"):
        unlinked.decide(Decision.RELEASE, number=proposal.id)
    assert unlinked.proposed() == [proposal]


def test_releases_beside_pushes_bill_once(unlinked: Office) -> None:
    """Three who release, and three pushes of the same hour, all at once."""
    world = unlinked.world
    mend(world, "b")

    def work(n: int) -> None:
        with suppress(BillingError):
            let_go(world, "b") if n % 2 else world.bill()

    with ThreadPoolExecutor(6) as crowd:
        list(crowd.map(work, range(6)))
    world.bill()
    assert sorted(world.received()) == [5, 6_000_000] and world.states()["b"] == "billed"
    assert check_conservation(world.connect, world.window)["billed"] == 5
    assert [action for action, *_ in unlinked.audited()] == ["release"]


def test_a_release_that_comes_first_leaves_a_proposal_undone(unlinked: Office) -> None:
    """Somebody writes the usage off; another one releases it right before that is written down: it is billed, and not written off."""
    world = unlinked.world
    mend(world, "b")
    unlinked.bill(LAST, 7, AFTER)
    [of_b] = [one for one in unlinked.proposed() if one.what.tenant_id == "b"]
    fired: list[str] = []

    def arrive(name: str, _: object) -> None:
        if name == "before settle_reports" and not fired:
            fired.append(name)
            world.sql("DELETE FROM billing.invoiced_period")  # as if the period could still be billed
            let_go(world, "b")

    async def arrive_at_request(_: str) -> None: ...

    with places(arrive, arrive_at_request), pytest.raises(ProposalRefused, match="not quarantined any more"):
        unlinked.decide(Decision.WRITE_OFF, number=of_b.id)
    assert fired and world.states()["b"] == "frozen"
    assert world.sql("SELECT count(*) FROM billing.acknowledgement") == [(0,)]
    assert [action for action, *_ in unlinked.audited()] == ["release"]


def test_a_report_is_settled_by_one_proposal(unlinked: Office) -> None:
    """A second one settles nothing of it."""
    world = unlinked.world
    columns = "(kind, subject, token_count, evidence, proposed_at)"
    world.sql(f"INSERT INTO billing.proposal {columns} VALUES ('late_usage', 's', 1, 'e', now()), ('late_usage', 't', 1, 'e', now())")
    with world.connect() as db:
        settled = [releases.settle(db, [report_of(world, "b")], number, "ann", "r", world.clock()) for number in (1, 1, 2)]
    assert settled == [1, 1, 0]


def test_usage_that_somebody_has_seen_is_acknowledged(unlinked: Office) -> None:
    """Again with another reason, too; a report that is not aside is not, and a release ends it."""
    world = unlinked.world

    def see(tenant: str, reason: str) -> None:
        acknowledge(world.connect, [report_of(world, tenant)], by="ann", reason=reason, clock=world.clock)

    see("b", "a test account")
    see("b", "nobody pays")
    with pytest.raises(ReleaseRefused, match="only quarantined"):
        see("a", "why not")
    assert world.sql("SELECT reason, acknowledged_by, proposal_id FROM billing.acknowledgement") == [("nobody pays", "ann", None)]
    assert [action for action, *_ in unlinked.audited()] == ["acknowledge", "acknowledge"]
    mend(world, "b")
    let_go(world, "b")
    assert world.sql("SELECT count(*) FROM billing.acknowledgement") == [(0,)]


RELEASE = "UPDATE billing.usage_report SET state = 'frozen', quarantined_at = NULL, quarantine_reason = NULL WHERE tenant_id = 'b'"
AUDIT = (
    "INSERT INTO billing.audit (action, subject, decided_by, decided_at, before, after) "
    "SELECT 'release', 'report ' || id, 'ann', now(), '{}', '{}' FROM billing.usage_report WHERE tenant_id = 'b'"
)


def test_the_database_refuses_a_release_that_nobody_answers_for(unlinked: Office) -> None:
    """Whoever decides it is written down in the same transaction, not before."""
    world = unlinked.world
    world.sql(AUDIT)
    with pytest.raises(psycopg.errors.CheckViolation, match="without being noted"):
        world.sql(RELEASE)
    world.sql(f"{AUDIT}; {RELEASE}")
    assert world.states()["b"] == "frozen"


def test_the_database_refuses_to_release_what_a_proposal_settled(unlinked: Office) -> None:
    """Whatever the audit says."""
    world = unlinked.world
    columns = "(kind, subject, token_count, evidence, proposed_at)"
    world.sql(f"INSERT INTO billing.proposal {columns} VALUES ('late_usage', 's', 1, 'e', now())")
    world.sql(
        "INSERT INTO billing.acknowledgement SELECT report.id, 'ann', now(), 'r', proposal.id "
        "FROM billing.usage_report report, billing.proposal WHERE report.tenant_id = 'b'"
    )
    with pytest.raises(psycopg.errors.CheckViolation, match="billed twice"):
        world.sql(f"{AUDIT}; {RELEASE}")


def test_what_was_applied_stays_as_it_is(unlinked: Office) -> None:
    """The database refuses to change or delete it."""
    mend(unlinked.world, "b")
    unlinked.decide(Decision.RELEASE)
    for change in ("UPDATE billing.proposal SET applied_at = NULL", "DELETE FROM billing.proposal"):
        with pytest.raises(psycopg.errors.CheckViolation, match="for ever"):
            unlinked.world.sql(change)
