"""What was decided is made at Stripe once, whatever is lost, refused, killed or done twice at once."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from crash.kill_points import different, run_in_child
from office import Office
from token_billing.adapters import proposals
from token_billing.adapters.database import session
from token_billing.errors import BillingError, ProposalRefused, StripeUnavailable
from token_billing.proposals import Decision, Proposal
from token_billing.stages.decide_proposals import resolve
from token_billing.windows import HOUR
from unreliable_network import UnreliableNetwork

ITEMS = "/v1/invoiceitems"

#: Of some sixty places, drawn once.
PLACES = 15


def trouble(office: Office, *kinds: str) -> None:
    """The next invoice items meet these."""
    office.world.simulator.script_faults([{"kind": kind, "path": ITEMS} for kind in kinds])


@pytest.fixture
def decided(late: Office) -> Office:
    """Late usage is to be an invoice item of 5 dollars."""
    late.decide(Decision.INVOICE_ITEM)
    return late


LOST = [
    ("reset_before_effect", 1),
    ("reset_before_effect", 30),
    ("reset_after_effect", 1),
    ("reset_after_effect", 30),
    ("kept_error_before_effect", 1),
    ("error_after_effect", 1),
    ("conflict", 1),
]


@pytest.mark.parametrize(("kind", "hours"), LOST)
def test_after_an_answer_that_tells_nothing_it_is_made_once(decided: Office, kind: str, hours: int) -> None:
    """Within Stripe's day and after it, the next run looks for what was made, and makes it where it was not."""
    trouble(decided, kind)
    with pytest.raises(StripeUnavailable, match="proposal 1"):
        decided.apply()
    if kind != "conflict":
        with pytest.raises(ProposalRefused, match="a decision stands"):  # it may be there
            decided.decide(Decision.WRITE_OFF, by="bob", number=1)
    decided.world.set_time(decided.world.clock() + timedelta(hours=hours))
    for _ in range(2):
        with suppress(StripeUnavailable):  # Stripe may replay its error once more
            decided.apply()
    assert decided.items() == [(500, "usd", "1")]
    assert decided.world.sql("SELECT applied_at IS NOT NULL, stripe_id LIKE 'ii_%%' FROM billing.proposal") == [(True, True)]


def test_a_request_that_arrives_after_its_repetition_makes_nothing(decided: Office) -> None:
    """It was on its way when the next run looked for what it made: both carry one key."""
    trouble(decided, "delayed_delivery")
    with pytest.raises(StripeUnavailable):
        decided.apply()
    assert decided.apply() == 1
    decided.world.simulator.release_delayed()
    assert decided.items() == [(500, "usd", "1")]


def test_what_a_killed_run_made_is_found_days_later(decided: Office) -> None:
    """Stripe knows the key no more; the attempt was noted before the request left."""
    assert run_in_child(lambda: decided.apply(), f"after post {ITEMS} #1") is None
    decided.lease_is_over()
    decided.world.set_time(decided.world.clock() + timedelta(days=2))
    assert decided.apply() == 1
    assert decided.items() == [(500, "usd", "1")]


def test_what_a_restored_database_has_forgotten_is_not_made_again(decided: Office) -> None:
    """An older copy knows nothing of the item; it is proposed anew, and a person sees what Stripe has of it."""
    decided.apply()
    with decided.world.connect() as db:
        db.execute("SET session_replication_role = replica")  # no trigger stops a restore
        db.execute("DELETE FROM billing.acknowledgement")
        db.execute("DELETE FROM billing.proposal")
        db.execute("UPDATE billing.ledger SET epoch = 2, recovered_at = now()")
    decided.decide(Decision.INVOICE_ITEM)
    with pytest.raises(ProposalRefused, match=r"ii_.* is about the same"):
        decided.apply()
    assert decided.apply() == 0 and len(decided.items()) == 1
    assert decided.decide(Decision.DECLINED, by="bob", number=2).decision == Decision.DECLINED


