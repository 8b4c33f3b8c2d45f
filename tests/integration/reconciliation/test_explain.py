"""Every invoice line is explained down to the rows, and every row and report up to the line that bills it; what differs is said."""

import json
from datetime import timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from billing_airflow.__main__ import app
from billing_airflow.explanation_table import as_record, as_text
from invoiced_shop import OPENED, InvoicedShop
from token_billing.errors import NothingToExplain
from token_billing.explanation import Explanation
from token_billing.model import Disowned, RevocationCause
from token_billing.stages.explain import explain
from token_billing.stages.revoke import revoke
from token_billing.windows import HOUR
from world import World

MINUTE = timedelta(minutes=1)


@pytest.fixture
def shop(world: World) -> InvoicedShop:
    """Acme (Bundled) used 6 million tokens in three hours, one of them with late usage, and bolt (Pure) some; their month is invoiced."""
    shop = InvoicedShop.opened(world)
    shop.subscribe(acme="bundled", bolt="pure")
    shop.use(("acme", 3_000_000), ("acme", 1_000_000), ("bolt", 70_000))
    shop.use(("acme", 500_000))  # late: a revision of its own
    shop.use(("acme", 1_000_000), at=OPENED + 5 * HOUR)
    shop.use(("acme", 500_000), ("bolt", 30_000), at=shop.period_end - 30 * MINUTE)
    return shop


@pytest.fixture
def invoiced(shop: InvoicedShop) -> InvoicedShop:
    shop.final()
    shop.read()
    return shop


def told(shop: InvoicedShop, name: str, **options: Any) -> Explanation:
    return explain(shop.world.connect, name, **options)


def usage_lines(shop: InvoicedShop, tenant: str) -> list[str]:
    return [
        line_id
        for (line_id,) in shop.world.sql(
            "SELECT line_id FROM billing.invoice_line JOIN billing.invoice USING (invoice_id) "
            "WHERE kind = 'usage' AND customer_id = %s AND billing_reason = 'subscription_cycle' ORDER BY position",
            shop.customer(tenant),
        )
    ]


def rows_of(shop: InvoicedShop, tenant: str) -> list[int]:
    return [row for (row,) in shop.world.sql("SELECT id FROM token_usage WHERE tenant_id = %s ORDER BY id", tenant)]


def test_a_line_leads_to_its_reports_and_every_row(invoiced: InvoicedShop) -> None:
    """Each tier's line shows the whole charge: four reports of five rows make up 5 million free tokens and 1 million that cost $5."""
    free, paid = usage_lines(invoiced, "acme")
    for name in (free, paid):
        explanation = told(invoiced, name, with_row_ids=True)
        [charge] = explanation.charges
        assert [(line.quantity, line.amount_cents) for line in charge.lines] == [(5_000_000, 0), (1_000_000, 500)]
        assert [line.amount_cents for line in charge.rated] == [0, 500]
        assert [(one.token_count, one.revision) for one in charge.reports] == [(4_000_000, 0), (500_000, 1), (1_000_000, 0), (500_000, 0)]
        assert sorted(row for one in charge.reports for row in (one.held and one.held.ids) or ()) == rows_of(invoiced, "acme")
        assert explanation.differences == []


def test_a_row_leads_back_to_the_line_that_bills_it(invoiced: InvoicedShop) -> None:
    """Through the report whose fence saw it first, and no other."""
    for row in rows_of(invoiced, "acme") + rows_of(invoiced, "bolt"):
        explanation = told(invoiced, f"row:{row}", with_row_ids=True)
        assert explanation.row is not None and explanation.report is not None and explanation.report.held is not None
        assert row in (explanation.report.held.ids or ())
        [charge] = explanation.charges
        assert {line.id for line in charge.lines} == set(usage_lines(invoiced, explanation.row.tenant_id))
        assert (explanation.differences, explanation.next_step) == ([], None)


