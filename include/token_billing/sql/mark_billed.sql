-- name: accepted_revisions
-- The revisions of a window that hold accepted reports, each with its fence and the one before it.
SELECT fence.revision, fence.snapshot::text, earlier.snapshot::text
FROM billing.fence fence
LEFT JOIN billing.fence earlier ON earlier.window_start = fence.window_start AND earlier.revision = fence.revision - 1
WHERE fence.window_start = %(window_start)s
  AND EXISTS (SELECT FROM billing.usage_report report
              WHERE report.window_start = fence.window_start AND report.revision = fence.revision AND report.state = 'accepted')
ORDER BY fence.revision

-- name: join_by_hash
-- For the rest of the transaction, no nested loops.
-- Statistics older than the window promise a single report, for which a nested loop looks cheapest: it would read the hour once a report.
SELECT set_config('enable_nestloop', 'off', true)

-- name: lock_accepted
-- Keeps two runs from marking the same reports at once.
SELECT id
FROM billing.usage_report
WHERE window_start = %(window_start)s AND revision = %(revision)s AND state = 'accepted'
ORDER BY id
FOR UPDATE

-- name: disagreements
-- Accepted reports whose unbilled rows, as the fence saw them, are not what was frozen.
-- Rows are summed per tenant before they meet their reports, at half the price of joining each; only tenants with a boundary inside
-- the hour need each row's side.
WITH accepted AS MATERIALIZED (
    SELECT id, tenant_id, side_start, side_end, row_count, token_count,
           side_start = %(window_start)s AND side_end = %(window_end)s AS is_whole
    FROM billing.usage_report
    WHERE window_start = %(window_start)s AND revision = %(revision)s AND state = 'accepted'
), held AS (
    SELECT accepted.id, usage.row_count, usage.token_count
    FROM (
        SELECT tenant_id, count(*) AS row_count, (sum(input_tokens) + sum(output_tokens))::bigint AS token_count
        FROM token_usage
        WHERE created_at >= %(window_start)s AND created_at < %(window_end)s AND NOT billed
          -- safeguard: the fence in comparing
          AND pg_visible_in_snapshot(recorded_xid, %(snapshot)s::pg_snapshot)
          AND (%(earlier_snapshot)s::pg_snapshot IS NULL
               OR NOT pg_visible_in_snapshot(recorded_xid, %(earlier_snapshot)s::pg_snapshot))
        GROUP BY tenant_id
    ) usage
    JOIN accepted ON accepted.tenant_id = usage.tenant_id AND accepted.is_whole
    UNION ALL
    SELECT accepted.id, count(*), (sum(usage.input_tokens) + sum(usage.output_tokens))::bigint
    FROM token_usage usage
    JOIN accepted
      ON accepted.tenant_id = usage.tenant_id AND usage.created_at >= accepted.side_start AND usage.created_at < accepted.side_end
    -- safeguard: each side by itself
    WHERE NOT accepted.is_whole
      AND usage.created_at >= %(window_start)s AND usage.created_at < %(window_end)s AND NOT usage.billed
      AND pg_visible_in_snapshot(usage.recorded_xid, %(snapshot)s::pg_snapshot)
      AND (%(earlier_snapshot)s::pg_snapshot IS NULL
           OR NOT pg_visible_in_snapshot(usage.recorded_xid, %(earlier_snapshot)s::pg_snapshot))
    GROUP BY accepted.id
)
SELECT accepted.id, accepted.tenant_id, accepted.token_count, coalesce(held.token_count, 0), accepted.row_count, coalesce(held.row_count, 0)
FROM accepted
LEFT JOIN held ON held.id = accepted.id
-- safeguard: the rows still are what was frozen
WHERE held.token_count IS DISTINCT FROM accepted.token_count OR held.row_count IS DISTINCT FROM accepted.row_count

-- name: mark_rows
-- Flips the rows of the accepted reports that agree with them.
UPDATE token_usage usage
SET billed = true
FROM billing.usage_report report
WHERE report.window_start = %(window_start)s AND report.revision = %(revision)s AND report.state = 'accepted'
  -- safeguard: a disagreeing report is not marked
  AND report.id <> ALL(%(disagreeing_ids)s::bigint[])
  AND usage.tenant_id = report.tenant_id AND usage.created_at >= report.side_start AND usage.created_at < report.side_end
  AND usage.created_at >= %(window_start)s AND usage.created_at < %(window_end)s AND NOT usage.billed
  -- safeguard: the fence in marking
  AND pg_visible_in_snapshot(usage.recorded_xid, %(snapshot)s::pg_snapshot)
  AND (%(earlier_snapshot)s::pg_snapshot IS NULL
       OR NOT pg_visible_in_snapshot(usage.recorded_xid, %(earlier_snapshot)s::pg_snapshot))

-- name: whole_revision
-- Whether every report of the revision is accepted, and how many rows they hold.
SELECT bool_and(state = 'accepted'), sum(row_count)::bigint
FROM billing.usage_report
WHERE window_start = %(window_start)s AND revision = %(revision)s

-- name: mark_all_rows
-- Flips every row the fence holds: the same, without asking each row for its report, where every report is accepted and agrees.
UPDATE token_usage
SET billed = true
WHERE created_at >= %(window_start)s AND created_at < %(window_end)s AND NOT billed
  AND pg_visible_in_snapshot(recorded_xid, %(snapshot)s::pg_snapshot)
  AND (%(earlier_snapshot)s::pg_snapshot IS NULL OR NOT pg_visible_in_snapshot(recorded_xid, %(earlier_snapshot)s::pg_snapshot))

-- name: mark_reports
-- The accepted reports that agree with their rows are billed; says how many rows they hold.
WITH billed AS (
    UPDATE billing.usage_report
    SET state = 'billed', billed_at = %(now)s
    WHERE window_start = %(window_start)s AND revision = %(revision)s AND state = 'accepted'
      AND id <> ALL(%(disagreeing_ids)s::bigint[])
    RETURNING id, row_count
), settled AS (
    UPDATE billing.discrepancy SET resolved_at = %(now)s
    FROM billed
    WHERE discrepancy.report_id = billed.id AND discrepancy.cause = 'rows_changed' AND discrepancy.resolved_at IS NULL
)
SELECT count(*), coalesce(sum(row_count), 0)::bigint FROM billed

-- name: note_disagreements
-- Reports whose rows changed become discrepancies, once each.
INSERT INTO billing.discrepancy
    (report_id, cause, expected_token_count, found_token_count, expected_row_count, found_row_count, found_at)
SELECT id, 'rows_changed', expected_tokens, found_tokens, expected_rows, found_rows, %(now)s
FROM unnest(%(ids)s::bigint[], %(expected_tokens)s::bigint[], %(found_tokens)s::bigint[],
            %(expected_rows)s::bigint[], %(found_rows)s::bigint[]) AS found (id, expected_tokens, found_tokens, expected_rows, found_rows)
ON CONFLICT (report_id, cause) WHERE resolved_at IS NULL DO UPDATE
SET found_token_count = EXCLUDED.found_token_count, found_row_count = EXCLUDED.found_row_count
