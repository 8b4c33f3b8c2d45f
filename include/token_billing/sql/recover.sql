-- name: lock_usage
-- Nothing is recorded, frozen or marked until the recovery ends.
LOCK TABLE token_usage, billing.fence, billing.ledger IN SHARE ROW EXCLUSIVE MODE

-- name: wait_briefly
-- Rather gives up than makes the application's writers queue behind a long transaction; from here on ages count from our own id.
SELECT set_config('lock_timeout', '5s', true), pg_current_xact_id()

-- name: last_carried_row
-- The last row that came with the copy.
-- A table's rows are restored before its indexes and triggers, so whatever is older than the oldest of those came with it. 0 where no row
-- came, NULL where the table has neither.
SELECT CASE WHEN oldest.age IS NOT NULL THEN (SELECT coalesce(max(id), 0) FROM token_usage WHERE age(xmin) >= oldest.age) END
FROM (
    SELECT max(made.age) AS age
    FROM (SELECT age(xmin) FROM pg_trigger WHERE tgrelid = 'token_usage'::regclass
          UNION ALL
          SELECT age(xmin) FROM pg_index WHERE indrelid = 'token_usage'::regclass) made
) oldest

-- name: rows_of_unknown_origin
-- Rows after those that came with the copy whose stamps no transaction of this cluster since then can have made.
-- A row is written by the transaction that stamps it, by a later one that updates it, or by a savepoint's, which has a later id, too.
WITH made AS (
    SELECT age(xmin) FROM pg_trigger WHERE tgrelid = 'token_usage'::regclass
    UNION ALL
    SELECT age(xmin) FROM pg_index WHERE indrelid = 'token_usage'::regclass
), cluster AS (
    SELECT pg_current_xact_id()::text::numeric AS present, pg_current_xact_id()::text::numeric - (SELECT max(age) FROM made) AS oldest,
           (SELECT xid_shift FROM billing.ledger) AS shift
)
SELECT id
FROM token_usage, cluster
WHERE id > %(last_carried_row)s
  AND (recorded_xid::text::numeric - shift NOT BETWEEN oldest AND present OR recorded_xid::text::numeric - shift > present - age(xmin))
ORDER BY id
LIMIT 10

-- name: missing_shift
-- By how much this cluster's transaction ids must be raised to lie above all that came with the copy.
-- safeguard: ids above those that came with the copy
SELECT greatest(0, carried.highest + 1 - recorded.lowest)
FROM (
    SELECT greatest((SELECT max(recorded_xid::text::numeric) FROM token_usage WHERE id <= %(last_carried_row)s),
                    (SELECT max(pg_snapshot_xmax(snapshot)::text::numeric) FROM billing.fence), 0) AS highest
) carried, (
    -- Transactions under way have their ids already, whenever they record.
    SELECT least((SELECT min(recorded_xid::text::numeric) FROM token_usage WHERE id > %(last_carried_row)s),
                 pg_snapshot_xmin(billing.recording_snapshot())::text::numeric) AS lowest
) recorded

-- name: shift_rows
-- Rows recorded since the copy was made get the raised ids, too; the triggers that keep rows as they are look away for this once.
ALTER TABLE token_usage DISABLE TRIGGER billing_keeps_usage;
-- safeguard: rows since the copy get the raised ids
UPDATE token_usage SET recorded_xid = (recorded_xid::text::numeric + {shift})::text::xid8 WHERE id > {last_carried_row};
ALTER TABLE token_usage ENABLE TRIGGER billing_keeps_usage

-- name: shift_ids
-- From now on every row and every fence gets the cluster's ids raised by a constant.
CREATE OR REPLACE FUNCTION billing.recording_xid() RETURNS xid8 LANGUAGE sql STABLE AS
    'SELECT (pg_current_xact_id()::text::numeric + {shift})::text::xid8';