def test_an_invoice_leads_to_all_its_lines(invoiced: InvoicedShop) -> None:
    """Those without usage in them, too."""
    [(invoice,)] = invoiced.world.sql(
        "SELECT DISTINCT invoice_id FROM billing.invoice_line WHERE line_id = %s", usage_lines(invoiced, "acme")[0]
    )
    charges = told(invoiced, invoice).charges
    assert [(charge.lines[0].kind, len(charge.lines), len(charge.reports)) for charge in charges] == [("flat", 1, 0), ("usage", 2, 4)]
    assert "no usage is in this line" in as_text(told(invoiced, invoice))


def test_a_report_goes_by_every_name_it_ever_had(shop: InvoicedShop) -> None:
    """It was disowned, taken back and sent anew: both identifiers lead to it, with what became of each."""
    [(report_id, identifier)] = shop.world.sql("SELECT id, identifier FROM billing.usage_report WHERE token_count = 70000")
    revoke(shop.world.connect, Disowned(report_id, RevocationCause.OPERATOR, "tried"), shop.world.clock, revoked_by="ann", resend=True)
    shop.use(at=OPENED + HOUR + 30 * MINUTE)
    [(newer,)] = shop.world.sql("SELECT identifier FROM billing.usage_report WHERE id = %s", report_id)
    assert newer != identifier
    for name in (identifier, newer, f"report:{report_id}"):
        explanation = told(shop, name)
        assert explanation.report is not None and (explanation.report.id, explanation.report.generation) == (report_id, 1)
        assert [one.outcome for one in explanation.attempts] == ["accepted", "accepted"]
        assert [(one.generation, one.revoked_by) for one in explanation.taken_back] == [(0, "ann")]
    assert "generation 0 was taken back" in as_text(explanation)


def test_what_is_on_no_invoice_says_why(shop: InvoicedShop) -> None:
    """Not frozen, set aside, billed in a period that is still open; each with what comes next."""
    [(open_row,)] = shop.world.sql("SELECT min(id) FROM token_usage WHERE tenant_id = 'bolt'")
    assert "has not ended" in (told(shop, f"row:{open_row}").next_step or "")
    shop.world.use("ghost", 5)
    [(row,)] = shop.world.sql("SELECT id FROM token_usage WHERE tenant_id = 'ghost'")
    explanation = told(shop, f"row:{row}")
    assert explanation.report is None and "no fence has seen it yet" in (explanation.next_step or "")
    shop.world.bill()
    explanation = told(shop, f"row:{row}")
    assert "set aside as unknown_tenant" in (explanation.next_step or "") and explanation.differences == []


def test_rows_that_were_changed_are_told(invoiced: InvoicedShop) -> None:
    """A row that lost its mark, and one whose tokens changed: the report says what it froze, and what there is."""
    first, second = rows_of(invoiced, "bolt")
    for statement in (
        "ALTER TABLE token_usage DISABLE TRIGGER USER",
        f"UPDATE token_usage SET billed = false WHERE id = {first}",
        f"UPDATE token_usage SET input_tokens = 1 WHERE id = {second}",
    ):
        invoiced.world.sql(statement)
    [name] = usage_lines(invoiced, "bolt")
    assert [one.partition(":")[0] for one in told(invoiced, name).differences] == [
        f"report {report} froze {tokens} tokens of 1 rows, and holds {found} now"
        for report, tokens, found in (
            (told(invoiced, f"row:{first}").report.id, "70,000", "0 of 0 rows"),  # type: ignore[union-attr]
            (told(invoiced, f"row:{second}").report.id, "30,000", "1 of 1 rows"),  # type: ignore[union-attr]
        )
    ]
    assert any("the row is not marked billed" in one for one in told(invoiced, f"row:{first}").differences)


