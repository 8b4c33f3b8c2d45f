-- name: quarantined_usage
-- Quarantined and rejected usage by reason, tenant, item and period, with its price and what the item's period has billed beside it.
-- The period is the item's billing period where one is known to hold the usage, else the calendar month in UTC.
WITH aside AS (
    SELECT coalesce(report.quarantine_reason, report.state) AS reason, report.tenant_id, report.window_start, report.token_count,
           coalesce(report.event_time, report.side_start) AS used_at,
           coalesce(report.usage_item_id, nullif(tenant.stripe_usage_item_id, '')) AS usage_item_id,
           coalesce(report.customer_id, tenant.stripe_customer_id) AS customer_id
    FROM billing.usage_report report
    LEFT JOIN tenants tenant ON tenant.id = report.tenant_id
    WHERE report.state IN ('quarantined', 'rejected')
      AND (%(window_start)s::timestamptz IS NULL OR report.window_start = %(window_start)s AND report.quarantined_at >= %(since)s)
      AND (hashtextextended(report.tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
), dated AS (
    SELECT aside.*, item.price_id, item.meter_id, known.period_start IS NOT NULL AS is_billing_period,
           coalesce(known.period_start, date_trunc('month', used_at, 'UTC')) AS period_start,
           coalesce(known.period_end,
                    (date_trunc('month', used_at AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC') AS period_end
    FROM aside
    LEFT JOIN billing.metered_item item ON item.usage_item_id = aside.usage_item_id
    LEFT JOIN LATERAL (
        SELECT period.period_start, period.period_end
        FROM (SELECT item.period_start, item.period_end
              UNION ALL
              SELECT invoiced.period_start, invoiced.period_end
              FROM billing.invoiced_period invoiced WHERE invoiced.usage_item_id = aside.usage_item_id) period
        WHERE period.period_start <= used_at AND used_at < period.period_end
        ORDER BY period.period_start DESC
        LIMIT 1
    ) known ON true
), summed AS (
    SELECT reason, tenant_id, usage_item_id, customer_id, price_id, meter_id, period_start, period_end, is_billing_period,
           count(DISTINCT window_start) AS hours, sum(token_count)::bigint AS tokens
    FROM dated
    GROUP BY reason, tenant_id, usage_item_id, customer_id, price_id, meter_id, period_start, period_end, is_billing_period
)
SELECT summed.reason, summed.tenant_id, summed.usage_item_id, summed.period_start, summed.period_end, summed.is_billing_period,
       summed.hours, summed.tokens, coalesce(billed.tokens, 0),
       price.price_id, price.currency, price.mode, price.tiers, price.package_size, price.package_rounds_up
FROM summed
LEFT JOIN billing.price price ON price.price_id = summed.price_id
LEFT JOIN billing.meter meter ON meter.meter_id = summed.meter_id
LEFT JOIN LATERAL (
    SELECT sum(report.token_count)::bigint AS tokens
    FROM billing.usage_report report
    WHERE report.customer_id = summed.customer_id AND report.event_name = meter.event_name
      AND report.usage_item_id = summed.usage_item_id AND report.state IN ('accepted', 'billed')
      AND report.window_start >= summed.period_start - interval '1 hour' AND report.window_start < summed.period_end
      AND report.event_time >= summed.period_start AND report.event_time < summed.period_end
) billed ON price.price_id IS NOT NULL
ORDER BY summed.reason, summed.tenant_id, summed.period_start