CREATE OR REPLACE FUNCTION billing.recording_snapshot() RETURNS pg_snapshot LANGUAGE sql STABLE AS $$
    SELECT (pg_snapshot_xmin(now)::text::numeric + {shift} || ':' || pg_snapshot_xmax(now)::text::numeric + {shift} || ':' ||
            coalesce((SELECT string_agg((running::text::numeric + {shift})::text, ',' ORDER BY running)
                      FROM pg_snapshot_xip(now) AS running), ''))::pg_snapshot
    FROM pg_current_snapshot() AS now
$$

-- name: reports_without_their_rows
-- Reports not billed yet whose unbilled rows, those that their fence was the first to see, are not what was frozen.
-- Reports whose rows are known to have changed before are left out.
WITH waiting AS (
    SELECT report.id, report.tenant_id, report.window_start, report.side_start, report.side_end, report.row_count, report.token_count,
           fence.snapshot, earlier.snapshot AS earlier_snapshot
    FROM billing.usage_report report
    JOIN billing.fence fence ON fence.window_start = report.window_start AND fence.revision = report.revision
    LEFT JOIN billing.fence earlier ON earlier.window_start = report.window_start AND earlier.revision = report.revision - 1
    WHERE report.state <> 'billed' AND report.quarantine_reason IS DISTINCT FROM 'before_adoption'
      AND NOT EXISTS (SELECT FROM billing.discrepancy WHERE discrepancy.report_id = report.id AND resolved_at IS NULL)
)
SELECT waiting.id
FROM waiting
LEFT JOIN token_usage usage
  -- The hour for its own sake: without it, the whole table would be read for each report.
  ON date_bin(interval '1 hour', usage.created_at, timestamptz '2000-01-01T00:00Z') = waiting.window_start
 AND usage.tenant_id = waiting.tenant_id AND usage.created_at >= waiting.side_start AND usage.created_at < waiting.side_end
 AND NOT usage.billed AND pg_visible_in_snapshot(usage.recorded_xid, waiting.snapshot)
 AND (waiting.earlier_snapshot IS NULL OR NOT pg_visible_in_snapshot(usage.recorded_xid, waiting.earlier_snapshot))
GROUP BY waiting.id, waiting.row_count, waiting.token_count
HAVING count(usage.id) <> waiting.row_count OR coalesce(sum(usage.input_tokens::bigint + usage.output_tokens), 0) <> waiting.token_count
ORDER BY waiting.id
LIMIT 10

-- name: doubt_attempted
-- Reports attempted and still open: later attempts than those known here may have been made, under whatever identifier.
-- A usage record has its time from the first attempt on: it can be set again whatever was forgotten.
UPDATE billing.usage_report
SET state = 'unresolved', may_have_arrived = true, forgotten = sink <> 'usage_records', absent_since = NULL
WHERE state IN ('frozen', 'sending', 'unresolved') AND attempt_count > 0

-- name: take_back_confirmations
-- What was confirmed may have been disowned since the copy was made: it is compared again.
UPDATE billing.usage_report SET confirmed_at = NULL WHERE confirmed_at IS NOT NULL AND window_start > %(since)s

-- name: shift_so_far
-- How much this database adds to its cluster's transaction ids.
SELECT xid_shift FROM billing.ledger

-- name: begin_epoch
-- From now on this copy is the one that bills; what is not known to be sent of hours that have ended is doubtful from here on.
WITH begun AS (
    UPDATE billing.ledger
    SET epoch = %(epoch)s, noted_attempts = greatest(noted_attempts, %(noted_attempts)s), recovered_at = %(now)s,
        system_identifier = (SELECT system_identifier FROM pg_control_system()), xid_shift = xid_shift + %(shift)s
    RETURNING epoch, recovered_at, system_identifier, xid_shift
)
INSERT INTO billing.recovery (epoch, cause, recovered_at, recovered_by, system_identifier, xid_shift, doubtful_reports)
SELECT epoch, %(cause)s, recovered_at, %(recovered_by)s, system_identifier, xid_shift,
       (SELECT count(*) FROM billing.usage_report WHERE state IN ('frozen', 'unresolved') AND token_count > 0)
FROM begun
RETURNING xid_shift, doubtful_reports