def test_a_line_that_bills_other_usage_than_ours_is_told(shop: InvoicedShop) -> None:
    """Somebody else sent an event to bolt's meter."""
    shop.send_event("bolt", 1_000, shop.period_end - 5 * MINUTE)
    shop.final()
    shop.read()
    [name] = usage_lines(shop, "bolt")
    assert told(shop, name).differences == ["the lines bill 101,000 tokens, the reports of the period that Stripe accepted are 100,000"]


def test_usage_that_stripe_took_too_late_is_told_apart(invoiced: InvoicedShop) -> None:
    """It was accepted when the invoice was final, so it is not on it."""
    shop = invoiced
    [(report_id,)] = shop.world.sql("SELECT id FROM billing.usage_report WHERE token_count = 30000")
    shop.world.sql(
        "UPDATE billing.invoice SET finalized_at = (SELECT accepted_at FROM billing.usage_report WHERE id = %s) - interval '1 s'", report_id
    )
    shop.world.sql("UPDATE billing.invoice_line SET quantity = 70000, amount_cents = 140 WHERE quantity = 100000")
    [name] = usage_lines(shop, "bolt")
    explanation = told(shop, name)
    assert [one.id for one in explanation.charges[0].too_late] == [report_id]
    assert explanation.differences == [f"report {report_id}, 30,000 tokens, was accepted when the invoice was final: it is not on it"]


def test_a_line_made_by_a_proposal_leads_to_its_reports(invoiced: InvoicedShop) -> None:
    """And they lead to the line."""
    world = invoiced.world
    [(report_id,)] = world.sql("SELECT id FROM billing.usage_report WHERE token_count = 30000")
    [(proposal_id,)] = world.sql(
        "INSERT INTO billing.proposal (kind, subject, report_ids, token_count, evidence, proposed_at, decision, decided_by, decided_at) "
        "VALUES ('late_usage', 'bolt', %s, 30000, 'late', now(), 'invoice_item', 'ann', now()) RETURNING id",
        [report_id],
    )
    world.sql(
        "INSERT INTO billing.invoice_line "
        "(line_id, invoice_id, position, kind, quantity, amount_cents, currency, period_start, period_end, proposal_id) "
        "SELECT 'il_late', invoice_id, 9, 'manual', 1, 60, 'usd', period_start, period_end, %s "
        "FROM billing.invoice_line WHERE quantity = 100000",
        proposal_id,
    )
    [charge] = told(invoiced, "il_late").charges
    assert charge.decided is not None and charge.decided.decided_by == "ann" and [one.id for one in charge.reports] == [report_id]
    assert "il_late" in {line.id for charge in told(invoiced, f"report:{report_id}").charges for line in charge.lines}


def test_a_name_that_nobody_knows_says_what_could_be_asked(world: World) -> None:
    for name in ("il_nobody", "usage-nobody", "report:999999", "row:999999999", "report:x", "row:", "row:1e3", "", "report:-1"):
        with pytest.raises(NothingToExplain, match=r"row|report"):
            explain(world.connect, name)


def test_programs_get_whole_numbers_and_times_in_iso_8601(invoiced: InvoicedShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints what the function returns; with --rows every id."""
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", invoiced.world.dsn)
    paid = usage_lines(invoiced, "acme")[1]
    run = CliRunner().invoke(app, ["explain", paid, "--json", "--rows"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found == as_record(told(invoiced, paid, with_row_ids=True))
    [charge] = found["charges"]
    assert (charge["token_count"], charge["report_count"], charge["period_start"]) == (6_000_000, 4, "2026-03-10T10:00:00+00:00")
    assert sorted(row for one in charge["reports"] for row in one["rows"]["ids"]) == rows_of(invoiced, "acme")

    table = CliRunner().invoke(app, ["explain", paid])
    assert f"{paid} *" in table.stdout and table.stdout.rstrip().endswith("everything adds up")
    refused = CliRunner().invoke(app, ["explain", "il_nobody"])
    assert refused.exit_code == 1 and "not explained: 'il_nobody' is no name" in refused.output
