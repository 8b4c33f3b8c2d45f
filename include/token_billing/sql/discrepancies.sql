-- name: note
-- What does not fit together about a tenant or an object at Stripe, once as long as it is open.
INSERT INTO billing.discrepancy (cause, tenant_id, stripe_id, details, found_at)
VALUES (%(cause)s, %(tenant_id)s, %(stripe_id)s, %(details)s, %(now)s)
ON CONFLICT (cause, coalesce(tenant_id, ''), coalesce(stripe_id, ''), coalesce(scope, ''), coalesce(window_start, '-infinity'))
    WHERE report_id IS NULL AND resolved_at IS NULL
DO UPDATE SET details = EXCLUDED.details

-- name: note_about_report
-- What does not fit together about a report, once as long as it is open.
INSERT INTO billing.discrepancy (cause, report_id, tenant_id, stripe_id, details, expected_token_count, found_at)
SELECT %(cause)s, report.id, report.tenant_id, %(stripe_id)s, %(details)s, report.token_count, %(now)s
FROM billing.usage_report report WHERE report.id = %(report_id)s
ON CONFLICT (report_id, cause) WHERE resolved_at IS NULL
-- safeguard: an error about another identifier is news
DO UPDATE SET stripe_id = EXCLUDED.stripe_id, details = EXCLUDED.details WHERE discrepancy.stripe_id IS DISTINCT FROM EXCLUDED.stripe_id

-- name: settle_gone
-- Discrepancies of a cause about a tenant that are no more, but for those that are.
UPDATE billing.discrepancy SET resolved_at = %(now)s
WHERE cause = %(cause)s AND tenant_id = %(tenant_id)s AND report_id IS NULL AND resolved_at IS NULL
  AND stripe_id <> ALL(%(still)s::text[])

-- name: beyond_the_facts
-- Attempted reports that went elsewhere than the facts say now, or that a boundary runs through; each once.
INSERT INTO billing.discrepancy (cause, report_id, tenant_id, stripe_id, details, expected_token_count, found_at)
SELECT CASE WHEN crossed.instant IS NOT NULL THEN 'boundary_inside_report' ELSE 'sent_elsewhere' END,
       report.id, report.tenant_id, coalesce(period.subscription_id, report.usage_item_id),
       CASE WHEN crossed.instant IS NOT NULL
            THEN format('a boundary at %%s lies inside the report, which was sent before that was known', crossed.instant)
            ELSE format('sent to item %%s; the tenant was billed by %%s', report.usage_item_id, coalesce(period.usage_item_id, 'none')) END,
       report.token_count, %(now)s
FROM billing.usage_report report
JOIN tenants tenant ON tenant.id = report.tenant_id
JOIN billing.subscription_link link ON link.subscription_id = tenant.stripe_subscription_id AND link.tenant_id = tenant.id
LEFT JOIN billing.subscription_period period
  ON period.tenant_id = report.tenant_id AND period.billed_from <= report.event_time AND report.event_time < period.billed_until
LEFT JOIN LATERAL (
    SELECT min(instant) AS instant
    FROM billing.subscription_period other, LATERAL (VALUES (other.billed_from), (other.billed_until)) boundary (instant)
    WHERE other.tenant_id = report.tenant_id AND report.side_start < instant AND instant < report.side_end
) crossed ON true
WHERE report.tenant_id = ANY(%(tenant_ids)s::text[]) AND report.attempt_count > 0 AND report.state <> 'quarantined'
  AND report.window_start > %(since)s
  AND (crossed.instant IS NOT NULL OR period.id IS NULL OR period.usage_item_id <> report.usage_item_id
       OR period.meter_id IS DISTINCT FROM report.meter_id)
  AND NOT EXISTS (SELECT FROM billing.discrepancy known
                  WHERE known.report_id = report.id AND known.cause IN ('boundary_inside_report', 'sent_elsewhere'))
ON CONFLICT (report_id, cause) WHERE resolved_at IS NULL DO NOTHING

-- name: settle_not_found
-- What a comparison did not find again in the scopes that it looked at has gone away by itself.
UPDATE billing.discrepancy known SET resolved_at = %(now)s
WHERE known.scope = ANY(%(scopes)s::text[]) AND known.resolved_at IS NULL
  AND NOT EXISTS (
      SELECT FROM jsonb_to_recordset(%(found)s::jsonb) AS found (
          cause text, scope text, tenant_id text, stripe_id text, report_id bigint, window_start timestamptz)
      WHERE found.cause = known.cause AND found.report_id IS NOT DISTINCT FROM known.report_id
        AND (known.report_id IS NOT NULL
             OR (found.scope, found.tenant_id, found.stripe_id, found.window_start)
                IS NOT DISTINCT FROM (known.scope, known.tenant_id, known.stripe_id, known.window_start)))

