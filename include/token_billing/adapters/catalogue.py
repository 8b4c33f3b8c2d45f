"""The catalogue's price ids, as set-up found or made them. None of these functions opens or ends a transaction."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from token_billing.adapters.database import Connection
from token_billing.adapters.queries import queries
from token_billing.catalog import METERED_NAMES

CATALOGUE = queries("catalogue.sql")


def newest_price_ids(db: Connection) -> dict[str, str]:
    """The price of each name that new subscriptions get, as far as set-up has stored it."""
    return dict(db.execute(CATALOGUE["newest_prices"]).fetchall())


def metered_price_ids(db: Connection, overrides: Mapping[str, str]) -> frozenset[str]:
    """Every known id of the prices that bill usage, older ones and those that settings name (`overrides`, name → id) included."""
    known = {price_id for (price_id,) in db.execute(CATALOGUE["prices_named"], {"names": list(METERED_NAMES)})}
    return frozenset(known | {price_id for name, price_id in overrides.items() if name in METERED_NAMES})


def note_prices(db: Connection, newest: Mapping[str, str], older: Mapping[str, Iterable[str]], now: datetime) -> None:
    """Stores the newest price of each name, and older ones; to be called in a transaction."""
    db.execute(CATALOGUE["take_turn"])
    for name, price_id in newest.items():
        parameters = {"name": name, "price_id": price_id, "now": now}
        db.execute(CATALOGUE["retire_others"], parameters)
        db.execute(CATALOGUE["note_newest"], parameters)
    for name, price_ids in older.items():
        for price_id in sorted(price_ids):
            db.execute(CATALOGUE["note_older"], {"name": name, "price_id": price_id, "now": now})
