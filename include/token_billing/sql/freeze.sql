-- name: take_turn
-- Freezes one window at a time. LOCK TABLE takes no snapshot, so the REPEATABLE READ snapshot is taken after the wait.
-- safeguard: one freeze at a time
LOCK TABLE billing.fence IN SHARE ROW EXCLUSIVE MODE

-- name: last_fence
-- The latest fence of a window.
SELECT revision, snapshot::text
FROM billing.fence
WHERE window_start = %(window_start)s
ORDER BY revision DESC
LIMIT 1

-- name: boundaries
-- The instants inside a window at which the billing of a tenant's usage begins, changes or ends.
SELECT tenant.id, array_agg(DISTINCT boundary.instant ORDER BY boundary.instant)
FROM billing.subscription_period period
CROSS JOIN LATERAL (VALUES (period.billed_from), (period.billed_until)) boundary (instant)
JOIN tenants tenant ON tenant.id = period.tenant_id
-- Who was relinked by hand since is billed by what the application says now.
JOIN billing.subscription_link link ON link.subscription_id = tenant.stripe_subscription_id AND link.tenant_id = tenant.id
WHERE (period.billed_from > %(window_start)s AND period.billed_from < %(window_end)s
       OR period.billed_until > %(window_start)s AND period.billed_until < %(window_end)s)
  AND boundary.instant > %(window_start)s AND boundary.instant < %(window_end)s
GROUP BY tenant.id

-- name: unfrozen_totals
-- Tokens and rows per tenant that no fence of the window has seen, but for tenants whose hour has sides.
SELECT tenant_id, count(*), (sum(input_tokens) + sum(output_tokens))::bigint
FROM token_usage
WHERE created_at >= %(window_start)s AND created_at < %(window_end)s
  -- safeguard: what another job billed
  AND NOT billed
  -- safeguard: the fence in freezing
  AND (%(last_snapshot)s::pg_snapshot IS NULL OR NOT pg_visible_in_snapshot(recorded_xid, %(last_snapshot)s::pg_snapshot))
  AND tenant_id <> ALL(%(divided)s::text[])
GROUP BY tenant_id

-- name: unfrozen_side_totals
-- The same of the sides of tenants whose hour has some.
SELECT usage.tenant_id, side.side_start, side.side_end, count(*), (sum(usage.input_tokens) + sum(usage.output_tokens))::bigint
FROM unnest(%(tenant_ids)s::text[], %(side_starts)s::timestamptz[], %(side_ends)s::timestamptz[]) AS side (tenant_id, side_start, side_end)
JOIN token_usage usage
  -- safeguard: usage lies on one side
  ON usage.tenant_id = side.tenant_id AND usage.created_at >= side.side_start AND usage.created_at < side.side_end
WHERE usage.created_at >= %(window_start)s AND usage.created_at < %(window_end)s
  AND NOT usage.billed
  AND (%(snapshot)s::pg_snapshot IS NULL OR pg_visible_in_snapshot(usage.recorded_xid, %(snapshot)s::pg_snapshot))
  AND (%(last_snapshot)s::pg_snapshot IS NULL OR NOT pg_visible_in_snapshot(usage.recorded_xid, %(last_snapshot)s::pg_snapshot))
GROUP BY usage.tenant_id, side.side_start, side.side_end

-- name: reports_to_split
-- Reports that were never attempted and that a boundary, learned of since, runs through; with the fences that say which rows they hold.
SELECT report.id, report.tenant_id, report.side_start, report.side_end, report.revision, report.row_count, report.token_count,
       fence.snapshot::text, earlier.snapshot::text
FROM billing.usage_report report
JOIN billing.fence fence ON fence.window_start = report.window_start AND fence.revision = report.revision
LEFT JOIN billing.fence earlier ON earlier.window_start = report.window_start AND earlier.revision = report.revision - 1
-- safeguard: only what was never attempted is split
WHERE report.window_start = %(window_start)s AND report.tenant_id = ANY(%(tenant_ids)s::text[])
  AND report.state = 'frozen' AND report.attempt_count = 0 AND NOT report.forgotten AND report.generation = 0
ORDER BY report.id
FOR UPDATE OF report

-- name: void_report
-- A report that was never attempted makes room for its sides; who was asked about it is asked about them.
WITH unasked AS (DELETE FROM billing.hold WHERE report_id = %(id)s)
DELETE FROM billing.usage_report WHERE id = %(id)s AND state = 'frozen' AND attempt_count = 0

-- name: set_fence
-- Fixes what this transaction sees as what the revision holds.
INSERT INTO billing.fence (window_start, revision, snapshot, frozen_at)
VALUES (%(window_start)s, %(revision)s, billing.recording_snapshot(), %(now)s)

-- name: add_reports
-- One report per tenant and side; the reason is given where the usage may not be sent from the start.
-- They come as one JSON array: that costs the client a third of what six SQL arrays do.
INSERT INTO billing.usage_report
    (tenant_id, window_start, side_start, side_end, revision, identifier, row_count, token_count, frozen_at,
     state, quarantined_at, quarantine_reason)
SELECT total ->> 0, %(window_start)s, (total ->> 1)::timestamptz, (total ->> 2)::timestamptz, %(revision)s, total ->> 3,
       (total ->> 4)::bigint, (total ->> 5)::bigint, %(now)s,
       CASE WHEN %(reason)s::text IS NULL THEN 'frozen' ELSE 'quarantined' END,
       CASE WHEN %(reason)s::text IS NOT NULL THEN %(now)s::timestamptz END, %(reason)s
FROM jsonb_array_elements(%(reports)s::jsonb) AS total

-- name: window_counts
-- How many reports of a window wait to be pushed or marked, and how many are quarantined.
SELECT count(*) FILTER (WHERE state IN ('frozen', 'sending', 'unresolved')),
       count(*) FILTER (WHERE state = 'quarantined')
FROM billing.usage_report
WHERE window_start = %(window_start)s