-- name: note_differences
-- What a comparison found, once each as long as it is open; says how many are news.
-- What a person settled comes back only with other figures.
WITH found AS (
    SELECT DISTINCT ON (cause, report_id, scope, tenant_id, stripe_id, window_start) *
    FROM jsonb_to_recordset(%(found)s::jsonb) AS found (
        cause text, scope text, details text, tenant_id text, stripe_id text, report_id bigint, window_start timestamptz,
        expected_tokens bigint, found_tokens bigint, expected_cents bigint, found_cents bigint, currency text)
), known AS (
    UPDATE billing.discrepancy known
    SET scope = found.scope, details = found.details, expected_token_count = found.expected_tokens,
        found_token_count = found.found_tokens, expected_cents = found.expected_cents, found_cents = found.found_cents,
        currency = found.currency
    FROM found
    WHERE known.resolved_at IS NULL AND known.cause = found.cause AND known.report_id IS NOT DISTINCT FROM found.report_id
      AND (known.report_id IS NOT NULL
           OR (found.scope, found.tenant_id, found.stripe_id, found.window_start)
              IS NOT DISTINCT FROM (known.scope, known.tenant_id, known.stripe_id, known.window_start))
), noted AS (
    INSERT INTO billing.discrepancy
        (cause, scope, details, tenant_id, stripe_id, report_id, window_start, expected_token_count, found_token_count, expected_cents,
         found_cents, currency, found_at)
    SELECT cause, scope, details, tenant_id, stripe_id, report_id, window_start, expected_tokens, found_tokens, expected_cents,
           found_cents, currency, %(now)s
    FROM found
    -- safeguard: what a person settled stays settled
    WHERE NOT EXISTS (
        SELECT FROM billing.discrepancy settled
        WHERE settled.resolved_by IS NOT NULL AND settled.cause = found.cause
          AND settled.report_id IS NOT DISTINCT FROM found.report_id
          -- safeguard: what was settled before a report was sent anew
          AND NOT EXISTS (SELECT FROM billing.usage_report report
                          WHERE report.id = found.report_id AND report.accepted_at > settled.resolved_at)
          AND (settled.scope, settled.tenant_id, settled.stripe_id, settled.window_start, settled.expected_token_count,
               settled.found_token_count, settled.expected_cents, settled.found_cents)
              IS NOT DISTINCT FROM (found.scope, found.tenant_id, found.stripe_id, found.window_start, found.expected_tokens,
                                    found.found_tokens, found.expected_cents, found.found_cents))
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT count(*) FROM noted

-- name: open_discrepancies
-- All that waits for a person, the newest first.
SELECT id, cause, tenant_id, report_id, stripe_id, details, expected_token_count, found_token_count, found_at,
       scope, window_start, expected_cents, found_cents, currency
FROM billing.discrepancy WHERE resolved_at IS NULL
ORDER BY found_at DESC, id DESC

-- name: settle_about_report
-- A person has dealt with what was said of a report.
UPDATE billing.discrepancy SET resolved_at = %(now)s, resolved_by = %(by)s
WHERE report_id = %(report_id)s AND cause = %(cause)s AND resolved_at IS NULL

-- name: settle_missing_hour
-- What Stripe's meter lacks of an hour that a person has billed otherwise, or written off, because its invoice lacks it.
UPDATE billing.discrepancy missing SET resolved_at = %(now)s, resolved_by = %(by)s
FROM billing.discrepancy found
JOIN billing.invoice ON invoice.invoice_id = found.scope
JOIN billing.metered_item item ON item.usage_item_id = %(usage_item_id)s
WHERE found.id = %(id)s AND found.cause = 'missing_hour'
  AND missing.cause IN ('missing_at_stripe', 'rejected_asynchronously') AND missing.resolved_at IS NULL
  -- safeguard: what another meter or hour lacks is not settled
  AND missing.window_start = found.window_start AND starts_with(missing.scope, concat_ws(' ', invoice.customer_id, item.meter_id, ''))

-- name: settle
-- A person has dealt with it.
UPDATE billing.discrepancy SET resolved_at = %(now)s, resolved_by = %(by)s WHERE id = %(id)s AND resolved_at IS NULL
