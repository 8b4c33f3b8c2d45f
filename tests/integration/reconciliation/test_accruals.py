"""What is accrued at a month's end is what the invoices that follow bill, to the cent; and no token is left out at any instant."""

import csv
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from typer.testing import CliRunner

from billing_airflow.__main__ import app
from invoiced_shop import OPENED, PERIOD_END, InvoicedShop
from token_billing.accruals import Accrual, Standing
from token_billing.errors import ReportsLeftOver, WindowStillOpen
from token_billing.model import Disowned, RevocationCause
from token_billing.stages.accruals import accruals
from token_billing.stages.exclude import exclude
from token_billing.stages.explain import explain
from token_billing.stages.revoke import revoke
from token_billing.windows import HOUR, last_closed_window
from unreliable_network import unreliable_network
from world import World

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def as_of(shop: InvoicedShop, instant: datetime) -> list[Accrual]:
    return accruals(shop.world.connect, instant, shop.world.clock)


def open_parts(found: list[Accrual]) -> dict[tuple[str, str], tuple[int, ...]]:
    """Tokens and cents that are accrued, unbilled and quarantined, by tenant and part."""
    return {
        (one.usage.tenant_id, standing): (one.usage.tokens[standing], (one.cents or {})[standing])
        for one in found
        for standing in ("accrued", "unbilled", "quarantined")
        if one.usage.tokens.get(Standing(standing))
    }


def standings(found: list[Accrual]) -> dict[tuple[str, str], int]:
    """Tokens by tenant and standing."""
    tokens = Counter[tuple[str, str]]()
    for one in found:
        for standing, count in one.usage.tokens.items():
            tokens[one.usage.tenant_id, standing] += count
    return dict(tokens)


@pytest.fixture
def shop(world: World) -> InvoicedShop:
    """Acme (Bundled) and bolt (Pure)."""
    shop = InvoicedShop.opened(world)
    shop.subscribe(acme="bundled", bolt="pure")
    return shop


def metered(shop: InvoicedShop) -> dict[tuple[str, str | None], tuple[int, int]]:
    """Tokens and cents of the metered lines of final invoices, by tenant and plan."""
    found = shop.world.sql(
        "SELECT tenant.id, named.name, sum(line.quantity)::bigint, sum(line.amount_cents)::bigint "
        "FROM billing.invoice_line line JOIN billing.invoice USING (invoice_id) "
        "JOIN tenants tenant ON tenant.stripe_customer_id = invoice.customer_id "
        "JOIN billing.catalogue_price named USING (price_id) "
        "WHERE line.kind = 'usage' AND invoice.status = 'paid' AND invoice.billing_reason = 'subscription_cycle' GROUP BY 1, 2"
    )
    return {(tenant, plan): (tokens, cents) for tenant, plan, tokens, cents in found}


def test_what_is_accrued_at_the_end_is_what_the_invoice_bills(shop: InvoicedShop) -> None:
    """By tenant and plan, to the token and to the cent; once the invoice is final nothing of it is open any more, and what was open
    before stays told as it was."""
    shop.use(("acme", 4_000_000), ("bolt", 70_000))
    middle = OPENED + 9 * DAY
    shop.use(("acme", 3_000_000), at=middle + 2 * HOUR)
    shop.use(("acme", 500_000), ("bolt", 12_345), at=PERIOD_END - 30 * MINUTE)
    at_the_end = as_of(shop, PERIOD_END)
    in_the_middle = as_of(shop, middle)
    shop.final()
    shop.read()
    billed = metered(shop)
    assert billed == {
        (one.usage.tenant_id, one.usage.plan): (
            one.usage.tokens[Standing.ACCRUED] + one.usage.tokens[Standing.UNBILLED],
            sum(one.cents.values()),
        )
        for one in at_the_end
        if one.cents is not None
    }
    assert as_of(shop, PERIOD_END) == at_the_end and as_of(shop, middle) == in_the_middle
    assert open_parts(in_the_middle) == {("acme", "accrued"): (4_000_000, 0), ("bolt", "accrued"): (70_000, 140)}
    # Their last hour was pushed after the period's end: at the end it had not been accepted yet.
    assert open_parts(at_the_end) == {
        ("acme", "accrued"): (7_000_000, 1000),
        ("acme", "unbilled"): (500_000, 250),
        ("bolt", "accrued"): (70_000, 140),
        ("bolt", "unbilled"): (12_345, billed["bolt", "managed_ai_pure"][1] - 140),
    }
    an_hour_later = as_of(shop, PERIOD_END + 30 * MINUTE)
    assert open_parts(an_hour_later)["acme", "accrued"] == billed["acme", "managed_ai_bundled"] == (7_500_000, 1250)
    assert open_parts(as_of(shop, shop.world.clock())) == {}


