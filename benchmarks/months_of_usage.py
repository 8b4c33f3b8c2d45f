"""Months of billed usage, as a ledger that has run for so long holds them: rows, fences, reports, invoices and their lines.

Calls come in bursts of ten, as those of agents do, and a few tenants make most of them. A hundredth of an hour's rows is recorded after
its first fence, so each hour has a second revision. What freeze, push and mark_billed would have written is written by set-shaped SQL:
this is for measuring what reads it."""

from datetime import datetime

from benchmarks.comparison import Say
from token_billing.adapters.clock import system_clock
from token_billing.adapters.database import Connect
from token_billing.stages.adopt import adopt
from token_billing.windows import HOUR

_ROWS_OF_HOUR = """
INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, billed, created_at)
SELECT 'org_' || substr(md5(floor(%(tenants)s * power((hashint8extended(n / 10, 1) & 1048575)::float8 / 1048576, 3))::bigint::text), 1, 16),
       (ARRAY['claude-sonnet-4-5', 'gpt-5-mini', 'llama-4-maverick', 'mistral-small-3.2'])[1 + (hashint8extended(n, 2) & 3)],
       1 + (hashint8extended(n, 3) & 4095), hashint8extended(n, 4) & 1023, true,
       %(start)s::timestamptz + interval '1 hour' * ((n - %(first)s)::float8 / %(rows)s)
FROM generate_series(%(first)s::bigint, %(first)s::bigint + %(rows)s - 1) AS n
WHERE (n %% 100 = 50) = %(is_late)s
"""
_FENCE = """
INSERT INTO billing.fence (window_start, revision, snapshot, frozen_at)
VALUES (%(start)s, %(revision)s, billing.recording_snapshot(), %(start)s::timestamptz + interval '61 minutes')
"""
_METER = "INSERT INTO billing.meter VALUES ('mtr_bench', 'tokens', 'stripe_customer_id', 'value')"
_PRICE = """
INSERT INTO billing.price (price_id, currency, mode, tiers, learned_at)
VALUES ('price_bench', 'usd', 'graduated', '[[5000000, "0", "0"], [null, "0.0005", "0"]]', now())
"""
_REPORTS = """
INSERT INTO billing.usage_report
    (tenant_id, window_start, side_start, side_end, revision, identifier, row_count, token_count, frozen_at, state,
     sink, customer_id, event_name, meter_id, usage_item_id, event_time, first_attempted_at, attempt_count, accepted_at, billed_at)
SELECT tenant_id, hour, hour, hour + interval '1 hour', revision, 'usage-' || md5(hour || tenant_id || revision), count(*),
       sum(input_tokens + output_tokens), hour + interval '61 minutes', 'billed',
       'billing_meters', 'cus_' || tenant_id, 'tokens', 'mtr_bench', 'si_' || tenant_id,
       hour + interval '30 seconds' + revision * interval '1 minute', hour + interval '62 minutes', 1,
       hour + interval '62 minutes', hour + interval '63 minutes'
FROM (SELECT usage.*, fence.window_start AS hour,
             CASE WHEN pg_visible_in_snapshot(recorded_xid, fence.snapshot) THEN 0 ELSE 1 END AS revision
      FROM token_usage usage
      JOIN billing.fence ON fence.revision = 0
       AND fence.window_start = date_bin(interval '1 hour', usage.created_at, timestamptz '2000-01-01T00:00Z')) usage
GROUP BY tenant_id, hour, revision
ORDER BY hour, revision
"""
_INVOICES = """
INSERT INTO billing.invoice (invoice_id, customer_id, subscription_id, status, currency, created_at, finalized_at, total_cents, read_at)
SELECT 'in_' || tenant_id || to_char(month, '_YYYYMM'), 'cus_' || tenant_id, 'sub_' || tenant_id, 'paid', 'usd',
       month + interval '1 month', month + interval '1 month 1 hour', 0, now()
FROM (SELECT DISTINCT tenant_id, date_trunc('month', window_start, 'UTC') AS month FROM billing.usage_report) billed
"""
_LINES = """
INSERT INTO billing.invoice_line
    (line_id, invoice_id, position, kind, usage_item_id, price_id, quantity, amount_cents, currency, period_start, period_end)
SELECT 'il_' || usage.tenant_id || to_char(usage.month, '_YYYYMM') || tier.position,
       'in_' || usage.tenant_id || to_char(usage.month, '_YYYYMM'), tier.position, 'usage', 'si_' || usage.tenant_id, 'price_bench',
       tier.quantity, round(tier.quantity * tier.position * 0.0005), 'usd', usage.month, usage.month + interval '1 month'
FROM (SELECT tenant_id, date_trunc('month', window_start, 'UTC') AS month, sum(token_count)::bigint AS tokens
      FROM billing.usage_report GROUP BY 1, 2) usage
CROSS JOIN LATERAL (VALUES (0, least(usage.tokens, 5000000)), (1, usage.tokens - 5000000)) tier (position, quantity)
WHERE tier.position = 0 OR tier.quantity > 0
"""


def make_months(connect: Connect, start: datetime, hour_count: int, row_count: int, tenant_count: int, say: Say) -> None:
    """Fills a database that holds the application's empty tables: so many rows in so many hours from `start` on."""
    adopt(connect, system_clock)
    rows_of_hour = max(10, row_count // hour_count)
    with connect() as db:
        db.autocommit = True
        db.execute("ALTER TABLE token_usage SET UNLOGGED")  # a server that is thrown away keeps no log of it
        db.execute("SET session_replication_role = replica")  # neither triggers nor foreign keys slow the filling down
        db.execute("SET work_mem = '512MB'")
        for number in range(hour_count):
            hour = {"start": start + number * HOUR, "first": number * rows_of_hour, "rows": rows_of_hour, "tenants": tenant_count}
            for revision, is_late in enumerate((False, True)):
                db.execute(_ROWS_OF_HOUR, {**hour, "is_late": is_late})
                db.execute(_FENCE, {**hour, "revision": revision})
            if number % 720 == 719:
                say(f"{(number + 1) * rows_of_hour:,} rows")
        for step in (_METER, _PRICE, _REPORTS, _INVOICES, _LINES):
            db.execute(step)
        db.execute("VACUUM ANALYZE")
        db.execute("CHECKPOINT")
    say("reports, invoices and lines are made")
