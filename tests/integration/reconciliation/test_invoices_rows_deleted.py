"""Rows that are gone: deleted behind the ledger's back, or taken away by retention, which takes the oldest first."""

from datetime import timedelta

from invoiced_shop import OPENED, InvoicedShop
from world import World


def two_hours(world: World) -> InvoicedShop:
    """One tenant's only row in each."""
    shop = InvoicedShop.opened(world)
    shop.subscribe(a="pure")
    for day in (1, 2):
        shop.use(("a", 1_000_000), at=OPENED + timedelta(days=day))
    shop.final()
    return shop


def delete_of_day(world: World, day: int) -> None:
    """Whoever owns the table can."""
    since = OPENED + timedelta(days=day)
    with world.connect() as db:
        db.execute("SET LOCAL session_replication_role = replica")
        db.execute("DELETE FROM token_usage WHERE created_at >= %s AND created_at < %s", (since, since + timedelta(hours=1)))


def test_the_only_row_of_an_hour_that_is_deleted_is_missed(world: World) -> None:
    """Older ones are there, so no retention took it."""
    shop = two_hours(world)
    delete_of_day(world, 2)
    shop.compare()
    assert shop.found() == {"a": ["rows_changed"]}


def test_what_retention_took_is_not_missed(world: World) -> None:
    """Nothing older is there."""
    shop = two_hours(world)
    delete_of_day(world, 1)
    shop.compare()
    assert shop.found() == {}