def test_no_token_is_left_out_at_any_instant(shop: InvoicedShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever became of usage, at random instants every token used before is counted once: rejected, set aside, disowned and sent anew,
    late, not frozen, of excluded tenants and of such that nobody knows; and the parts stand as they stood then."""
    draw = random.Random(7)
    tenants = ["acme", "bolt", "ghost", "free"]
    shop.add_tenants("free")
    exclude(shop.world.connect, "free", "internal", OPENED, "ann")
    instants = [OPENED + 31 * DAY * draw.random() for _ in range(25)]
    asked_then: dict[datetime, list[Accrual]] = {}
    refusal = {"status": 400, "error": {"type": "invalid_request_error", "message": "No active meter found"}}
    for n, start in enumerate(sorted(OPENED + timedelta(hours=draw.randrange(1, 740)) for _ in range(10))):
        at = [start + draw.random() * HOUR for _ in range(4)]
        shop.world.window = last_closed_window(start + HOUR)
        for when in at:
            shop.world.use(draw.choice(tenants), draw.randrange(1, 3_000_000), at=when)
        shop.at(start + HOUR + 2 * MINUTE)
        asked_then[shop.world.clock()] = as_of(shop, shop.world.clock())
        if n == 3:
            with unreliable_network(shop.world.simulator.base_url) as network:
                shop.world.stripe_base, network.always = network.base_url, refusal
                with pytest.raises(ReportsLeftOver):
                    shop.world.bill()
            shop.world.stripe_base = None
        elif n != 5:  # one hour is left to late usage
            shop.world.bill()
    for (report_id,) in shop.world.sql("SELECT id FROM billing.usage_report WHERE state = 'billed' ORDER BY id LIMIT 2"):
        revoke(
            shop.world.connect,
            Disowned(report_id, RevocationCause.OPERATOR, "x"),
            shop.world.clock,
            revoked_by="ann",
            resend=report_id % 2 == 0,
        )
    shop.final()
    shop.read()
    usage = shop.world.sql("SELECT tenant_id, input_tokens::bigint + output_tokens, created_at FROM token_usage")
    for instant in [*instants, *asked_then]:
        expected = Counter[str]()
        for tenant, tokens, used_at in usage:
            expected[tenant] += tokens if used_at < instant else 0
        found = Counter[str]()
        for one in as_of(shop, instant):
            found[one.usage.tenant_id] += sum(one.usage.tokens.values())
        assert +found == +expected, instant
    for instant, then in asked_then.items():
        assert standings(as_of(shop, instant)) == standings(then), instant


def test_what_was_released_since_counts_as_aside_before(shop: InvoicedShop) -> None:
    """Its cause went away, somebody let it go, and it was billed: before that it was quarantined, and worth the list price; and before
    it was that, it just waited."""
    shop.use(("ghost", 1_000_000))
    [(quarantined_at,)] = shop.world.sql("SELECT quarantined_at FROM billing.usage_report WHERE tenant_id = 'ghost'")
    aside = shop.world.clock() + MINUTE
    shop.at(aside + HOUR)
    shop.add_tenants("ghost")
    shop.buy("pure", client_reference_id="ghost")
    with shop.world.connect() as db:
        db.execute(
            "UPDATE billing.usage_report SET state = 'frozen', quarantined_at = NULL, quarantine_reason = NULL WHERE tenant_id = 'ghost'"
        )
        db.execute(
            "INSERT INTO billing.audit (action, subject, decided_by, decided_at, before, after) "
            "SELECT 'release', 'report ' || id, 'ann', %s, jsonb_build_object('quarantined_at', %s::timestamptz), '{}' "
            "FROM billing.usage_report WHERE tenant_id = 'ghost'",
            [shop.world.clock(), quarantined_at],
        )
    for before in (aside, shop.world.clock()):
        assert open_parts(as_of(shop, before)) == {("ghost", "quarantined"): (1_000_000, 2000)}
    shop.at(shop.world.clock() + MINUTE)
    for waiting in (quarantined_at, shop.world.clock()):
        assert open_parts(as_of(shop, waiting)) == {("ghost", "unbilled"): (1_000_000, 2000)}


@pytest.mark.parametrize("decision", ["invoice_item", "write_off"])
def test_usage_too_late_for_its_invoice_waits_for_a_decision(shop: InvoicedShop, decision: str) -> None:
    """Unbilled until then, in what it adds to its period's bill; written off, nobody pays for it; carried forward, it is accrued until the
    invoice that carries it is final."""
    world = shop.world
    shop.use(("acme", 4_500_000), at=PERIOD_END - 3 * HOUR)
    shop.use(("acme", 1_000_000), at=PERIOD_END - 2 * HOUR)
    shop.final()
    shop.read()
    # As if the last report had come after the invoice was final.
    final = PERIOD_END + HOUR
    world.sql("UPDATE billing.usage_report SET accepted_at = %s WHERE token_count = 1000000", final + MINUTE)
    late = {("acme", "unbilled"): (1_000_000, 250)}
    decided = world.clock() + MINUTE
    assert open_parts(as_of(shop, world.clock())) == late
    [(proposal,)] = world.sql(
        "INSERT INTO billing.proposal (kind, subject, invoice_id, customer_id, usage_item_id, period_start, period_end, token_count, "
        "evidence, proposed_at, decision, decided_by, decided_at, attempt_count, applied_at) SELECT 'late_usage', 'x', invoice_id, "
        "customer_id, usage_item_id, period_start, period_end, 1000000, 'late', %s, %s, 'ann', %s, 1, %s FROM billing.invoice_line "
        "JOIN billing.invoice USING (invoice_id) WHERE quantity = 500000 RETURNING id",
        world.clock(), decision, decided, decided,
    )  # fmt: skip
    shop.at(decided + HOUR)
    assert open_parts(as_of(shop, decided)) == late
    carried = {("acme", "accrued"): (1_000_000, 250)} if decision == "invoice_item" else {}
    assert open_parts(as_of(shop, world.clock())) == carried
    if carried:
        world.sql(
            "INSERT INTO billing.invoice_line (line_id, invoice_id, position, kind, quantity, amount_cents, currency, period_start, "
            "period_end, proposal_id) SELECT 'il_late', invoice_id, 9, 'manual', 1, 250, 'usd', period_start, period_end, %s "
            "FROM billing.invoice_line WHERE quantity = 500000",
            proposal,
        )
        assert open_parts(as_of(shop, world.clock())) == {}
        [charge] = explain(world.connect, "il_late").charges
        assert [one.token_count for one in charge.reports] == [1_000_000]
        assert "il_late" in {
            line.id for charge in explain(world.connect, f"report:{charge.reports[0].id}").charges for line in charge.lines
        }


def test_an_instant_to_come_is_refused(shop: InvoicedShop) -> None:
    with pytest.raises(WindowStillOpen, match="has not come yet"):
        as_of(shop, shop.world.clock() + MINUTE)


def test_finance_gets_it_as_csv(shop: InvoicedShop, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On the terminal or in a file; an instant may cut an hour, of which only what was used before it counts."""
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", shop.world.dsn)
    shop.world.window = last_closed_window(OPENED + 2 * HOUR)
    for minutes, tokens in ((90, 50_000), (110, 20_000)):
        shop.world.use("bolt", tokens, at=OPENED + minutes * MINUTE)
    shop.at(OPENED + 2 * HOUR + 2 * MINUTE)
    shop.world.bill()
    file = tmp_path_factory.mktemp("books") / "accruals.csv"
    for options in ([], ["-o", str(file)]):
        run = CliRunner().invoke(app, ["accruals", "--at", "2026-03-10T11:40Z", *options])
        assert run.exit_code == 0, run.output
        [line] = csv.DictReader(StringIO(file.read_text() if options else run.stdout))
        assert (line["tenant_id"], line["plan"], line["unbilled_tokens"], line["unbilled_amount"]) == (
            "bolt",
            "managed_ai_pure",
            "50000",
            "1.00",
        )
        assert (line["period_start"], line["currency"], line["accrued_tokens"]) == (OPENED.astimezone(UTC).isoformat(), "usd", "0")
