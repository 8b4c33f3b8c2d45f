-- name: add
-- What a comparison found, as a person reads it.
INSERT INTO billing.statement (made_at, title, discrepancy_count, csv, html)
VALUES (%(made_at)s, %(title)s, %(discrepancy_count)s, %(csv)s, %(html)s)

-- name: newest
-- The newest statements, without their texts.
SELECT id, made_at, title, discrepancy_count FROM billing.statement ORDER BY id DESC LIMIT %(most)s

-- name: csv
-- A statement as CSV; the newest, where none is named.
SELECT csv FROM billing.statement WHERE id = %(id)s OR %(id)s::bigint IS NULL ORDER BY id DESC LIMIT 1

-- name: html
-- A statement as a page; the newest, where none is named.
SELECT html FROM billing.statement WHERE id = %(id)s OR %(id)s::bigint IS NULL ORDER BY id DESC LIMIT 1
