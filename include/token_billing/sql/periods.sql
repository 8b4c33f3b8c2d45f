-- name: items_outside_their_period
-- Subscription items of the shard's open reports that may be dated outside the item's present period, as far as that is known.
SELECT DISTINCT goes.usage_item_id, coalesce(period.subscription_id, item.subscription_id)
FROM billing.usage_report report
LEFT JOIN billing.destination ON destination.report_id = report.id
CROSS JOIN LATERAL (SELECT coalesce(report.usage_item_id, destination.usage_item_id) AS usage_item_id) goes
LEFT JOIN billing.subscription_period period
  ON period.tenant_id = report.tenant_id AND period.usage_item_id = goes.usage_item_id
 AND period.billed_from <= coalesce(report.event_time, report.side_start)
 AND coalesce(report.event_time, report.side_start) < period.billed_until
LEFT JOIN billing.subscription_link link ON link.subscription_id = period.subscription_id
LEFT JOIN billing.metered_item item ON item.usage_item_id = goes.usage_item_id
WHERE report.window_start = %(window_start)s AND report.state IN ('frozen', 'sending', 'unresolved') AND report.token_count > 0
  AND (hashtextextended(report.tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
  AND coalesce(period.subscription_id, item.subscription_id) IS NOT NULL
  AND CASE WHEN period.id IS NOT NULL THEN least(period.billed_until, link.ended_at) <= %(now)s
           ELSE item.period_end <= %(now)s OR item.period_start > report.window_start AND NOT item.is_first_period END
ORDER BY goes.usage_item_id

-- name: invoiced_periods
-- What is known of the invoices that bill some items' usage at a time.
SELECT usage_item_id, period_start, period_end, invoice_id, invoice_status, finalizes_at, seen_at
FROM billing.invoiced_period
WHERE usage_item_id = ANY(%(usage_item_ids)s::text[]) AND period_start < %(window_end)s AND period_end > %(window_start)s

-- name: note_invoiced_period
-- What Stripe said of an invoice; newer news replaces older.
INSERT INTO billing.invoiced_period (usage_item_id, period_start, period_end, invoice_id, invoice_status, finalizes_at, seen_at)
VALUES (%(usage_item_id)s, %(period_start)s, %(period_end)s, %(invoice_id)s, %(status)s, %(finalizes_at)s, %(seen_at)s)
ON CONFLICT (usage_item_id, invoice_id, period_start) DO UPDATE
SET period_end = EXCLUDED.period_end, invoice_status = EXCLUDED.invoice_status, finalizes_at = EXCLUDED.finalizes_at,
    seen_at = EXCLUDED.seen_at
WHERE invoiced_period.seen_at <= EXCLUDED.seen_at
