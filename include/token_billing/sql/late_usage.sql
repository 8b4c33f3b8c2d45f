-- name: late_windows
-- Closed windows with something left to do: rows that no fence of theirs has seen, or reports that outlasted their run.
-- Oldest first. (An index on waiting reports would make every update of a report touch every index.)
WITH last_fence AS (
    SELECT DISTINCT ON (window_start) window_start, snapshot
    FROM billing.fence
    ORDER BY window_start, revision DESC
), unbilled AS (
    SELECT date_trunc('hour', created_at, 'UTC') AS window_start, recorded_xid
    FROM token_usage
    WHERE NOT billed AND created_at < %(closed_before)s
)
SELECT unbilled.window_start
FROM unbilled
LEFT JOIN last_fence ON last_fence.window_start = unbilled.window_start
WHERE last_fence.snapshot IS NULL OR NOT pg_visible_in_snapshot(unbilled.recorded_xid, last_fence.snapshot)
UNION
SELECT window_start
FROM billing.usage_report report
WHERE window_start >= %(waiting_since)s AND frozen_at < %(run_is_over_before)s
  AND state IN ('frozen', 'sending', 'unresolved', 'accepted', 'revoked')
  AND NOT EXISTS (SELECT FROM billing.hold WHERE hold.report_id = report.id AND hold.decision IS NULL)
ORDER BY window_start
LIMIT %(most)s

-- name: future_usage
-- Rows and tokens per tenant that are dated in hours to come.
SELECT tenant_id, count(*), (sum(input_tokens) + sum(output_tokens))::bigint
FROM token_usage
WHERE created_at >= %(current_hour_ends)s
GROUP BY tenant_id
ORDER BY tenant_id
