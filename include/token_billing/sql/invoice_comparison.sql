-- name: take_turn
-- One at a time writes down what a comparison found.
LOCK TABLE billing.statement IN SHARE ROW EXCLUSIVE MODE

-- name: invoices_to_compare
-- Final invoices that were never compared since they changed, that became final lately, or on which something differed.
SELECT invoice_id, customer_id, subscription_id, billing_reason, status, currency, created_at, finalizes_at, finalized_at, total_cents, read_at
FROM billing.invoice
WHERE status <> 'draft'
  AND (compared_at IS NULL
       -- safeguard: what was sent near the end of an invoice
       -- (Not of a void one: it says what it said when it was voided, whatever became of its subscription since.)
       OR finalized_at > %(final_since)s AND compared_at < %(again_before)s AND status <> 'void'
       OR EXISTS (SELECT FROM billing.discrepancy
                  WHERE scope = invoice.invoice_id AND cause = ANY(%(causes)s::text[]) AND resolved_at IS NULL))
ORDER BY created_at, invoice_id

-- name: known_parts
-- Whose usage items bill and when: by timelines, and of items that are not followed by what Stripe said of them.
-- Those bill the tenants whose columns name them, else whose usage they were sent; so do prices of a meter that Stripe named for no period.
WITH followed AS (
    SELECT tenant_id, subscription_id, usage_item_id, price_id, meter_id, period_start, period_end, billed_from, billed_until
    FROM billing.subscription_period
    WHERE usage_item_id = ANY(%(items)s::text[])
), named AS (
    SELECT tenant.id AS tenant_id, tenant.stripe_usage_item_id AS usage_item_id
    FROM tenants tenant
    WHERE tenant.stripe_usage_item_id = ANY(%(items)s::text[])
      AND NOT EXISTS (SELECT FROM followed WHERE followed.usage_item_id = tenant.stripe_usage_item_id)
), sent AS (
    SELECT DISTINCT report.tenant_id, report.usage_item_id, report.meter_id
    FROM billing.usage_report report
    WHERE report.customer_id = ANY(%(customers)s::text[]) AND report.event_time IS NOT NULL
      AND report.usage_item_id = ANY(%(items)s::text[])
      AND report.usage_item_id NOT IN (SELECT usage_item_id FROM followed)
), billing_whom AS (
    SELECT tenant_id, usage_item_id FROM named
    UNION
    SELECT tenant_id, usage_item_id FROM sent WHERE usage_item_id NOT IN (SELECT usage_item_id FROM named)
)
SELECT * FROM followed
UNION
SELECT whom.tenant_id, reading.subscription_id, whom.usage_item_id, reading.price_id, reading.meter_id,
       reading.period_start, reading.period_end, reading.period_start, reading.period_end
FROM billing_whom whom
LEFT JOIN billing.item_reading reading USING (usage_item_id)
UNION
SELECT whom.tenant_id, NULL, whom.usage_item_id, priced.price_id, priced.meter_id, NULL, NULL, NULL, NULL
FROM billing_whom whom
JOIN sent USING (usage_item_id)
JOIN billing.meter_of_price priced ON priced.meter_id = sent.meter_id
WHERE NOT EXISTS (SELECT FROM billing.item_reading reading
                  WHERE reading.usage_item_id = sent.usage_item_id AND reading.meter_id = sent.meter_id AND reading.period_start IS NOT NULL)

