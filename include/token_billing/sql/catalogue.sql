-- name: take_turn
-- Of several set-ups at once, one notes its prices.
LOCK TABLE billing.catalogue_price IN SHARE ROW EXCLUSIVE MODE

-- name: newest_prices
-- The newest price of each name.
SELECT name, price_id
FROM billing.catalogue_price
WHERE is_newest

-- name: prices_named
-- Every price ever known under some names.
SELECT price_id
FROM billing.catalogue_price
WHERE name = ANY(%(names)s)

-- name: retire_others
-- The name's newest price so far becomes an older one.
UPDATE billing.catalogue_price
SET is_newest = false
WHERE is_newest AND name = %(name)s AND price_id <> %(price_id)s

-- name: note_newest
-- The price that new subscriptions of this name get.
INSERT INTO billing.catalogue_price (price_id, name, is_newest, learned_at)
VALUES (%(price_id)s, %(name)s, true, %(now)s)
ON CONFLICT (price_id) DO UPDATE SET name = EXCLUDED.name, is_newest = true

-- name: note_older
-- A price under which subscriptions may go on.
INSERT INTO billing.catalogue_price (price_id, name, is_newest, learned_at)
VALUES (%(price_id)s, %(name)s, false, %(now)s)
ON CONFLICT (price_id) DO NOTHING
