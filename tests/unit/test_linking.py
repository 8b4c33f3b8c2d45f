"""Whose subscription a checkout bought."""

from datetime import UTC, datetime, timedelta
from itertools import permutations

from token_billing.linking import Checkout, Link, claimed_tenants, links_of

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def checkout(minute: int) -> Checkout:
    return Checkout(NOON + timedelta(minutes=minute), f"evt_{minute}", "acme", f"sub_{minute}", "cus")


def linked(links: list[Link]) -> list[str]:
    return [link.subscription_id for link in links]


def test_who_is_linked_stays_linked() -> None:
    links, conflicts = links_of(None, [checkout(5), checkout(1)], {})
    assert (linked(links), conflicts) == (["sub_1"], [checkout(5)])


def test_a_link_to_what_has_ended_is_none() -> None:
    links, conflicts = links_of(None, [checkout(1), checkout(5)], {"sub_1": NOON + timedelta(minutes=5)})
    assert (linked(links), conflicts) == (["sub_1", "sub_5"], [])


def test_what_the_application_linked_no_checkout_overrules() -> None:
    links, conflicts = links_of(Link("sub_0", "cus", None), [checkout(1)], {})
    assert (linked(links), conflicts) == (["sub_0"], [checkout(1)])


def test_the_order_in_which_checkouts_are_learned_does_not_matter() -> None:
    """All orders of six, each ten times."""
    six = [checkout(minute) for minute in range(6)]
    ended = {"sub_0": NOON + timedelta(minutes=2), "sub_2": NOON + timedelta(minutes=4)}
    outcomes = {str(links_of(None, order * 10, ended)) for order in permutations(six)}
    assert len(outcomes) == 1
    assert linked(links_of(None, six, ended)[0]) == ["sub_0", "sub_2", "sub_4"]


def test_the_client_reference_comes_before_the_metadata() -> None:
    assert claimed_tenants({"client_reference_id": "a", "metadata": {"tenant_id": "b"}}) == ["a", "b"]
    assert claimed_tenants({"client_reference_id": None, "metadata": None}) == []
