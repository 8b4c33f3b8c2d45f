-- name: lock_report
-- A report and the fences that say which rows it holds; until the transaction ends nobody else marks or revokes it.
SELECT report.id, report.tenant_id, report.window_start, report.side_start, report.side_end, report.revision, report.generation,
       report.identifier, report.state, report.attempt_count, report.row_count, report.token_count, report.event_time,
       report.forgotten, fence.snapshot::text, earlier.snapshot::text
FROM billing.usage_report report
JOIN billing.fence fence ON fence.window_start = report.window_start AND fence.revision = report.revision
LEFT JOIN billing.fence earlier ON earlier.window_start = report.window_start AND earlier.revision = report.revision - 1
WHERE report.id = %(id)s
FOR UPDATE OF report

-- name: billed_otherwise
-- The proposal that billed what an invoice lacked of a report's item and time in another way, or wrote it off.
-- It was about the report, as far as it says: of its tenant, its hour, and accepted when the invoice was final, or about to be.
SELECT min(proposal.id)
FROM billing.usage_report report
JOIN billing.proposal
  ON proposal.customer_id = report.customer_id AND proposal.usage_item_id = report.usage_item_id
 AND proposal.period_start <= report.event_time AND report.event_time < proposal.period_end
JOIN billing.discrepancy found ON found.id = proposal.discrepancy_id
LEFT JOIN billing.invoice ON invoice.invoice_id = proposal.invoice_id
WHERE report.id = %(id)s AND proposal.kind = 'late_usage' AND proposal.decision IN ('invoice_item', 'write_off')
  AND coalesce(found.tenant_id, report.tenant_id) = report.tenant_id
  AND coalesce(found.window_start, report.window_start) = report.window_start
  AND (found.cause <> 'late_after_finalisation' OR report.accepted_at > invoice.finalized_at - interval '1 hour')

-- name: report_attempted_as
-- The report that has, or once had, an identifier.
SELECT id FROM billing.usage_report WHERE identifier = %(identifier)s
UNION ALL
SELECT report_id FROM billing.revocation WHERE identifier = %(identifier)s
UNION ALL
SELECT report_id FROM billing.surplus WHERE identifier = %(identifier)s
LIMIT 1

-- name: disowned_by_error
-- Accepted reports whose present identifier an error event named, as long as nobody has dealt with it.
SELECT report.id, discrepancy.details, discrepancy.stripe_id
FROM billing.discrepancy
JOIN billing.usage_report report ON report.id = discrepancy.report_id AND report.identifier = discrepancy.stripe_id
WHERE discrepancy.cause = 'meter_error' AND discrepancy.resolved_at IS NULL AND report.state IN ('accepted', 'billed')
ORDER BY report.id

-- name: held_rows
-- Rows and tokens that a report holds: marked where it is billed, unmarked where it is not.
SELECT count(*), coalesce(sum(input_tokens) + sum(output_tokens), 0)::bigint
FROM token_usage
WHERE tenant_id = %(tenant_id)s AND created_at >= %(side_start)s AND created_at < %(side_end)s AND billed = %(was_billed)s
  AND pg_visible_in_snapshot(recorded_xid, %(snapshot)s::pg_snapshot)
  AND (%(earlier_snapshot)s::pg_snapshot IS NULL OR NOT pg_visible_in_snapshot(recorded_xid, %(earlier_snapshot)s::pg_snapshot))

-- name: disown
-- Clears the marks of a report's rows and revokes it, in one statement, so that the conservation law never waits for the other half.
WITH cleared AS (
    UPDATE token_usage
    SET billed = false
    WHERE tenant_id = %(tenant_id)s AND created_at >= %(side_start)s AND created_at < %(side_end)s AND billed AND %(was_billed)s
      AND pg_visible_in_snapshot(recorded_xid, %(snapshot)s::pg_snapshot)
      AND (%(earlier_snapshot)s::pg_snapshot IS NULL OR NOT pg_visible_in_snapshot(recorded_xid, %(earlier_snapshot)s::pg_snapshot))
    RETURNING id
), revoked AS (
    UPDATE billing.usage_report
    SET state = 'revoked', billed_at = NULL, confirmed_at = NULL
    WHERE id = %(id)s
)
SELECT count(*) FROM cleared

-- name: note_revocation
-- Writes down who took back what, and why. Attempts whose answer never came have theirs now: a worker that wakes up later has no say.
WITH settled AS (
    UPDATE billing.push_attempt
    -- safeguard: answers that come after a revocation
    SET answered_at = %(now)s, outcome = 'disowned'
    WHERE report_id = %(id)s AND identifier = %(identifier)s AND answered_at IS NULL
)
INSERT INTO billing.revocation
    (report_id, generation, identifier, cause, evidence, row_count, token_count, was_billed, resent, revoked_at, revoked_by)
VALUES (%(id)s, %(generation)s, %(identifier)s, %(cause)s, %(evidence)s, %(row_count)s, %(token_count)s, %(was_billed)s, %(resent)s,
        %(now)s, %(revoked_by)s)

-- name: begin_generation
-- The disowned identifier is never used again: the report waits under a new one to be sent, or is quarantined for the reason given.
UPDATE billing.usage_report
SET state = CASE WHEN %(reason)s::text IS NULL THEN 'frozen' ELSE 'quarantined' END,
    quarantined_at = CASE WHEN %(reason)s::text IS NOT NULL THEN %(now)s::timestamptz END, quarantine_reason = %(reason)s,
    generation = generation + 1, identifier = %(identifier)s, first_attempted_at = %(now)s, accepted_at = NULL,
    may_have_arrived = false, key_number = 0, absent_since = NULL, forgotten = false
WHERE id = %(id)s AND state = 'revoked'
