"""Every named constraint of the ledger refuses something that no other one does, so that none can go, or come, unnoticed."""

import re

import psycopg
import pytest

from token_billing.adapters.queries import sql_path
from world import World

FROZEN = "UPDATE billing.usage_report SET {} WHERE tenant_id = 'a'"
ANOTHER = (
    "INSERT INTO billing.usage_report (tenant_id, window_start, side_start, side_end, revision, identifier, row_count, token_count, "
    "frozen_at) SELECT {}, window_start, side_start, {}, {}, 'i', 1, 5, frozen_at FROM billing.usage_report WHERE tenant_id = 'a'"
)
ITEM = "INSERT INTO billing.metered_item (usage_item_id, looked_up_at, problem, period_start) VALUES ('si', now(), {}, {})"
SURPLUS = (
    "INSERT INTO billing.surplus (report_id, identifier, token_count, how, found_at, attempt_count, attempted_at, {}) "
    "SELECT id, 'i', 5, 'read_back', now(), {} FROM billing.usage_report WHERE tenant_id = 'a'"
)
NEWS = "INSERT INTO billing.discrepancy (cause, found_at, {}) VALUES ('{}', now(), {})"
LINKED = (
    "INSERT INTO billing.subscription_link (subscription_id, tenant_id, customer_id, linked_at) VALUES ('sub', 't', 'cus', now()); "
    "INSERT INTO billing.subscription_period (tenant_id, subscription_id, customer_id, usage_item_id, price_id, period_start, period_end, "
    "billed_from, billed_until) VALUES "
)
PERIOD = "('t', 'sub', 'cus', 'si', 'p', '2026-01-01', '2026-02-01', '2026-01-{}', '2026-{}')"
EXCLUDED = "INSERT INTO billing.excluded_tenant (tenant_id, reason, excluded_by, excluded_from, excluded_until) VALUES "
DIFFERENCE = (
    "INSERT INTO billing.meter VALUES ('mtr', 'e', 'c', 'v') ON CONFLICT DO NOTHING; "
    "INSERT INTO billing.meter_difference VALUES ('cus', 'mtr', '2026-01-01T00:00Z', 5, {}, {}, '2026-01-02')"
)
INVOICE = (
    "INSERT INTO billing.invoice (invoice_id, customer_id, status, currency, created_at, total_cents, read_at, compared_at) "
    "VALUES ('in', 'cus', '{}', 'usd', now(), 0, now(), {})"
)
LINE = (
    INVOICE.format("paid", "NULL") + "; INSERT INTO billing.invoice_line (line_id, invoice_id, position, kind, quantity, amount_cents, "
    "currency, period_start, period_end) VALUES ('il', 'in', 0, '{}', 1, 1, 'usd', '{}', '2026-01-02')"
)
CLOSING = "INSERT INTO billing.closing (invoice_id, subscription_id, appeared_at, {}) VALUES ('in', 'sub', now(), {})"
PROPOSAL = "INSERT INTO billing.proposal (kind, subject, token_count, evidence, proposed_at, {}) VALUES ('resend', 's', 1, 'e', now(), {})"
DISCREPANCY = "(1, 'rows_changed', 1, 1, 1, 1, now())"