def test_a_restored_database_that_cannot_look_is_decided_about_anew(decided: Office, network: UnreliableNetwork) -> None:
    """Nothing was attempted by this copy, and what it has forgotten is not listed: a person may decide otherwise."""
    decided.world.sql("UPDATE billing.ledger SET epoch = 2, recovered_at = now()")
    network.broken_paths[ITEMS] = 404
    with pytest.raises(ProposalRefused, match="does not list"):
        decided.apply()
    assert decided.apply() == 0
    assert decided.decide(Decision.DECLINED, by="bob", number=1).decision == Decision.DECLINED


def test_an_answer_that_does_not_repeat_the_metadata_is_one(decided: Office, network: UnreliableNetwork) -> None:
    """Stripe has made the item; asked again, it would make another one."""
    network.write_answers[ITEMS] = lambda item: {name: value for name, value in item.items() if name != "metadata"}
    assert (decided.apply(), decided.apply()) == (1, 0)
    assert len(decided.items()) == 1


def test_what_stripe_refuses_for_a_day_after_a_lost_answer_is_decided_anew(decided: Office) -> None:
    """The doubt is the first attempt's: refusals since neither end it nor make it younger."""
    trouble(decided, "reset_before_effect")
    with pytest.raises(StripeUnavailable):
        decided.apply()
    decided.client.customers.delete(decided.customer())
    refused = []
    for _ in range(26):
        decided.world.set_time(decided.world.clock() + HOUR)
        with suppress(StripeUnavailable, ProposalRefused):
            decided.apply()
        refused += decided.world.sql("SELECT refused_at IS NOT NULL FROM billing.proposal")
    assert refused.index((True,)) in (23, 24), "Stripe may repeat a stored refusal once more"
    assert decided.decide(Decision.DECLINED, by="bob", number=1).decision == Decision.DECLINED


def test_a_restored_database_is_told_by_hand_what_stripe_does_not_list(decided: Office, network: UnreliableNetwork) -> None:
    """Once somebody has looked, it is made without looking again."""
    trouble(decided, "reset_before_effect")
    with pytest.raises(StripeUnavailable):
        decided.apply()
    decided.world.sql("UPDATE billing.ledger SET epoch = 2, recovered_at = now()")
    network.broken_paths[ITEMS] = 404
    with pytest.raises(ProposalRefused, match="does not list"):
        decided.apply()
    resolve_by_hand(decided, None)
    assert decided.apply() == 1 and len(decided.items()) == 1


def test_many_who_apply_at_once_make_it_once(decided: Office) -> None:
    """The UI's task, the command and the hourly run: one is at work, the others find it so, or done."""

    def apply(_: int) -> int:
        try:
            return decided.apply()
        except StripeUnavailable as busy:
            assert "another run" in str(busy)
            return 0

    with ThreadPoolExecutor(6) as runs:
        done = list(runs.map(apply, range(6)))
    assert sum(done) == 1
    assert decided.items() == [(500, "usd", "1")]
    assert [action for action, *_ in decided.audited()] == ["decide", "apply"]


def test_what_stripe_refuses_is_told_and_a_person_decides_again(decided: Office) -> None:
    """No run repeats it by itself; mended, it is carried out; or something else is decided, and its reports are free again."""
    decided.client.customers.delete(decided.customer())
    with pytest.raises(ProposalRefused, match="No such customer"):
        decided.apply()
    assert decided.apply() == 0
    [(message,)] = decided.world.sql("SELECT message FROM billing.proposal")
    assert "No such customer" in message
    decided.decide(Decision.INVOICE_ITEM, by="ann", number=1)
    with pytest.raises(ProposalRefused, match="No such customer"):
        decided.apply()
    decided.decide(Decision.DECLINED, by="bob", number=1)
    assert decided.apply() == 0
    assert decided.world.sql("SELECT count(*) FROM billing.acknowledgement") == [(0,)]


def test_an_item_of_an_ended_subscription_waits_for_the_customers_next_invoice(decided: Office) -> None:
    """Stripe takes none for a subscription that makes no invoice any more."""
    [(subscription,)] = decided.world.sql("SELECT stripe_subscription_id FROM tenants")
    decided.client.subscriptions.cancel(subscription)
    assert decided.apply() == 1
    [item] = decided.client.invoice_items.list({"customer": decided.customer()}).data
    assert item.amount == 500 and not (item.parent and item.parent.subscription_details.subscription)


