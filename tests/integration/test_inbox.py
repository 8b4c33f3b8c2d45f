"""The inbox keeps every event once, by whatever way and however often it came."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from signed_events import meter_error_event, subscription_event
from token_billing.adapters import inbox
from token_billing.adapters.database import session
from token_billing.errors import BadEvent, LedgerNotReady
from token_billing.stripe_events import StripeEvent, event_of
from world import World

NOW = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)


def event(event_id: str, **fields: Any) -> StripeEvent:
    return event_of(subscription_event(event_id, **fields))


def sweep(world: World, events: Sequence[StripeEvent]) -> int:
    with session(world.connect) as db:
        return inbox.store_all(db, events, "sweep", NOW)


def deliver(world: World, *events: StripeEvent) -> list[bool]:
    """By webhook, all at once, each on a connection of its own."""

    async def one(delivered: StripeEvent) -> bool:
        async with await psycopg.AsyncConnection.connect(world.dsn, autocommit=True, prepare_threshold=None) as db:
            return await inbox.store(db, delivered, "webhook", NOW)

    async def everything() -> list[bool]:
        return list(await asyncio.gather(*(one(delivered) for delivered in events)))

    return asyncio.run(everything())


def kept(world: World) -> dict[str, str]:
    """By what way each event came."""
    return dict(world.sql("SELECT event_id, came_by FROM billing.stripe_event"))


def test_an_event_is_kept_once_whatever_way_it_comes(world: World) -> None:
    """The first way is the one that is told."""
    assert deliver(world, event("evt_1")) == [True]
    assert sweep(world, [event("evt_1"), event("evt_2"), event("evt_2"), event_of(meter_error_event())]) == 2
    assert sweep(world, [event("evt_1"), event("evt_2")]) == 0
    assert deliver(world, event("evt_2")) == [False]
    assert sweep(world, []) == 0
    assert kept(world) == {"evt_1": "webhook", "evt_2": "sweep", "evt_thin_1": "sweep"}


def test_of_many_deliveries_at_once_one_keeps_the_event(world: World) -> None:
    assert sorted(deliver(world, *[event("evt_1")] * 12)) == [False] * 11 + [True]
    assert kept(world) == {"evt_1": "webhook"}


def test_events_of_another_mode_than_the_ledgers_are_not_kept(world: World) -> None:
    """Nor any that comes with one."""
    world.sql("UPDATE billing.ledger SET stripe_account_id = 'acct_1', stripe_livemode = true, pinned_at = now()")
    with pytest.raises(BadEvent, match="test mode, but this ledger bills live mode"):
        deliver(world, event("evt_test", livemode=False))
    with pytest.raises(BadEvent):
        sweep(world, [event("evt_live", livemode=True), event("evt_test", livemode=False)])
    assert kept(world) == {}
    assert sweep(world, [event("evt_live", livemode=True)]) == 1


@pytest.mark.parametrize(
    "fields", [{"note": "\0"}, {"note": "\ud800"}, {"id": "evt_\ud800"}, {"id": "x" * 300_000}, {"note": 1e400}], ids=str
)
def test_what_no_database_holds_is_no_event(world: World, fields: dict[str, Any]) -> None:
    bad = event_of({**subscription_event("evt_bad"), **fields})
    with pytest.raises(BadEvent):
        deliver(world, bad)
    with pytest.raises(BadEvent):
        sweep(world, [event("evt_1"), bad])
    assert kept(world) == {}


def test_without_a_ledger_nothing_is_kept(world: World) -> None:
    """The sender is told to come again, and the operator how to make one."""
    world.sql("DELETE FROM billing.ledger")
    for take in (deliver, lambda world, one: sweep(world, [one])):
        with pytest.raises(LedgerNotReady, match="adopt"):
            take(world, event("evt_1"))
    world.sql("DROP SCHEMA billing CASCADE")
    for take in (deliver, lambda world, one: sweep(world, [one])):
        with pytest.raises(LedgerNotReady, match="adopt"):
            take(world, event("evt_1"))
