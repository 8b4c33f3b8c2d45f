-- name: identity
-- What the ledger is pinned to, its newest migration, and whether it lies in the cluster whose transaction ids its fences speak of.
SELECT ledger_id::text, stripe_account_id, stripe_livemode, cut_over, system_identifier,
       (SELECT system_identifier FROM pg_control_system()), (SELECT version_num FROM billing.migration),
       epoch, noted_attempts, recovered_at
FROM billing.ledger

-- name: create
-- The one ledger of this database.
INSERT INTO billing.ledger (system_identifier, cut_over, adopted_at)
SELECT system_identifier, %(cut_over)s, %(now)s FROM pg_control_system()
ON CONFLICT DO NOTHING

-- name: pin_account
-- Pins the Stripe account and mode at first contact; the first one wins.
UPDATE billing.ledger
SET stripe_account_id = %(account_id)s, stripe_livemode = %(livemode)s, pinned_at = %(now)s
-- safeguard: the first account stays
WHERE pinned_at IS NULL

-- name: exists
-- Whether the adoption has begun.
SELECT to_regclass('billing.ledger') IS NOT NULL

-- name: column_types
-- The types of one table's columns.
SELECT attname, format_type(atttypid, atttypmod)
FROM pg_attribute
WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped

-- name: anything_billed
-- Whether some job has billed from this table before.
SELECT EXISTS (SELECT FROM token_usage WHERE billed)

-- name: unbillable_rows
-- Rows from before the adoption that no report could hold.
SELECT id
FROM token_usage
WHERE (tenant_id IS NULL OR created_at IS NULL OR NOT isfinite(created_at) OR billed IS NULL OR input_tokens IS NULL OR output_tokens IS NULL
       OR input_tokens < 0 OR output_tokens < 0)
  AND (created_at >= %(cut_over)s::timestamptz OR %(cut_over)s::timestamptz IS NULL OR created_at IS NULL)
ORDER BY id
LIMIT 10

-- name: windows_before
-- The windows before the cut-over hour that hold unbilled rows.
SELECT DISTINCT date_trunc('hour', created_at, 'UTC') AS window_start
FROM token_usage
WHERE created_at < %(cut_over)s AND NOT billed
ORDER BY window_start

-- name: has_time_index
-- Whether some whole index begins with the event time.
SELECT EXISTS (
    SELECT FROM pg_index
    JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
    WHERE indrelid = 'token_usage'::regclass AND attname = 'created_at' AND indpred IS NULL AND indisvalid
)

-- name: take_adoption_turn
-- Of several adoptions at once, one looks for the index and makes it.
-- safeguard: one adoption makes the index
SELECT pg_advisory_xact_lock(hashtext('token_billing.adopt'))

-- name: add_time_index
-- A block-range index finds an hour in any table that grows with time, and costs the marking next to nothing.
-- Not CONCURRENTLY: two of those at once deadlock, and one that is killed leaves an invalid index behind.
CREATE INDEX token_usage_billing_time ON token_usage USING brin (created_at) WITH (pages_per_range = 32)
