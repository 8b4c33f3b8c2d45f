-- name: quarantined_usage
-- Quarantined and rejected usage by reason, tenant, item and period, with its price and what the item's period has billed beside it.
-- The period is the item's billing period where one is known to hold the usage, else the calendar month in UTC.
WITH dated AS (
    SELECT coalesce(report.quarantine_reason, report.state) AS reason, report.tenant_id, report.window_start, report.token_count,
           bill.usage_item_id, coalesce(report.customer_id, bill.customer_id) AS customer_id, bill.price_id, bill.meter_id,
           bill.period_start, bill.period_end, bill.is_billing_period,
           CASE WHEN seen.report_id IS NULL THEN '' WHEN seen.proposal_id IS NULL THEN 'acknowledged'
                ELSE 'proposal ' || seen.proposal_id END AS standing
    FROM billing.usage_report report
    LEFT JOIN billing.acknowledgement seen ON seen.report_id = report.id
    CROSS JOIN LATERAL billing.bill_of(report.tenant_id, report.usage_item_id, coalesce(report.event_time, report.side_start)) bill
    WHERE report.state IN ('quarantined', 'rejected')
      AND (%(window_start)s::timestamptz IS NULL OR report.window_start = %(window_start)s AND report.quarantined_at >= %(since)s)
      AND (hashtextextended(report.tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
), summed AS (
    SELECT reason, tenant_id, usage_item_id, customer_id, price_id, meter_id, period_start, period_end, is_billing_period, standing,
           count(DISTINCT window_start) AS hours, sum(token_count)::bigint AS tokens
    FROM dated
    GROUP BY reason, tenant_id, usage_item_id, customer_id, price_id, meter_id, period_start, period_end, is_billing_period, standing
)
SELECT summed.reason, summed.tenant_id, summed.usage_item_id, summed.period_start, summed.period_end, summed.is_billing_period,
       summed.standing, summed.hours, summed.tokens, coalesce(billed.tokens, 0),
       price.price_id, price.currency, price.mode, price.tiers, price.package_size, price.package_rounds_up
FROM summed
LEFT JOIN billing.price price ON price.price_id = summed.price_id
LEFT JOIN LATERAL (
    SELECT sum(report.token_count)::bigint AS tokens
    FROM billing.usage_report report
    WHERE report.customer_id = summed.customer_id AND report.meter_id IS NOT DISTINCT FROM summed.meter_id
      AND report.usage_item_id = summed.usage_item_id AND report.state IN ('accepted', 'billed')
      AND report.window_start >= summed.period_start - interval '1 hour' AND report.window_start < summed.period_end
      AND report.event_time >= summed.period_start AND report.event_time < summed.period_end
) billed ON price.price_id IS NOT NULL
ORDER BY summed.reason, summed.tenant_id, summed.period_start, summed.standing
