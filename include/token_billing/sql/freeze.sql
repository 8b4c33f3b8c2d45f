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

-- name: unfrozen_totals
-- Tokens and rows per tenant that no fence of the window has seen.
SELECT tenant_id, count(*), (sum(input_tokens) + sum(output_tokens))::bigint
FROM token_usage
WHERE created_at >= %(window_start)s AND created_at < %(window_end)s
  -- safeguard: what another job billed
  AND NOT billed
  -- safeguard: the fence in freezing
  AND (%(last_snapshot)s::pg_snapshot IS NULL OR NOT pg_visible_in_snapshot(recorded_xid, %(last_snapshot)s::pg_snapshot))
GROUP BY tenant_id

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