-- name: charges_due
-- Spans of items that ended before invoices were made which should bill them, and that are on no invoice.
-- The invoice that should is the first that closes usage after the end of the billing period, or of the subscription.
WITH known AS (
    SELECT period.subscription_id, period.usage_item_id, period.price_id, period.period_start, period.period_end,
           period.billed_from, period.billed_until, least(period.period_end, link.ended_at) AS over_at
    FROM billing.subscription_period period
    JOIN billing.subscription_link link USING (subscription_id)
), not_followed AS (
    SELECT coalesce(reading.subscription_id, tenant.stripe_subscription_id) AS subscription_id, reading.usage_item_id, reading.price_id,
           reading.period_start, reading.period_end, reading.read_at
    FROM billing.item_reading reading
    LEFT JOIN tenants tenant ON tenant.stripe_usage_item_id = reading.usage_item_id
    WHERE NOT EXISTS (SELECT FROM billing.subscription_period followed WHERE followed.usage_item_id = reading.usage_item_id)
), told AS (
    -- Of a period in which nobody asked about the item, its invoices tell.
    SELECT DISTINCT ON (invoiced.usage_item_id, invoiced.period_start, invoiced.period_end)
           item.subscription_id, item.usage_item_id, item.price_id, invoiced.period_start, invoiced.period_end
    FROM billing.invoiced_period invoiced
    JOIN not_followed item USING (usage_item_id)
    WHERE NOT EXISTS (SELECT FROM billing.item_reading reading
                      WHERE reading.usage_item_id = invoiced.usage_item_id
                        AND reading.period_start < invoiced.period_end AND reading.period_end > invoiced.period_start)
    ORDER BY invoiced.usage_item_id, invoiced.period_start, invoiced.period_end,
             item.read_at > invoiced.period_end, abs(extract(epoch FROM item.read_at - invoiced.period_end))
), span AS (
    SELECT * FROM known
    UNION ALL
    SELECT subscription_id, usage_item_id, price_id, period_start, period_end, period_start, period_end, period_end
    FROM not_followed
    WHERE period_start IS NOT NULL
    UNION ALL
    SELECT told.*, period_start, period_end, period_end FROM told
)
SELECT closing.invoice_id, span.usage_item_id, span.price_id, min(span.billed_from), max(span.billed_until)
FROM span
CROSS JOIN LATERAL (
    SELECT invoice.invoice_id
    FROM billing.invoice
    WHERE invoice.subscription_id = span.subscription_id AND coalesce(invoice.billing_reason, '') <> ALL(%(not_closing)s::text[])
      AND invoice.created_at >= span.over_at
    ORDER BY invoice.created_at, invoice.invoice_id
    LIMIT 1
) closing
WHERE closing.invoice_id = ANY(%(ids)s::text[])
  AND NOT EXISTS (SELECT FROM billing.invoice_line line
                  JOIN billing.invoice other USING (invoice_id)
                  WHERE line.usage_item_id = span.usage_item_id AND line.kind = 'usage' AND line.price_id = span.price_id
                    AND line.period_start < span.billed_until AND line.period_end > span.billed_from
                    -- The invoice of the period before bills none of this one, whatever period its line names.
                    AND (line.invoice_id = closing.invoice_id
                         OR line.quantity > 0 AND other.created_at > span.billed_from + interval '1 hour'))
GROUP BY closing.invoice_id, span.usage_item_id, span.price_id, span.period_start, span.period_end

-- name: parts_of_periods
-- Charges of a part of the period of an item that is not followed, whose invoice bills all usage that the item was sent in that period.
-- Each is billed at a price of the meter that it was sent to: that the price changed in between, nobody was told.
SELECT DISTINCT charge.number
FROM jsonb_to_recordset(%(charges)s::jsonb) AS charge (
    number integer, invoice_id text, usage_item_id text, price_id text, period_start timestamptz, period_end timestamptz)
JOIN billing.invoice mine ON mine.invoice_id = charge.invoice_id
JOIN billing.item_reading reading
  ON reading.usage_item_id = charge.usage_item_id
 AND reading.period_start <= charge.period_start AND charge.period_end <= reading.period_end
 AND (reading.period_start < charge.period_start OR charge.period_end < reading.period_end)
WHERE NOT EXISTS (SELECT FROM billing.subscription_period followed WHERE followed.usage_item_id = charge.usage_item_id)
  AND NOT EXISTS (
    SELECT FROM billing.usage_report report
    WHERE report.customer_id = mine.customer_id AND report.usage_item_id = charge.usage_item_id AND report.state IN ('accepted', 'billed')
      AND report.window_start >= reading.period_start - interval '1 hour' AND report.window_start < reading.period_end
      AND report.event_time >= reading.period_start AND report.event_time < reading.period_end
      AND NOT EXISTS (
        SELECT FROM billing.invoice_line line
        JOIN billing.meter_of_price priced USING (price_id)
        WHERE line.invoice_id = charge.invoice_id AND line.usage_item_id = charge.usage_item_id AND line.kind = 'usage'
          AND line.period_start <= report.event_time AND report.event_time < line.period_end
          AND priced.meter_id IS NOT DISTINCT FROM report.meter_id))

