-- name: conservation
-- The conservation law's terms per tenant and window, in tokens, as of one instant; the rows speak for themselves, the reports for theirs.
WITH last_fence AS (
    SELECT DISTINCT ON (window_start) window_start, snapshot
    FROM billing.fence
    WHERE window_start >= %(start)s AND window_start < %(end)s
    ORDER BY window_start, revision DESC
), usage AS (
    SELECT row.tenant_id, row.window_start,
           sum(row.tokens)::bigint AS row_tokens,
           coalesce(sum(row.tokens) FILTER (WHERE row.billed), 0)::bigint AS marked_tokens,
           coalesce(sum(row.tokens) FILTER (WHERE NOT row.billed AND (last_fence.snapshot IS NULL
               OR NOT pg_visible_in_snapshot(row.recorded_xid, last_fence.snapshot))), 0)::bigint AS unfrozen_tokens
    FROM (
        SELECT tenant_id, date_trunc('hour', created_at, 'UTC') AS window_start, input_tokens::bigint + output_tokens::bigint AS tokens,
               billed, recorded_xid
        FROM token_usage
        WHERE created_at >= %(start)s AND created_at < %(end)s AND (%(tenant_ids)s::text[] IS NULL OR tenant_id = ANY(%(tenant_ids)s))
    ) row
    LEFT JOIN last_fence ON last_fence.window_start = row.window_start
    GROUP BY row.tenant_id, row.window_start
), report AS (
    SELECT tenant_id, window_start,
           coalesce(sum(token_count) FILTER (WHERE state = 'billed'), 0)::bigint AS billed_tokens,
           coalesce(sum(token_count) FILTER (WHERE state IN ('frozen', 'sending', 'unresolved', 'accepted', 'revoked')), 0)::bigint
               AS pending_tokens,
           coalesce(sum(token_count) FILTER (WHERE state IN ('quarantined', 'rejected')), 0)::bigint AS quarantined_tokens
    FROM billing.usage_report
    WHERE window_start >= %(start)s AND window_start < %(end)s AND (%(tenant_ids)s::text[] IS NULL OR tenant_id = ANY(%(tenant_ids)s))
    GROUP BY tenant_id, window_start
)
SELECT tenant_id, window_start, coalesce(usage.row_tokens, 0), coalesce(report.billed_tokens, 0), coalesce(report.pending_tokens, 0),
       coalesce(usage.unfrozen_tokens, 0), coalesce(report.quarantined_tokens, 0), coalesce(usage.marked_tokens, 0)
FROM usage
FULL JOIN report USING (tenant_id, window_start)
ORDER BY window_start, tenant_id

-- name: has_rows_until
-- Whether any usage is kept that is no younger than a time: retention takes the oldest away first.
SELECT EXISTS (SELECT FROM token_usage WHERE created_at < %(until)s)
