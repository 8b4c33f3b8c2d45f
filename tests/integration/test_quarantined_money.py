"""What is quarantined is told in tokens and money: in the operator's list and in the log."""

import json
import logging
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from billing_airflow.__main__ import app
from token_billing.errors import ReportsLeftOver
from token_billing.stages.quarantined import quarantined_usage
from token_billing.windows import HOUR, Window
from unreliable_network import unreliable_network
from world import World

BEGUN = datetime(2025, 10, 15, 12, 30, tzinfo=UTC)
PERIOD_END = datetime(2025, 11, 15, 12, 30, tzinfo=UTC)
LAST = Window(datetime(2025, 11, 15, 11, tzinfo=UTC))


@pytest.fixture
def aside(world: World) -> World:
    """Tenant a (Bundled) has 4 million tokens on its final invoice, and 3 million too late in two hours; nobody knows tenant ghost."""
    world.simulator.reset(clock=BEGUN)
    world.link("a")
    for window, at, usage in (
        (Window(datetime(2025, 10, 16, 9, tzinfo=UTC)), datetime(2025, 10, 16, 11, tzinfo=UTC), {"a": 4_000_000}),
        (LAST, PERIOD_END + 2 * HOUR, {"a": 1_000_000, "ghost": 70_000}),
        (Window(LAST.start - HOUR), PERIOD_END + 3 * HOUR, {"a": 2_000_000}),
    ):
        world.set_time(at)
        world.window = window
        for tenant, tokens in usage.items():
            world.use(tenant, tokens)
        world.bill()
    return world


def test_what_is_quarantined_is_worth_what_it_would_have_added(aside: World) -> None:
    """Of the 3 million, one is within the 5 million free ones of its period; the others are $0.000005 each."""
    too_late, ghost = quarantined_usage(aside.connect)
    assert (too_late.usage.reason, too_late.usage.tenant_id, too_late.amount_cents) == ("period_invoiced", "a", 1000)
    assert (too_late.usage.hour_count, too_late.usage.token_count, too_late.usage.billed_tokens) == (2, 3_000_000, 4_000_000)
    assert too_late.usage.period == (BEGUN, PERIOD_END) and too_late.usage.is_billing_period
    assert (ghost.usage.reason, ghost.usage.tenant_id, ghost.amount_cents) == ("unknown_tenant", "ghost", 140)  # the list price: $0.00002
    assert ghost.usage.period.start == datetime(2025, 11, 1, tzinfo=UTC) and not ghost.usage.is_billing_period


def test_a_rejected_report_is_told_of_too(aside: World) -> None:
    """It counts as quarantined in the conservation law; here it is the next period's, and within that one's free tokens."""
    aside.window = Window(PERIOD_END.replace(minute=0) + HOUR)
    aside.use("a", 70_000)
    refusal = {"type": "invalid_request_error", "message": "No active meter found"}
    with unreliable_network(aside.simulator.base_url) as network:
        aside.stripe_base, network.always = network.base_url, {"status": 400, "error": refusal}
        with pytest.raises(ReportsLeftOver):
            aside.bill()
    [rejected] = [one for one in quarantined_usage(aside.connect) if one.usage.reason == "rejected"]
    assert (rejected.usage.token_count, rejected.usage.billed_tokens, rejected.amount_cents) == (70_000, 0, 0)
    assert rejected.usage.period.start == PERIOD_END


def test_the_operator_sees_reason_tenant_hours_tokens_and_money(aside: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a table, and as JSON for programs."""
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", aside.dsn)
    table = CliRunner().invoke(app, ["quarantined"])
    assert table.exit_code == 0, table.output
    rows = [line.split() for line in table.stdout.splitlines()]
    assert ["period_invoiced", "a", "2025-10-15", "2", "3,000,000", "10.00", "USD"] in rows
    assert ["unknown_tenant", "ghost", "~2025-11", "1", "70,000", "~1.40", "USD"] in rows
    assert table.stdout.rstrip().endswith("3,070,000 tokens worth 11.40 USD in all")
    listed = json.loads(CliRunner().invoke(app, ["quarantined", "--json"]).stdout)
    assert [(one["reason"], one["tokens"], one["amount_cents"], one["currency"], one["period_is"]) for one in listed] == [
        ("period_invoiced", 3_000_000, 1000, "usd", "billing_period"),
        ("unknown_tenant", 70_000, 140, "usd", "calendar_month"),
    ]


def test_a_push_that_quarantines_says_so_in_tokens_and_money(aside: World, caplog: pytest.LogCaptureFixture) -> None:
    """Once: the next push of the same hour has nothing new to tell."""
    aside.use("a", 2_000_000)
    aside.use("ghost", 5_000)
    for hours in (4, 5):
        aside.clock = lambda hours=hours: PERIOD_END + hours * HOUR  # type: ignore[misc]
        with caplog.at_level(logging.WARNING):
            aside.bill()
    told = [record.getMessage().partition("quarantined as ")[2] for record in caplog.records]
    assert [one for one in told if one] == [
        "period_invoiced: 2,000,000 tokens worth 5.00 USD, of 'a'",
        "unknown_tenant: 5,000 tokens worth 0.10 USD, of 'ghost'",
    ]
