-- name: cursor
-- Until when the inbox holds every event that Stripe lists.
SELECT swept_until FROM billing.event_cursor

-- name: handled_until
-- Until when every event that Stripe lists is in the inbox and handled.
-- safeguard: what is listed is handled as well
SELECT least(swept_until, (SELECT min(happened_at) FROM billing.stripe_event WHERE handled_at IS NULL)) FROM billing.event_cursor

-- name: advance_cursor
-- The inbox holds every event until then; of two sweeps at once the further one counts.
INSERT INTO billing.event_cursor (swept_until) VALUES (%(until)s)
ON CONFLICT (only_one) DO UPDATE SET swept_until = EXCLUDED.swept_until WHERE event_cursor.swept_until < EXCLUDED.swept_until

-- name: unhandled_events
-- Events that nothing has followed from yet, the oldest first.
SELECT payload FROM billing.stripe_event WHERE handled_at IS NULL ORDER BY happened_at, event_id LIMIT %(most)s

-- name: handled
-- Notes that what follows from the events is done.
UPDATE billing.stripe_event SET handled_at = %(now)s WHERE event_id = ANY(%(ids)s::text[]) AND handled_at IS NULL

-- name: take_turn
-- One at a time works out what follows from events; whoever waited sees what the other wrote.
LOCK TABLE billing.subscription_link IN SHARE ROW EXCLUSIVE MODE

-- name: subscriptions_to_look_at
-- Subscriptions that the application gave its tenants and that nobody follows yet; those of which no news came for long.
-- Those are read once a day while their periods are known for less than a week ahead.
SELECT tenant.stripe_subscription_id
FROM tenants tenant
LEFT JOIN billing.subscription_link link
  ON link.subscription_id = tenant.stripe_subscription_id AND link.tenant_id = tenant.id
LEFT JOIN billing.subscription known ON known.subscription_id = link.subscription_id
WHERE tenant.stripe_subscription_id <> '' AND tenant.stripe_customer_id <> ''
  AND (link.subscription_id IS NULL
       OR link.ended_at IS NULL AND known.asked_at < %(now)s - interval '1 day'
          AND NOT EXISTS (SELECT FROM billing.subscription_period period
                          WHERE period.tenant_id = tenant.id AND period.billed_until > %(now)s + interval '7 days'))
  AND NOT EXISTS (SELECT FROM billing.discrepancy
                  WHERE cause = 'unknown_subscription' AND stripe_id = tenant.stripe_subscription_id AND resolved_at IS NULL)
ORDER BY tenant.id
LIMIT %(most)s

-- name: store_subscription
-- A subscription as Stripe showed it; older news never overwrites newer.
INSERT INTO billing.subscription (subscription_id, payload, asked_at) VALUES (%(id)s, %(payload)s, %(asked_at)s)
-- safeguard: newer readings stay
ON CONFLICT (subscription_id) DO UPDATE SET payload = EXCLUDED.payload, asked_at = EXCLUDED.asked_at
WHERE subscription.asked_at <= EXCLUDED.asked_at

-- name: tenant_of
-- The first of the claimed tenants that exists, else the one whose customer it is.
SELECT id FROM tenants
WHERE id = ANY(%(claims)s::text[]) OR %(customer_id)s <> '' AND stripe_customer_id = %(customer_id)s
ORDER BY array_position(%(claims)s::text[], id) NULLS LAST, id
LIMIT 1

-- name: add_checkout
-- A checkout of a tenant's, once.
INSERT INTO billing.checkout (event_id, tenant_id, subscription_id, customer_id, happened_at)
VALUES (%(event_id)s, %(tenant_id)s, %(subscription_id)s, %(customer_id)s, %(happened_at)s)
ON CONFLICT DO NOTHING

-- name: checkouts_of_nobody
-- Checkouts that no tenant was found for when they came.
SELECT event.payload
FROM billing.discrepancy
JOIN billing.stripe_event event ON event.event_id = discrepancy.stripe_id
WHERE discrepancy.cause = 'unknown_tenant' AND discrepancy.resolved_at IS NULL AND discrepancy.report_id IS NULL
ORDER BY event.happened_at, event.event_id