@pytest.fixture
def in_doubt(decided: Office, network: UnreliableNetwork, request: pytest.FixtureRequest) -> Office:
    """The answer was lost, and Stripe does not list invoice items: nothing is taken for done."""
    trouble(decided, request.param)
    with pytest.raises(StripeUnavailable):
        decided.apply()
    network.broken_paths[ITEMS] = 404
    with pytest.raises(ProposalRefused, match="does not list /v1/invoiceitems"):
        decided.apply()
    [(applied_at, message)] = decided.world.sql("SELECT applied_at, message FROM billing.proposal")
    assert applied_at is None and "resolve-proposal" in message
    return decided


def resolve_by_hand(office: Office, made_as: str | None, *, reason: str = "seen in the dashboard") -> Proposal:
    return resolve(office.world.connect, 1, made_as, "bob", reason, office.world.clock)


@pytest.mark.parametrize("in_doubt", ["reset_after_effect"], indirect=True)
def test_what_a_person_found_at_stripe_is_not_made_again(in_doubt: Office) -> None:
    """Its id is kept, with who saw it; the object of another kind, and a lack of words, are refused."""
    [item] = in_doubt.client.invoice_items.list({"customer": in_doubt.customer()}).data
    for made_as, reason, refusal in (("cn_1", "seen", "no invoice_item"), (item.id, " ", "say who looked")):
        with pytest.raises(ProposalRefused, match=refusal):
            resolve_by_hand(in_doubt, made_as, reason=reason)
    assert resolve_by_hand(in_doubt, item.id).standing == f"invoice_item by ann, done: {item.id}"
    with pytest.raises(ProposalRefused, match="nothing is in doubt"):
        resolve_by_hand(in_doubt, item.id)
    assert in_doubt.apply() == 0 and len(in_doubt.items()) == 1
    assert in_doubt.audited()[-2:] == [("resolve", "proposal 1", "bob"), ("apply", "proposal 1", "bob")]


@pytest.mark.parametrize("in_doubt", ["reset_before_effect", "reset_after_effect"], indirect=True)
def test_what_a_person_did_not_find_at_stripe_is_made_once(in_doubt: Office) -> None:
    """Also if it was there after all: the next attempt carries the same key. It is not looked for any more."""
    with session(in_doubt.world.connect) as db, proposals.alone_at(db, 1, HOUR), pytest.raises(ProposalRefused, match="at this moment"):
        resolve_by_hand(in_doubt, None)
    assert "nothing was made" in resolve_by_hand(in_doubt, None).standing
    assert in_doubt.apply() == 1
    assert in_doubt.items() == [(500, "usd", "1")]


def test_a_run_killed_anywhere_is_finished_by_the_next(late: Office) -> None:
    """kill -9 at a statement, end of a transaction or request, from the decision on: it is decided and made once."""
    world = late.world

    def work() -> Any:
        late.decide(Decision.INVOICE_ITEM, number=max(one.id for one in late.proposed()))
        late.apply()

    places: list[str] | None = None
    made = 0
    n = 0
    while places is None or n < len(places):
        late.bill(world.window, 200_000, world.clock())  # another revision of a final period's hour
        passed = run_in_child(work, None if places is None else places[n])
        if places is None:
            assert passed is not None
            assert len(different(passed)) > 20
            places = Random(1).sample(different(passed), PLACES)
        else:
            n += 1
            late.lease_is_over()
            with suppress(BillingError):
                late.apply()
            for one in late.proposed():
                late.decide(Decision.INVOICE_ITEM, number=one.id)
            late.apply()
        made += 1
        world.set_time(world.clock() + HOUR / 60)
    items = late.items()
    assert len({proposal for *_, proposal in items}) == len(items)
    assert sum(amount for amount, *_ in items) == 500 + 100 * made
    assert world.sql("SELECT count(*) FROM billing.proposal WHERE decision IS NOT NULL AND applied_at IS NULL") == [(0,)]
    assert world.sql("SELECT count(*) FROM billing.audit WHERE action = 'apply'") == [(len(items),)]
