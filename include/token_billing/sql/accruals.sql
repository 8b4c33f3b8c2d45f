-- name: used_before
-- Tokens used before an instant by tenant, item, price and period, and by what had become of them then, with the price's name and terms.
WITH cut AS (
    -- The hour that the instant cuts: of what a report holds, only the rows before the instant.
    SELECT report.id, (sum(usage.input_tokens) + sum(usage.output_tokens))::bigint AS token_count
    FROM token_usage usage
    JOIN billing.usage_report report
      ON report.tenant_id = usage.tenant_id AND usage.created_at >= report.side_start AND usage.created_at < report.side_end
    JOIN billing.fence ON fence.window_start = report.window_start AND fence.revision = report.revision
    LEFT JOIN billing.fence earlier ON earlier.window_start = report.window_start AND earlier.revision = report.revision - 1
    WHERE usage.created_at >= date_trunc('hour', %(instant)s::timestamptz, 'UTC') AND usage.created_at < %(instant)s
      AND report.window_start = date_trunc('hour', %(instant)s::timestamptz, 'UTC')
      AND report.side_start < %(instant)s AND report.side_end > %(instant)s
      AND usage.billed = (report.state = 'billed')
      AND pg_visible_in_snapshot(usage.recorded_xid, fence.snapshot)
      AND (earlier.snapshot IS NULL OR NOT pg_visible_in_snapshot(usage.recorded_xid, earlier.snapshot))
    GROUP BY report.id
), disowned_since AS (
    -- At the instant these counted as accepted: Stripe disowned them, or they were found out to be disowned, only afterwards.
    SELECT revocation.report_id, min(coalesce(attempt.answered_at, attempt.noted_at)) AS accepted_at
    FROM billing.revocation
    JOIN billing.push_attempt attempt ON attempt.report_id = revocation.report_id AND attempt.identifier = revocation.identifier
    WHERE revocation.revoked_at >= %(instant)s
    GROUP BY revocation.report_id, revocation.generation
    HAVING min(coalesce(attempt.answered_at, attempt.noted_at)) < %(instant)s
), refused AS (
    SELECT report.id, max(attempt.answered_at) AS refused_at
    FROM billing.usage_report report
    JOIN billing.push_attempt attempt ON attempt.report_id = report.id AND attempt.outcome = 'rejected'
    WHERE report.state = 'rejected'
    GROUP BY report.id
), released_since AS (
    -- At the instant these were still set aside.
    SELECT DISTINCT substring(audit.subject FROM '^report (\d+)$')::bigint AS report_id
    FROM billing.audit
    WHERE audit.action = 'release' AND audit.decided_at >= %(instant)s
      AND coalesce((audit.before ->> 'quarantined_at')::timestamptz, '-infinity') < %(instant)s
), decided AS (
    -- What a decision carried onto an invoice, or wrote off; and when that invoice became final.
    SELECT DISTINCT ON (about.report_id) about.report_id, proposal.decision, invoice.finalized_at
    FROM billing.proposal
    JOIN billing.decided_report about ON about.proposal_id = proposal.id
    LEFT JOIN billing.invoice_line line ON line.proposal_id = proposal.id
    LEFT JOIN billing.invoice ON invoice.invoice_id = line.invoice_id
    WHERE proposal.kind = 'late_usage' AND proposal.decision IN ('invoice_item', 'write_off') AND proposal.applied_at < %(instant)s
    ORDER BY about.report_id, proposal.applied_at, invoice.finalized_at
), last_fence AS (
    SELECT DISTINCT ON (window_start) window_start, snapshot
    FROM billing.fence
    ORDER BY window_start, revision DESC
), used AS (
    SELECT report.tenant_id, report.usage_item_id, coalesce(report.event_time, report.side_start) AS used_at,
           CASE WHEN report.side_end <= %(instant)s THEN report.token_count ELSE coalesce(cut.token_count, 0) END AS token_count,
           coalesce(CASE WHEN report.accepted_at < %(instant)s THEN report.accepted_at END, disowned_since.accepted_at) AS accepted_at,
           released_since.report_id IS NOT NULL OR coalesce(report.quarantined_at, refused.refused_at, 'infinity') < %(instant)s AS is_aside,
           coalesce(report.quarantine_reason IN ('before_adoption', 'excluded_tenant'), false) AS is_excluded,
           report.attempt_count > 0 AS is_attempted, decided.decision, decided.finalized_at AS carried_at
    FROM billing.usage_report report
    LEFT JOIN cut ON cut.id = report.id
    LEFT JOIN disowned_since ON disowned_since.report_id = report.id
    LEFT JOIN refused ON refused.id = report.id
    LEFT JOIN released_since ON released_since.report_id = report.id
    LEFT JOIN decided ON decided.report_id = report.id
    WHERE report.side_start < %(instant)s
    UNION ALL
    SELECT usage.tenant_id, NULL, min(usage.created_at), (sum(usage.input_tokens) + sum(usage.output_tokens))::bigint,
           NULL, false, false, false, NULL, NULL
    FROM token_usage usage
    LEFT JOIN last_fence ON last_fence.window_start = date_bin(interval '1 hour', usage.created_at, timestamptz '2000-01-01T00:00Z')
    LEFT JOIN billing.subscription_period period
      ON period.tenant_id = usage.tenant_id AND period.billed_from <= usage.created_at AND usage.created_at < period.billed_until
    WHERE NOT usage.billed AND usage.created_at < %(instant)s
      AND (last_fence.snapshot IS NULL OR NOT pg_visible_in_snapshot(usage.recorded_xid, last_fence.snapshot))
    GROUP BY usage.tenant_id, date_bin(interval '1 hour', usage.created_at, timestamptz '2000-01-01T00:00Z'), period.id
), final AS (
    -- From when on each item's periods were on a final invoice; never two at once, whatever an invoice says of its period.
    SELECT usage_item_id, period_start, final_at,
           least(period_end, lead(period_start) OVER (PARTITION BY usage_item_id ORDER BY period_start)) AS period_end
    FROM (
        SELECT usage_item_id, period_start, max(period_end) AS period_end, min(final_at) AS final_at
        FROM (
            SELECT invoiced.usage_item_id, invoiced.period_start, invoiced.period_end,
                   CASE WHEN invoiced.invoice_status = ANY(%(final_statuses)s)
                        THEN coalesce(invoice.finalized_at, invoiced.finalizes_at, invoiced.seen_at)
                        ELSE invoiced.finalizes_at END AS final_at
            FROM billing.invoiced_period invoiced
            LEFT JOIN billing.invoice USING (invoice_id)
            UNION ALL
            SELECT line.usage_item_id, line.period_start, line.period_end,
                   coalesce(invoice.finalized_at, invoice.finalizes_at, invoice.created_at)
            FROM billing.invoice_line line
            JOIN billing.invoice USING (invoice_id)
            WHERE line.kind = 'usage' AND invoice.status = ANY(%(final_statuses)s)
              AND coalesce(invoice.billing_reason, '') <> ALL(%(not_closing)s)
              AND (invoice.billing_reason IS NOT NULL OR line.period_end <= invoice.created_at)
        ) told
        WHERE final_at < %(instant)s
        GROUP BY usage_item_id, period_start
    ) one
), dated AS MATERIALIZED (
    -- The tenant's timeline says outright which bill nearly all usage belongs to; asking for each report by itself would take minutes.
    SELECT used.*, period.price_id, period.period_start, period.period_end, period.id IS NOT NULL AS is_known
    FROM used
    LEFT JOIN billing.subscription_period period
      ON period.tenant_id = used.tenant_id AND period.usage_item_id = used.usage_item_id
     AND period.billed_from <= used.used_at AND used.used_at < period.billed_until
    WHERE used.token_count > 0
), placed AS (
    SELECT dated.tenant_id, dated.usage_item_id, dated.price_id, dated.period_start, dated.period_end, true AS is_billing_period,
           used_at, token_count, accepted_at, is_aside, is_excluded, is_attempted, decision, carried_at
    FROM dated
    WHERE is_known
    UNION ALL
    SELECT dated.tenant_id, bill.usage_item_id, bill.price_id, bill.period_start, bill.period_end, bill.is_billing_period,
           used_at, token_count, accepted_at, is_aside, is_excluded, is_attempted, decision, carried_at
    FROM dated
    CROSS JOIN LATERAL billing.bill_of(dated.tenant_id, dated.usage_item_id, dated.used_at) bill
    WHERE NOT is_known
), summed AS (
    SELECT placed.tenant_id, placed.usage_item_id, placed.price_id, placed.period_start, placed.period_end, placed.is_billing_period,
           CASE WHEN placed.is_excluded OR placed.decision = 'write_off' OR NOT placed.is_attempted AND excluded.id IS NOT NULL THEN 'excluded'
                WHEN placed.decision = 'invoice_item' THEN CASE WHEN placed.carried_at < %(instant)s THEN 'invoiced' ELSE 'accrued' END
                WHEN placed.accepted_at IS NOT NULL AND final.final_at IS NULL THEN 'accrued'
                WHEN placed.accepted_at <= final.final_at THEN 'invoiced'
                WHEN placed.accepted_at IS NULL AND placed.is_aside THEN 'quarantined'
                ELSE 'unbilled' END AS standing,
           sum(placed.token_count)::bigint AS token_count
    FROM placed
    LEFT JOIN final
      ON final.usage_item_id = placed.usage_item_id AND final.period_start <= placed.used_at AND placed.used_at < final.period_end
    LEFT JOIN billing.excluded_tenant excluded
      ON excluded.tenant_id = placed.tenant_id AND tstzrange(excluded.excluded_from, excluded.excluded_until) @> placed.used_at
    GROUP BY placed.tenant_id, placed.usage_item_id, placed.price_id, placed.period_start, placed.period_end, placed.is_billing_period,
             standing
)
SELECT summed.tenant_id, summed.usage_item_id, named.name, summed.period_start, summed.period_end, summed.is_billing_period,
       summed.standing, summed.token_count,
       price.price_id, price.currency, price.mode, price.tiers, price.package_size, price.package_rounds_up
FROM summed
LEFT JOIN billing.price ON price.price_id = summed.price_id
LEFT JOIN billing.catalogue_price named ON named.price_id = summed.price_id
