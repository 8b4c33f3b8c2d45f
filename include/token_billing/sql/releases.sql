-- name: lock_aside
-- Reports that somebody wants released or acknowledged, with what stands in the way; until the transaction ends nobody else moves them.
SELECT report.id, report.tenant_id, report.window_start, report.side_start, report.side_end, report.revision, report.generation,
       report.state, report.sink, report.quarantine_reason, report.attempt_count, report.may_have_arrived, report.forgotten, report.token_count,
       coalesce(report.event_time, report.side_start),
       CASE WHEN report.attempt_count > 0 THEN NULL
            WHEN destination.reason IS NOT NULL THEN destination.reason
            WHEN destination.customer_id IS NULL OR destination.usage_item_id IS NULL THEN coalesce(report.quarantine_reason, 'no_customer')
       END,
       billing.final_invoice_of(coalesce(report.usage_item_id, destination.usage_item_id),
                                coalesce(report.event_time, report.side_start), %(now)s),
       acknowledged.proposal_id, report.quarantined_at
FROM billing.usage_report report
LEFT JOIN billing.destination ON destination.report_id = report.id
LEFT JOIN billing.acknowledgement acknowledged ON acknowledged.report_id = report.id
WHERE report.id = ANY(%(ids)s::bigint[])
ORDER BY report.id
FOR UPDATE OF report

-- name: release_report
-- The report waits to be sent as if it had never been aside; one that was attempted before goes on as a new generation.
WITH seen AS (
    DELETE FROM billing.acknowledgement WHERE report_id = %(id)s AND proposal_id IS NULL
)
UPDATE billing.usage_report
SET state = 'frozen', quarantined_at = NULL, quarantine_reason = NULL,
    generation = generation + CASE WHEN %(identifier)s::text IS NULL THEN 0 ELSE 1 END,
    identifier = coalesce(%(identifier)s, identifier),
    first_attempted_at = CASE WHEN %(identifier)s::text IS NULL THEN first_attempted_at ELSE %(now)s END,
    key_number = CASE WHEN %(identifier)s::text IS NULL THEN key_number ELSE 0 END
WHERE id = %(id)s AND state = 'quarantined'

-- name: acknowledge_report
-- Somebody has seen that the report is aside and lets it be for the time being; what a proposal settled stays settled.
INSERT INTO billing.acknowledgement (report_id, acknowledged_by, acknowledged_at, reason)
VALUES (%(id)s, %(by)s, %(now)s, %(reason)s)
ON CONFLICT (report_id) DO UPDATE
SET acknowledged_by = EXCLUDED.acknowledged_by, acknowledged_at = EXCLUDED.acknowledged_at, reason = EXCLUDED.reason
WHERE acknowledgement.proposal_id IS NULL

-- name: settle_reports
-- A proposal bills quarantined reports otherwise, or writes them off: each report once. Says how many it settled.
WITH aside AS (
    SELECT id FROM billing.usage_report WHERE id = ANY(%(ids)s::bigint[]) AND state = 'quarantined' ORDER BY id FOR UPDATE
)
INSERT INTO billing.acknowledgement (report_id, acknowledged_by, acknowledged_at, reason, proposal_id)
SELECT id, %(by)s, %(now)s, %(reason)s, %(proposal_id)s FROM aside
ON CONFLICT (report_id) DO UPDATE
SET acknowledged_by = EXCLUDED.acknowledged_by, acknowledged_at = EXCLUDED.acknowledged_at, reason = EXCLUDED.reason,
    proposal_id = EXCLUDED.proposal_id
-- safeguard: a report is settled once
WHERE acknowledgement.proposal_id IS NULL OR acknowledgement.proposal_id = EXCLUDED.proposal_id

-- name: unsettle_reports
-- Nothing came of what a proposal was to do about its reports: they are as they were.
DELETE FROM billing.acknowledgement WHERE proposal_id = %(proposal_id)s
