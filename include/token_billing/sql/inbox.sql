-- name: store
-- Keeps the event unless it is there; tells the mode that the ledger is pinned to, and whether the event was kept now.
WITH pinned AS (
    SELECT stripe_livemode FROM billing.ledger
), kept AS (
    INSERT INTO billing.stripe_event
        (event_id, event_type, happened_at, livemode, api_version, subscription_id, customer_id, payload, came_by, received_at)
    SELECT %(event_id)s, %(event_type)s, %(happened_at)s, %(livemode)s, %(api_version)s, %(subscription_id)s, %(customer_id)s,
           %(payload)s, %(came_by)s, %(now)s
    FROM pinned
    -- safeguard: no event of the other mode
    WHERE stripe_livemode IS NULL OR stripe_livemode = %(livemode)s
    -- safeguard: an event is kept once
    ON CONFLICT (event_id) DO NOTHING
    RETURNING event_id
)
SELECT stripe_livemode, EXISTS (SELECT FROM kept) FROM pinned
