"""What facts that come late divide, and what they leave as it is."""

from dataclasses import replace
from datetime import timedelta

import pytest

from crash.places import places
from shop import Shop
from token_billing.adapters import ledger
from token_billing.errors import BillingError
from token_billing.stages.split import split_at_boundaries
from token_billing.windows import HOUR, Window
from unreliable_network import unreliable_network

MINUTES = timedelta(minutes=1)


@pytest.fixture
def late(shop: Shop) -> Shop:
    """An hour frozen whole, in whose middle the plan changed, which is known since."""
    shop.add_tenants("acme")
    bought = shop.buy("bundled", client_reference_id="acme")
    shop.sync()
    shop.world.window = Window(shop.world.clock() + HOUR)
    for minutes, tokens in ((10, 1), (40, 2)):
        shop.world.use("acme", tokens, at=shop.world.window.start + minutes * MINUTES)
    shop.at(shop.world.window.start + 30 * MINUTES)
    shop.change_plan(bought.id, "pure")
    shop.at(shop.world.window.end + 2 * MINUTES)
    shop.world.freeze()
    return shop


def sides(shop: Shop) -> list[tuple[int, str]]:
    return [(tokens, state) for _, _, _, tokens, state, _ in shop.reports()]


def test_what_was_turned_away_once_is_not_divided(late: Shop) -> None:
    """It goes where its first attempt was to go, and is shown."""
    with unreliable_network(late.world.simulator.base_url) as network:
        late.world.stripe_base, network.always = network.base_url, {"status": 429, "error": {"type": "invalid_request_error"}}
        with pytest.raises(BillingError):
            late.world.push()
    late.world.stripe_base = None
    assert sides(late) == [(3, "frozen")]
    late.sync()
    late.world.bill()
    assert sides(late) == [(3, "billed")]
    assert late.open_discrepancies() == [("boundary_inside_report", "acme")]


def test_news_that_overtakes_a_push_is_shown(late: Shop) -> None:
    """The push has read where its reports go; before it notes its attempts, the change is learned of. The next sync finds it out."""
    overtaken = []

    def arrive(place: str, _: object) -> None:
        if place == "before lease_customers" and not overtaken:
            overtaken.append(place)
            late.sync()

    async def go_on(_: str) -> None:
        pass

    with places(arrive, go_on):
        late.world.push()
    late.world.mark_billed()
    assert sides(late) == [(3, "billed")]
    late.at(late.world.clock() + 5 * MINUTES)
    late.sync()
    assert late.open_discrepancies() == [("boundary_inside_report", "acme")]


def test_nothing_is_divided_that_a_restored_database_may_have_forgotten(late: Shop) -> None:
    late.sync()
    with late.world.connect() as db:
        recovered = replace(ledger.identity(db), recovered_at=late.world.clock())
        assert split_at_boundaries(db, recovered, late.world.window, late.world.clock) == 0
        assert split_at_boundaries(db, ledger.identity(db), late.world.window, late.world.clock) == 1


def test_a_report_whose_rows_changed_is_not_divided(late: Shop) -> None:
    """mark_billed says what changed."""
    late.sync()
    with late.world.connect() as db:
        db.execute("SET LOCAL session_replication_role = replica")
        db.execute("UPDATE token_usage SET input_tokens = 5 WHERE input_tokens = 2")
    with late.world.connect() as db:
        assert split_at_boundaries(db, ledger.identity(db), late.world.window, late.world.clock) == 0
    assert sides(late) == [(3, "frozen")]


def test_late_rows_of_a_divided_hour_are_divided_as_well(late: Shop) -> None:
    late.sync()
    late.world.bill()
    for minutes, tokens in ((5, 4), (50, 8)):
        late.world.use("acme", tokens, at=late.world.window.start + minutes * MINUTES)
    assert late.world.bill()["billed"] == 15
    assert sorted(sides(late)) == [(1, "billed"), (2, "billed"), (4, "billed"), (8, "billed")]
