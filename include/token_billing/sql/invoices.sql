-- name: metered_prices
-- The prices that are known to bill usage.
SELECT price_id FROM billing.price
UNION
SELECT price_id FROM billing.subscription_period

-- name: listed_until
-- Until when every invoice that was made has been read.
SELECT listed_until FROM billing.invoice_cursor

-- name: advance_cursor
-- Every invoice made until then has been read; of two listings at once the further one counts.
INSERT INTO billing.invoice_cursor (listed_until) VALUES (%(until)s)
ON CONFLICT (only_one) DO UPDATE SET listed_until = EXCLUDED.listed_until WHERE invoice_cursor.listed_until < EXCLUDED.listed_until

-- name: invoices_to_look_at
-- Known invoices that the listing begun at a time did not show, and that may have changed.
-- Drafts that it should have shown; older ones that nobody has looked at for long; and those of which an event told something since.
SELECT invoice_id FROM billing.invoice
WHERE status = 'draft' AND read_at < %(began)s AND (created_at >= %(listed_since)s OR read_at < %(read_before)s)
UNION
SELECT known.invoice_id
FROM billing.stripe_event event
JOIN billing.invoice known ON known.invoice_id = event.payload #>> '{data,object,id}'
-- safeguard: news of an invoice read long ago
WHERE event.handled_at >= %(news_since)s AND event.event_type LIKE 'invoice.%%' AND event.received_at >= known.read_at
  AND known.read_at < %(began)s
ORDER BY 1

-- name: store_invoice
-- An invoice as Stripe showed it; an older reading never overwrites a newer one.
INSERT INTO billing.invoice
    (invoice_id, customer_id, subscription_id, billing_reason, status, currency, created_at, finalizes_at, finalized_at, total_cents, read_at)
VALUES (%(id)s, %(customer_id)s, %(subscription_id)s, %(billing_reason)s, %(status)s, %(currency)s, %(created_at)s, %(finalizes_at)s,
        %(finalized_at)s, %(total_cents)s, %(read_at)s)
ON CONFLICT (invoice_id) DO UPDATE
SET customer_id = EXCLUDED.customer_id, subscription_id = EXCLUDED.subscription_id, billing_reason = EXCLUDED.billing_reason,
    status = EXCLUDED.status, currency = EXCLUDED.currency, created_at = EXCLUDED.created_at, finalizes_at = EXCLUDED.finalizes_at,
    finalized_at = EXCLUDED.finalized_at, total_cents = EXCLUDED.total_cents, read_at = EXCLUDED.read_at,
    compared_at = CASE WHEN invoice.status = EXCLUDED.status AND invoice.currency = EXCLUDED.currency THEN invoice.compared_at END
-- safeguard: an older reading of an invoice
WHERE invoice.read_at <= EXCLUDED.read_at
RETURNING invoice_id

-- name: lines_of
-- The lines of invoices as they were last read, in their order.
SELECT invoice_id, line_id, kind, usage_item_id, price_id, quantity, unit_cents, amount_cents, currency, period_start, period_end,
       description, invoice_item_id, proposal_id
FROM billing.invoice_line
WHERE invoice_id = ANY(%(ids)s::text[])
ORDER BY invoice_id, position

-- name: drop_lines
-- Takes an invoice's lines away, before others take their place.
DELETE FROM billing.invoice_line WHERE invoice_id = %(id)s

-- name: lines_changed
-- An invoice whose lines are not those that were compared is compared again.
UPDATE billing.invoice SET compared_at = NULL WHERE invoice_id = %(id)s AND compared_at IS NOT NULL

-- name: add_line
-- One line of an invoice.
INSERT INTO billing.invoice_line
    (invoice_id, position, line_id, kind, usage_item_id, price_id, quantity, unit_cents, amount_cents, currency, period_start, period_end,
     description, invoice_item_id, proposal_id)
VALUES (%(invoice_id)s, %(position)s, %(id)s, %(kind)s, %(usage_item_id)s, %(price_id)s, %(quantity)s, %(unit_cents)s, %(amount_cents)s,
        %(currency)s, %(period_start)s, %(period_end)s, %(description)s, %(invoice_item_id)s, %(proposal_id)s)

-- name: forget_draft
-- A draft that Stripe no longer has, with its lines.
DELETE FROM billing.invoice WHERE invoice_id = %(id)s AND status = 'draft' AND read_at < %(began)s

-- name: final_invoices_told
-- When the newest event about a final invoice was handled, of those handled since a time.
SELECT max(handled_at) FROM billing.stripe_event WHERE handled_at > %(since)s AND event_type = ANY(%(types)s::text[])