-- name: settle_checkout
-- A tenant was found for a checkout after all.
UPDATE billing.discrepancy SET resolved_at = %(now)s WHERE cause = 'unknown_tenant' AND stripe_id = %(event_id)s AND resolved_at IS NULL

-- name: subscriptions_of_customer
-- The followed subscriptions of a customer.
SELECT subscription_id FROM billing.subscription_link WHERE customer_id = %(customer_id)s

-- name: tenants_of_subscriptions
-- Whose usage the subscriptions bill, or may bill: as linked, as bought, or as the application says; and whose could not be worked out.
SELECT tenant_id FROM billing.subscription_link WHERE subscription_id = ANY(%(ids)s::text[])
UNION
SELECT tenant_id FROM billing.checkout WHERE subscription_id = ANY(%(ids)s::text[])
UNION
SELECT id FROM tenants WHERE stripe_subscription_id = ANY(%(adopted_ids)s::text[])
UNION
SELECT tenant_id FROM billing.discrepancy WHERE cause = 'event_not_applied' AND tenant_id IS NOT NULL AND resolved_at IS NULL

-- name: tenant_columns
-- What the application's own table says of a tenant's link.
SELECT coalesce(stripe_customer_id, ''), coalesce(stripe_subscription_id, ''), coalesce(stripe_usage_item_id, '')
FROM tenants WHERE id = %(tenant_id)s FOR NO KEY UPDATE

-- name: checkouts_of
-- All checkouts of a tenant.
SELECT happened_at, event_id, tenant_id, subscription_id, customer_id FROM billing.checkout WHERE tenant_id = %(tenant_id)s

-- name: links_of
-- A tenant's links as they are, in the order in which they were made.
SELECT link.subscription_id, link.customer_id, link.checkout_event_id
FROM billing.subscription_link link
WHERE link.tenant_id = %(tenant_id)s
ORDER BY link.linked_at, link.subscription_id

-- name: known_subscriptions
-- Subscriptions as last read.
SELECT payload, asked_at FROM billing.subscription WHERE subscription_id = ANY(%(ids)s::text[])

-- name: subscription_events
-- All that events told of subscriptions.
SELECT payload FROM billing.stripe_event
WHERE subscription_id = ANY(%(ids)s::text[]) AND event_type LIKE 'customer.subscription.%%'

-- name: set_link
-- Links a subscription to a tenant; nothing where it bills another one.
INSERT INTO billing.subscription_link
    (subscription_id, tenant_id, customer_id, checkout_event_id, linked_at, ended_at, customer_deleted_at)
SELECT %(subscription_id)s, %(tenant_id)s, %(customer_id)s, %(checkout_event_id)s, %(linked_at)s, %(ended_at)s,
       (SELECT min(happened_at) FROM billing.stripe_event WHERE event_type = 'customer.deleted' AND customer_id = %(customer_id)s)
ON CONFLICT (subscription_id) DO UPDATE
SET customer_id = EXCLUDED.customer_id, checkout_event_id = EXCLUDED.checkout_event_id, ended_at = EXCLUDED.ended_at,
    customer_deleted_at = EXCLUDED.customer_deleted_at
WHERE subscription_link.tenant_id = EXCLUDED.tenant_id

-- name: drop_links
-- Takes links back that an earlier checkout, learned of later, showed to be none.
DELETE FROM billing.subscription_link
WHERE tenant_id = %(tenant_id)s AND checkout_event_id IS NOT NULL AND subscription_id <> ALL(%(kept)s::text[])

-- name: periods_of
-- A tenant's timeline as it is.
SELECT id, subscription_id, customer_id, usage_item_id, price_id, meter_id, period_start, period_end, billed_from, billed_until
FROM billing.subscription_period WHERE tenant_id = %(tenant_id)s
ORDER BY billed_from

-- name: drop_periods
-- Takes parts of a timeline away, before others take their place.
DELETE FROM billing.subscription_period WHERE id = ANY(%(ids)s::bigint[])

