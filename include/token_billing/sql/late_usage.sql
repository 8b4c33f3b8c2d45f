-- name: late_windows
-- Closed windows with something left to do: rows that no fence of theirs has seen, or reports that outlasted their run.
-- Where there are more than may be taken, both kinds take turns: the oldest of the first kind, which every run uses up, and some of
-- the second, drawn anew at each run, since those that wait for a person come back for days and must keep no other from its turn.
-- (An index on waiting reports would make every update of a report touch every index.)
WITH last_fence AS (
    SELECT DISTINCT ON (window_start) window_start, snapshot
    FROM billing.fence
    ORDER BY window_start, revision DESC
), unbilled AS (
    -- date_bin, not date_trunc: looking the time zone up for every row costs more than all the rest.
    SELECT date_bin(interval '1 hour', created_at, timestamptz '2000-01-01T00:00Z') AS window_start, recorded_xid
    FROM token_usage
    WHERE NOT billed AND created_at < %(closed_before)s
), unfrozen AS (
    SELECT DISTINCT unbilled.window_start
    FROM unbilled
    LEFT JOIN last_fence ON last_fence.window_start = unbilled.window_start
    -- safeguard: rows that no fence has seen
    WHERE last_fence.snapshot IS NULL OR NOT pg_visible_in_snapshot(unbilled.recorded_xid, last_fence.snapshot)
), waiting AS (
    SELECT window_start
    FROM billing.usage_report report
    WHERE window_start >= %(waiting_since)s AND frozen_at < %(run_is_over_before)s
      -- safeguard: reports that outlasted their run
      AND state IN ('frozen', 'sending', 'unresolved', 'accepted', 'revoked')
      AND NOT EXISTS (SELECT FROM billing.hold WHERE hold.report_id = report.id AND hold.decision IS NULL)
    EXCEPT
    SELECT window_start FROM unfrozen
), in_turn AS (
    SELECT window_start, row_number() OVER (ORDER BY window_start) AS turn
    FROM unfrozen
    UNION ALL
    SELECT window_start,
           row_number() OVER (
               ORDER BY hashtextextended(window_start::text, extract(epoch FROM %(run_is_over_before)s::timestamptz)::bigint))
    FROM waiting
), taken AS (
    SELECT window_start
    FROM in_turn
    ORDER BY turn, window_start
    LIMIT %(most)s
)
SELECT window_start FROM taken ORDER BY window_start

-- name: future_usage
-- Rows and tokens per tenant that are dated in hours to come.
SELECT tenant_id, count(*), (sum(input_tokens) + sum(output_tokens))::bigint
FROM token_usage
WHERE created_at >= %(current_hour_ends)s
GROUP BY tenant_id
ORDER BY tenant_id
