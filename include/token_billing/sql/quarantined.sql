-- name: quarantined_usage
-- Quarantined and rejected usage by reason, tenant, item and period, with its price and what the item's period has billed beside it.
-- The period is the item's billing period where one is known to hold the usage, else the calendar month in UTC.
WITH aside AS (
    SELECT coalesce(report.quarantine_reason, report.state) AS reason, report.tenant_id, report.window_start, report.token_count,
           coalesce(report.event_time, report.side_start) AS used_at,
           coalesce(report.usage_item_id, near.usage_item_id, nullif(tenant.stripe_usage_item_id, '')) AS usage_item_id,
           coalesce(report.customer_id, near.customer_id, tenant.stripe_customer_id) AS customer_id,
           near.price_id AS near_price_id, near.meter_id AS near_meter_id, near.period_start AS near_start, near.period_end AS near_end
    FROM billing.usage_report report
    LEFT JOIN tenants tenant ON tenant.id = report.tenant_id
    -- What bills the tenant then; else what billed it last before, else what billed it first.
    LEFT JOIN LATERAL (
        SELECT period.usage_item_id, period.customer_id, period.price_id, period.meter_id, period.period_start, period.period_end
        FROM billing.subscription_period period
        WHERE period.tenant_id = report.tenant_id
          AND (report.usage_item_id IS NULL OR period.usage_item_id = report.usage_item_id)
        ORDER BY period.billed_from > coalesce(report.event_time, report.side_start),
                 abs(extract(epoch FROM period.billed_from - coalesce(report.event_time, report.side_start)))
        LIMIT 1
    ) near ON true
    WHERE report.state IN ('quarantined', 'rejected')
      AND (%(window_start)s::timestamptz IS NULL OR report.window_start = %(window_start)s AND report.quarantined_at >= %(since)s)
      AND (hashtextextended(report.tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
), dated AS (
    SELECT aside.reason, aside.tenant_id, aside.window_start, aside.token_count, aside.usage_item_id, aside.customer_id,
           coalesce(near_price_id, item.price_id) AS price_id, coalesce(near_meter_id, item.meter_id) AS meter_id,
           known.period_start IS NOT NULL AS is_billing_period,
           coalesce(known.period_start, date_trunc('month', used_at, 'UTC')) AS period_start,
           coalesce(known.period_end,
                    (date_trunc('month', used_at AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC') AS period_end
    FROM aside
    LEFT JOIN billing.metered_item item ON item.usage_item_id = aside.usage_item_id
    LEFT JOIN LATERAL (
        SELECT period.period_start, period.period_end
        FROM (SELECT item.period_start, item.period_end
              UNION ALL
              SELECT near_start, near_end
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
LEFT JOIN LATERAL (
    SELECT sum(report.token_count)::bigint AS tokens
    FROM billing.usage_report report
    WHERE report.customer_id = summed.customer_id AND report.meter_id IS NOT DISTINCT FROM summed.meter_id
      AND report.usage_item_id = summed.usage_item_id AND report.state IN ('accepted', 'billed')
      AND report.window_start >= summed.period_start - interval '1 hour' AND report.window_start < summed.period_end
      AND report.event_time >= summed.period_start AND report.event_time < summed.period_end
) billed ON price.price_id IS NOT NULL
ORDER BY summed.reason, summed.tenant_id, summed.period_start