-- name: add_period
-- A part of a tenant's timeline.
INSERT INTO billing.subscription_period
    (tenant_id, subscription_id, customer_id, usage_item_id, price_id, meter_id, period_start, period_end, billed_from, billed_until)
VALUES (%(tenant_id)s, %(subscription_id)s, %(customer_id)s, %(usage_item_id)s, %(price_id)s, %(meter_id)s,
        %(period_start)s, %(period_end)s, %(billed_from)s, %(billed_until)s)

-- name: set_tenant_columns
-- The application's own columns name the tenant's present link.
UPDATE tenants
SET stripe_customer_id = %(customer_id)s, stripe_subscription_id = %(subscription_id)s, stripe_usage_item_id = %(usage_item_id)s
WHERE id = %(tenant_id)s
  AND (stripe_customer_id, stripe_subscription_id, stripe_usage_item_id)
      IS DISTINCT FROM (%(customer_id)s, %(subscription_id)s, %(usage_item_id)s)

-- name: unknown_prices
-- Prices of timelines whose meter or terms nobody has asked Stripe about yet.
SELECT DISTINCT period.price_id
FROM billing.subscription_period period
WHERE period.meter_id IS NOT NULL AND NOT EXISTS (SELECT FROM billing.meter WHERE meter.meter_id = period.meter_id)
      AND NOT EXISTS (SELECT FROM billing.unusable_meter unusable WHERE unusable.meter_id = period.meter_id)
   OR NOT EXISTS (SELECT FROM billing.price WHERE price.price_id = period.price_id)
ORDER BY period.price_id
LIMIT 100

-- name: note_unusable_meter
-- A meter that no usage can be billed from, and why.
INSERT INTO billing.unusable_meter (meter_id, problem) VALUES (%(meter_id)s, %(problem)s)
ON CONFLICT (meter_id) DO UPDATE SET problem = EXCLUDED.problem

-- name: endings
-- Subscriptions that ended lately, each with the last part of the timeline that it billed.
-- They are left out once a last invoice is known, or it is told that there is none.
SELECT link.subscription_id, link.tenant_id, last.usage_item_id, last.period_start, last.period_end, last.billed_until, link.ended_at
FROM billing.subscription_link link
CROSS JOIN LATERAL (
    SELECT period.usage_item_id, period.period_start, period.period_end, period.billed_until
    FROM billing.subscription_period period
    WHERE period.tenant_id = link.tenant_id AND period.subscription_id = link.subscription_id AND period.billed_from < link.ended_at
    ORDER BY period.billed_from DESC
    LIMIT 1
) last
WHERE link.ended_at > %(since)s AND link.ended_at <= %(until)s
  AND NOT EXISTS (SELECT FROM billing.invoiced_period invoiced
                  WHERE invoiced.usage_item_id = last.usage_item_id AND invoiced.period_start < last.billed_until
                    AND invoiced.period_end >= last.billed_until)
  AND NOT EXISTS (SELECT FROM billing.discrepancy
                  WHERE cause = 'cancelled_without_invoice' AND stripe_id = link.subscription_id)
ORDER BY link.ended_at

-- name: overtaken
-- Tenants with reports that were frozen before news of their billing was handled and first attempted after it, and since when.
-- A push that was under way meanwhile sent them by what it had read before; five minutes lie between an attempt's time and its commit.
SELECT link.tenant_id, min(report.window_start)
FROM billing.stripe_event event
JOIN billing.subscription_link link USING (subscription_id)
JOIN billing.usage_report report ON report.tenant_id = link.tenant_id
WHERE event.handled_at > %(since)s AND event.event_type LIKE 'customer.subscription.%%'
  AND report.window_start > %(since)s - interval '36 days'
  AND report.frozen_at <= event.handled_at AND report.first_attempted_at >= event.handled_at - interval '5 minutes'
GROUP BY link.tenant_id

-- name: items_of
-- The items that a subscription bills, or billed, a tenant's usage by.
SELECT DISTINCT usage_item_id FROM billing.subscription_period WHERE subscription_id = %(subscription_id)s ORDER BY usage_item_id