#: By constraint, what only it refuses.
REFUSED = {
    "about_something": NEWS.format("tenant_id", "link_conflict", "NULL"),
    "changed_rows_are_counted": NEWS.format("report_id", "rows_changed", "1"),
    "resolved_at_a_time": NEWS.format("tenant_id, resolved_by", "link_conflict", "'t', 'ann'"),
    "one_open_discrepancy_per_object_and_cause": NEWS.format("tenant_id", "link_conflict", "'t'), ('link_conflict', now(), 't'"),
    "inside_its_period": LINKED + PERIOD.format("10", "02-02"),
    "one_item_at_a_time": LINKED + PERIOD.format("10", "01-20") + ", " + PERIOD.format("19", "01-21"),
    "read_period_is_whole": (
        "INSERT INTO billing.item_reading (usage_item_id, read_at, price_id, period_start) VALUES ('si', now(), 'p', '2026-01-01')"
    ),
    "excluded_for_a_time": EXCLUDED + "('t', 'internal', 'ann', '2026-01-02', '2026-01-02')",
    "excluded_once_at_a_time": EXCLUDED + "('t', 'internal', 'ann', '2026-01-01', NULL), ('t', 'internal', 'ann', '2026-01-02', NULL)",
    "one_newest_price_by_name": (
        "INSERT INTO billing.catalogue_price (price_id, name, is_newest, learned_at) "
        "VALUES ('p', 'solo', true, now()), ('q', 'solo', true, now())"
    ),
    "pin_is_whole": "UPDATE billing.ledger SET pinned_at = NULL",
    "later_epochs_are_recoveries": "UPDATE billing.ledger SET epoch = 2",
    "no_account_without_mode": "INSERT INTO billing.ledger (system_identifier, adopted_at, stripe_account_id) VALUES (1, now(), 'x')",
    "frozen_after_it_closed": "INSERT INTO billing.fence SELECT window_start, 9, snapshot, window_start FROM billing.fence",
    "period_is_whole": ITEM.format("'none'", "now()"),
    "metered_or_a_problem": ITEM.format("NULL", "NULL"),
    "package_is_whole": (
        "INSERT INTO billing.price (price_id, currency, mode, tiers, package_size, learned_at) "
        """VALUES ('p', 'usd', 'per_unit', '[[null, "1", "0"]]', 10, now())"""
    ),
    "period_goes_forward": (
        "INSERT INTO billing.invoiced_period (usage_item_id, invoice_id, invoice_status, seen_at, period_start, period_end) "
        "VALUES ('si', 'in', 'paid', now(), now(), now())"
    ),
    "one_report_per_tenant_window_side_and_revision": ANOTHER.format("tenant_id", "side_end", "revision"),
    "held_by_a_fence": ANOTHER.format("tenant_id", "side_end", "7"),
    "side_inside_window": ANOTHER.format("'c'", "side_end + interval '1 second'", "revision"),
    "event_inside_side": FROZEN.format("event_time = side_end"),
    "attempted_whole": FROZEN.format("attempt_count = 1"),
    "meters_have_a_meter": FROZEN.format("event_name = 'e'"),
    "one_usage_record_per_item_and_time": (
        "UPDATE billing.usage_report SET sink = 'usage_records', customer_id = 'c', usage_item_id = 'si', event_time = side_start, "
        "meter_id = NULL, event_name = NULL, attempt_count = 1, first_attempted_at = now()"
    ),
    "only_attempts_arrive": FROZEN.format("may_have_arrived = true"),
    "only_the_unresolved_are_absent": FROZEN.format("absent_since = now()"),
    "an_answer_needs_an_attempt": FROZEN.format("state = 'unresolved'"),
    "only_nothing_is_accepted_unsent": FROZEN.format("state = 'accepted', accepted_at = now()"),
    "accepted_has_a_time": FROZEN.format("accepted_at = now()"),
    "billed_has_a_time": FROZEN.format("billed_at = now()"),
    "quarantined_has_a_reason": FROZEN.format("state = 'quarantined', quarantined_at = now()"),
    "answered_has_an_outcome": "UPDATE billing.push_attempt SET outcome = NULL",
    "one_open_discrepancy_per_report_and_cause": (
        "INSERT INTO billing.discrepancy (report_id, cause, expected_token_count, found_token_count, expected_row_count, found_row_count, "
        f"found_at) VALUES {DISCREPANCY}, {DISCREPANCY}"
    ),
    "decided_whole": (
        "INSERT INTO billing.hold (report_id, reason, token_count, limit_tokens, held_at, decision) "
        "VALUES (1, 'absurd_total', 1, 1, now(), 'approved')"
    ),
    "resumed_whole": "INSERT INTO billing.pause (paused_by, paused_at, reason, resumed_at) VALUES ('ann', now(), 'why', now())",
    "paused_once_at_a_time": (
        "INSERT INTO billing.pause (paused_by, paused_at, reason) VALUES ('ann', now(), 'why'), ('bob', now(), 'why')"
    ),
    "tried_at_a_time": SURPLUS.format("key_number", "1, NULL, 0"),
    "only_tries_end_it": SURPLUS.format("cancelled_at", "0, NULL, now()"),
    "cancelled_or_given_up": SURPLUS.format("cancelled_at, gave_up_at, message", "1, now(), now(), now(), 'm'"),
    "giving_up_has_a_reason": SURPLUS.format("gave_up_at", "1, now(), now()"),
    "resolved_by_somebody": SURPLUS.format("resolved_at", "1, now(), now()"),
    "cancelled_is_resolved": SURPLUS.format("cancelled_at, resolved_at, resolved_by", "1, now(), now(), now(), 'ann'"),
    "only_what_counts_is_confirmed": FROZEN.format("confirmed_at = now()"),
    "it_differs": DIFFERENCE.format(5, "'2026-01-02'"),
    "seen_in_order": DIFFERENCE.format(4, "'2026-01-03'"),
    "concluded_from_what_was_seen": DIFFERENCE.format(4, "'2026-01-02'").replace("'2026-01-02')", "'2026-01-02', '2026-01-03')"),
    "read_after_its_end": (
        "INSERT INTO billing.meter VALUES ('mtr', 'e', 'c', 'v') ON CONFLICT DO NOTHING; "
        "INSERT INTO billing.period_reading VALUES ('cus', 'mtr', '2026-01-01', '2026-02-01', '2026-01-31')"
    ),
    "money_has_a_currency": NEWS.format("tenant_id, found_cents", "duplicate", "'t', 1"),
    "only_a_final_invoice_is_compared": INVOICE.format("draft", "now()"),
    "one_line_at_a_place": (LINE.format("manual", "2026-01-01") + ", ('im', 'in', 0, 'manual', 1, 1, 'usd', '2026-01-01', '2026-01-02')"),
    "usage_names_its_item": LINE.format("usage", "2026-01-01"),
    "a_line_goes_forward": LINE.format("flat", "2026-01-03"),
    "released_to_a_time": CLOSING.format("released_as", "'complete'"),
    "only_what_is_missing_is_told": CLOSING.format("told_at", "now()"),
    "proposal_decided_whole": PROPOSAL.format("decision", "'resend'"),
    "only_decided_is_applied": PROPOSAL.format("applied_at", "now()"),
    "withdrawn_or_decided": PROPOSAL.format("withdrawn_at, decision, decided_by, decided_at", "now(), 'resend', 'ann', now()"),
    "proposed_money_has_a_currency": PROPOSAL.format("amount_cents", "1"),
    "proposed_once_at_a_time": PROPOSAL.format("asked_at", "now()), ('resend', 's', 1, 'e', now(), now()"),
    "only_attempts_make_anything": PROPOSAL.format("may_have_arrived", "true"),
    "refused_or_applied": PROPOSAL.format("attempt_count, may_have_arrived, refused_at, attempted_at", "1, true, now(), now()"),
    "billable_usage": "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) VALUES ('a', 'm', -1, 0, now())",
}


def test_every_named_constraint_refuses_what_only_it_refuses(world: World) -> None:
    """b's report, id 1, is accepted, a's is frozen."""
    world.link("b")
    world.use("b", 5)
    world.freeze()
    world.push()
    world.use("a", 5)
    world.freeze()
    refused_by = {}
    for name, statement in REFUSED.items():
        with pytest.raises(psycopg.IntegrityError) as refusal:
            world.sql(statement)
        refused_by[name] = refusal.value.diag.constraint_name
    assert refused_by == {name: name for name in REFUSED}


def test_no_named_constraint_is_left_out() -> None:
    code = "\n".join(file.read_text() for file in sorted(sql_path("migrations").glob("*.sql")))
    named = re.findall(r"CONSTRAINT (\w+) (?:CHECK|UNIQUE|FOREIGN KEY|EXCLUDE)|CREATE UNIQUE INDEX (\w+)", code)
    assert {constraint or index for constraint, index in named} == set(REFUSED)