-- name: usage_of_charges
-- The tokens of the reports that Stripe has accepted for charges' items in their periods.
WITH charge AS (
    SELECT * FROM jsonb_to_recordset(%(charges)s::jsonb) AS charge (
        number integer, customer_id text, usage_item_id text, meter_id text, period_start timestamptz, period_end timestamptz)
)
SELECT charge.number, coalesce(sent.tokens, recorded.tokens, 0)::bigint
FROM charge
LEFT JOIN billing.meter meter ON meter.meter_id = charge.meter_id
LEFT JOIN LATERAL (
    SELECT sum(report.token_count) AS tokens
    FROM billing.usage_report report
    WHERE report.customer_id = charge.customer_id AND report.event_name = meter.event_name
      AND report.window_start >= charge.period_start - interval '1 hour' AND report.window_start < charge.period_end
      AND report.usage_item_id = charge.usage_item_id AND report.state IN ('accepted', 'billed')
      AND report.event_time >= charge.period_start AND report.event_time < charge.period_end
) sent ON meter.meter_id IS NOT NULL
LEFT JOIN LATERAL (
    SELECT sum(report.token_count) AS tokens
    FROM billing.usage_report report
    WHERE report.sink = 'usage_records' AND report.usage_item_id = charge.usage_item_id AND report.state IN ('accepted', 'billed')
      AND report.event_time >= charge.period_start AND report.event_time < charge.period_end
) recorded ON meter.meter_id IS NULL
ORDER BY charge.number

-- name: reports_of_meter
-- What a customer's meter was sent in some hours, and what of it is counted for all that is known.
SELECT id, tenant_id, usage_item_id, window_start, event_time, token_count, state IN ('accepted', 'billed'), first_attempted_at, accepted_at
FROM billing.usage_report
WHERE customer_id = %(customer_id)s AND event_name = (SELECT event_name FROM billing.meter WHERE meter_id = %(meter_id)s)
  AND window_start >= %(start)s AND window_start < %(end)s AND attempt_count > 0
  AND (state IN ('accepted', 'billed', 'sending') OR state = 'unresolved' AND may_have_arrived)
ORDER BY window_start, id

-- name: reports_of_item
-- What an item of the legacy metered billing system was sent in a time.
SELECT id, tenant_id, usage_item_id, window_start, event_time, token_count, state IN ('accepted', 'billed'), first_attempted_at, accepted_at
FROM billing.usage_report
WHERE sink = 'usage_records' AND usage_item_id = %(usage_item_id)s AND event_time >= %(start)s AND event_time < %(end)s
  AND (state IN ('accepted', 'billed', 'sending') OR state = 'unresolved' AND may_have_arrived)
ORDER BY event_time

-- name: cancelled_since
-- Tokens that reports were counted beside, until that was cancelled after a time.
SELECT coalesce(sum(token_count), 0)::bigint FROM billing.surplus WHERE report_id = ANY(%(ids)s::bigint[]) AND cancelled_at >= %(since)s

-- name: prices
-- Prices as they were first read.
SELECT price_id, currency, mode, tiers, package_size, package_rounds_up FROM billing.price WHERE price_id = ANY(%(ids)s::text[])

-- name: note_price
-- What a price says now, where that is not what it said when it was read last.
INSERT INTO billing.price_reading (price_id, read_at, currency, mode, tiers, package_size, package_rounds_up)
SELECT %(id)s, %(now)s, %(currency)s, %(mode)s, %(tiers)s, %(package_size)s, %(package_rounds_up)s
FROM (SELECT currency, mode, tiers, package_size, package_rounds_up
      FROM (SELECT learned_at AS read_at, currency, mode, tiers, package_size, package_rounds_up FROM billing.price WHERE price_id = %(id)s
            UNION ALL
            SELECT read_at, currency, mode, tiers, package_size, package_rounds_up
            FROM billing.price_reading WHERE price_id = %(id)s) reading
      ORDER BY read_at DESC
      LIMIT 1) last
WHERE (last.currency, last.mode, last.tiers, last.package_size, last.package_rounds_up)
      IS DISTINCT FROM (%(currency)s, %(mode)s, %(tiers)s::jsonb, %(package_size)s::bigint, %(package_rounds_up)s::boolean)
ON CONFLICT DO NOTHING

-- name: tenants_of_customers
-- Customers that are tenants', and whose.
SELECT stripe_customer_id, id FROM tenants WHERE stripe_customer_id = ANY(%(ids)s::text[])
UNION
SELECT customer_id, tenant_id FROM billing.subscription_link WHERE customer_id = ANY(%(ids)s::text[])
ORDER BY 1, 2

-- name: trials
-- Trials of subscriptions, and whether their collection is paused, as last read.
SELECT subscription_id, (payload ->> 'trial_start')::bigint, (payload ->> 'trial_end')::bigint, payload -> 'pause_collection'
FROM billing.subscription WHERE subscription_id = ANY(%(ids)s::text[])

-- name: proposed_amounts
-- What proposals came to when they were decided.
SELECT id, amount_cents, currency FROM billing.proposal WHERE id = ANY(%(ids)s::bigint[]) AND amount_cents IS NOT NULL

