"""What is kept of Stripe's news: as it came, newer over older, and by one at a time."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest

from shop import Shop
from token_billing.adapters import subscriptions

MINUTE = timedelta(minutes=1)


def test_an_event_stays_as_it_came(shop: Shop) -> None:
    shop.buy("pure", client_reference_id="nobody")
    shop.sync()
    for change in ("payload = '{}'", "happened_at = now()", "event_type = 'x'", "subscription_id = 'x'"):
        with pytest.raises(psycopg.errors.CheckViolation, match="an event stays as it came"):
            shop.world.sql(f"UPDATE billing.stripe_event SET {change}")


def test_the_cursor_only_advances(shop: Shop) -> None:
    shop.sync()
    with pytest.raises(psycopg.errors.CheckViolation, match="the cursor only advances"):
        shop.world.sql("UPDATE billing.event_cursor SET swept_until = swept_until - interval '1 second'")


def test_the_last_minute_of_the_list_is_not_taken_for_complete(shop: Shop) -> None:
    shop.sync()
    assert shop.world.sql("SELECT swept_until FROM billing.event_cursor") == [(shop.world.clock() - MINUTE,)]


def test_an_older_reading_does_not_replace_a_newer_one(shop: Shop) -> None:
    with shop.world.connect() as db:
        for status, minutes in (("newer", 2), ("older", 1)):
            subscriptions.store_subscription(db, {"id": "sub_1", "status": status}, shop.world.clock() + minutes * MINUTE)
    assert shop.world.sql("SELECT payload ->> 'status' FROM billing.subscription") == [("newer",)]


def test_two_that_sync_at_once_come_to_the_same(shop: Shop) -> None:
    """Nothing fails, and nothing is there twice."""
    for number in range(4):
        tenants = [f"t{number} {one}" for one in range(3)]
        shop.add_tenants(*tenants)
        for tenant in tenants:
            shop.buy("pure", client_reference_id=tenant)
        with ThreadPoolExecutor(4) as several:
            for done in [several.submit(shop.sync) for _ in range(4)]:
                done.result()
    assert shop.open_discrepancies() == []
    assert shop.world.sql("SELECT count(DISTINCT tenant_id), count(*) FROM billing.subscription_period") == [(12, 24)]
