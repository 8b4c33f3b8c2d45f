-- name: invoice
-- The invoice of a name, or the one that a line of that name is on.
SELECT invoice_id, customer_id, subscription_id, billing_reason, status, currency, created_at, finalizes_at, finalized_at, total_cents, read_at
FROM billing.invoice
WHERE invoice_id = coalesce((SELECT line.invoice_id FROM billing.invoice_line line WHERE line.line_id = %(name)s), %(name)s)

-- name: invoices_billing
-- The invoices with a line for an item's usage at a time, or with one that a proposal about the report made.
SELECT line.invoice_id
FROM billing.invoice_line line
WHERE line.kind = 'usage' AND line.usage_item_id = %(usage_item_id)s
  AND line.period_start <= %(event_time)s AND %(event_time)s < line.period_end
UNION
SELECT line.invoice_id
FROM billing.decided_report decided
JOIN billing.invoice_line line ON line.proposal_id = decided.proposal_id
WHERE decided.report_id = %(report_id)s
ORDER BY invoice_id

-- name: price
-- What units cost under a price.
SELECT price_id, currency, mode, tiers, package_size, package_rounds_up FROM billing.price WHERE price_id = %(price_id)s

-- name: decided
-- What was decided by a proposal, by whom and when, and the reports that it is about.
SELECT id, decision, decided_by, decided_at, token_count,
       ARRAY(SELECT decided.report_id FROM billing.decided_report decided WHERE decided.proposal_id = proposal.id)
FROM billing.proposal
WHERE id = %(id)s

-- name: accepted_reports
-- The reports that Stripe accepted for an item in a period: found by the customer where a meter counts, else by the item.
SELECT id
FROM billing.usage_report
WHERE customer_id = %(customer_id)s AND window_start > %(period_start)s::timestamptz - interval '1 hour' AND window_start < %(period_end)s
  AND event_time >= %(period_start)s AND event_time < %(period_end)s
  AND usage_item_id = %(usage_item_id)s AND sink = 'billing_meters' AND state IN ('accepted', 'billed')
UNION ALL
SELECT id
FROM billing.usage_report
WHERE usage_item_id = %(usage_item_id)s AND event_time >= %(period_start)s AND event_time < %(period_end)s
  AND sink = 'usage_records' AND state IN ('accepted', 'billed')

-- name: reports
-- Usage reports, in the order of their time.
SELECT id, tenant_id, window_start, side_start, side_end, revision, generation, identifier, state, quarantine_reason, customer_id,
       usage_item_id, event_time, row_count, token_count, attempt_count, frozen_at, accepted_at, confirmed_at, billed_at, quarantined_at
FROM billing.usage_report
WHERE id = ANY(%(ids)s::bigint[])
ORDER BY side_start, tenant_id, revision

-- name: report_named
-- The report that has an identifier, or ever had it: only those of a further generation gave one up.
SELECT id FROM billing.usage_report WHERE identifier = %(identifier)s
UNION ALL
SELECT report.id
FROM billing.usage_report report
JOIN billing.push_attempt attempt ON attempt.report_id = report.id
WHERE report.generation > 0 AND attempt.identifier = %(identifier)s
LIMIT 1

-- name: attempts
-- Every attempt at sending a report.
SELECT attempt, identifier, noted_at, answered_at, outcome, http_status, message
FROM billing.push_attempt
WHERE report_id = %(id)s
ORDER BY attempt

-- name: taken_back
-- The generations of a report that were revoked.
SELECT generation, identifier, revoked_at, revoked_by, cause, evidence
FROM billing.revocation
WHERE report_id = %(id)s
ORDER BY generation

-- name: held_rows
-- For each of some reports of a tenant in a stretch of time: how many rows it holds, their tokens, the first and last id, and all of them.
SELECT report.id, count(*), (sum(usage.input_tokens) + sum(usage.output_tokens))::bigint, min(usage.id), max(usage.id),
       array_agg(usage.id) FILTER (WHERE %(with_ids)s)
FROM token_usage usage
JOIN billing.usage_report report
  ON report.window_start = date_bin(interval '1 hour', usage.created_at, timestamptz '2000-01-01T00:00Z')
 AND usage.created_at >= report.side_start AND usage.created_at < report.side_end
JOIN billing.fence ON fence.window_start = report.window_start AND fence.revision = report.revision
LEFT JOIN billing.fence earlier ON earlier.window_start = report.window_start AND earlier.revision = report.revision - 1
WHERE usage.tenant_id = %(tenant_id)s AND usage.created_at >= %(start)s AND usage.created_at < %(end)s
  AND report.id = ANY(%(report_ids)s::bigint[])
  -- Rows of a billed report are marked, those of any other are not.
  AND usage.billed = (report.state = 'billed')
  AND pg_visible_in_snapshot(usage.recorded_xid, fence.snapshot)
  AND (earlier.snapshot IS NULL OR NOT pg_visible_in_snapshot(usage.recorded_xid, earlier.snapshot))
GROUP BY report.id

-- name: row
-- A row of token usage, the first fence that sees it, and the report of its tenant, hour and side that holds it.
SELECT usage.id, usage.tenant_id, usage.model, usage.created_at, usage.input_tokens, usage.output_tokens, usage.billed,
       fence.revision, fence.frozen_at, report.id
FROM token_usage usage
LEFT JOIN LATERAL (
    SELECT window_start, revision, frozen_at
    FROM billing.fence
    WHERE window_start = date_bin(interval '1 hour', usage.created_at, timestamptz '2000-01-01T00:00Z')
      AND pg_visible_in_snapshot(usage.recorded_xid, snapshot)
    ORDER BY revision
    LIMIT 1
) fence ON true
LEFT JOIN billing.usage_report report
  ON report.window_start = fence.window_start AND report.revision = fence.revision AND report.tenant_id = usage.tenant_id
 AND report.side_start <= usage.created_at AND usage.created_at < report.side_end
WHERE usage.id = %(id)s