-- name: billed_in_part
-- Charges of whose item's usage in the same time another invoice bills a part, each with that invoice.
SELECT charge.number, min(other.invoice_id)
FROM jsonb_to_recordset(%(charges)s::jsonb) AS charge (
    number integer, invoice_id text, usage_item_id text, price_id text, period_start timestamptz, period_end timestamptz)
JOIN billing.invoice_line line
  ON line.usage_item_id = charge.usage_item_id AND line.kind = 'usage'
 AND line.period_start < charge.period_end AND charge.period_start < line.period_end
JOIN billing.invoice other ON other.invoice_id = line.invoice_id
WHERE other.status <> 'void' AND other.invoice_id <> charge.invoice_id AND other.billing_reason = ANY(%(partial)s::text[])
GROUP BY charge.number

-- name: billed_elsewhere
-- Charges whose item an invoice that stands bills for most of the same time: an earlier one, or of a void invoice's charge any.
SELECT charge.number, min(other.invoice_id)
FROM jsonb_to_recordset(%(charges)s::jsonb) AS charge (
    number integer, invoice_id text, usage_item_id text, price_id text, period_start timestamptz, period_end timestamptz)
JOIN billing.invoice mine ON mine.invoice_id = charge.invoice_id
JOIN billing.invoice_line line
  ON line.usage_item_id = charge.usage_item_id AND line.kind = 'usage' AND line.price_id = charge.price_id AND line.quantity > 0
JOIN billing.invoice other ON other.invoice_id = line.invoice_id
 -- What is used after an invoice was made is not on it, whatever period its line names.
 AND least(line.period_end, charge.period_end, other.created_at) - greatest(line.period_start, charge.period_start)
     > (charge.period_end - charge.period_start) / 2
WHERE other.status <> 'void' AND other.invoice_id <> mine.invoice_id
  AND (mine.status = 'void' OR (other.created_at, other.invoice_id) < (mine.created_at, mine.invoice_id))
GROUP BY charge.number

-- name: billed_beside
-- Charges of items that nobody is linked to, at the price, and so of the meter, of an item that bills tenants of the same customer.
WITH charge AS (
    SELECT * FROM jsonb_to_recordset(%(charges)s::jsonb) AS charge (
        number integer, customer_id text, usage_item_id text, price_id text, period_start timestamptz, period_end timestamptz)
), linked AS (
    SELECT customer_id, tenant_id, usage_item_id, price_id, meter_id, billed_from, billed_until
    FROM billing.subscription_period
    UNION ALL
    SELECT tenant.stripe_customer_id, tenant.id, reading.usage_item_id, reading.price_id, reading.meter_id,
           coalesce(reading.period_start, '-infinity'), coalesce(reading.period_end, 'infinity')
    FROM tenants tenant
    JOIN billing.item_reading reading ON reading.usage_item_id = tenant.stripe_usage_item_id
    WHERE NOT EXISTS (SELECT FROM billing.subscription_period followed WHERE followed.usage_item_id = reading.usage_item_id)
)
SELECT charge.number, min(linked.usage_item_id), array_agg(DISTINCT linked.tenant_id)
FROM charge
JOIN linked
  ON linked.customer_id = charge.customer_id AND linked.price_id = charge.price_id AND linked.meter_id IS NOT NULL
 AND linked.billed_from < charge.period_end AND linked.billed_until > charge.period_start
WHERE NOT EXISTS (SELECT FROM billing.subscription_period followed WHERE followed.usage_item_id = charge.usage_item_id)
  AND NOT EXISTS (SELECT FROM tenants WHERE tenants.stripe_usage_item_id = charge.usage_item_id)
GROUP BY charge.number

-- name: rows_told_of
-- Windows of tenants whose changed rows are told of already, by a report.
SELECT DISTINCT report.tenant_id, report.window_start
FROM billing.discrepancy
JOIN billing.usage_report report ON report.id = discrepancy.report_id
WHERE discrepancy.cause = 'rows_changed' AND discrepancy.resolved_at IS NULL

-- name: note_compared
-- Invoices that were compared as they were read; one that was read anew meanwhile, with other lines, is compared again.
UPDATE billing.invoice SET compared_at = %(now)s
FROM jsonb_to_recordset(%(invoices)s::jsonb) AS compared (id text, read_at timestamptz)
-- safeguard: an invoice is compared as it was read
WHERE invoice.invoice_id = compared.id AND invoice.read_at = compared.read_at AND invoice.status <> 'draft'
