-- name: write_down
-- Who decided what, and what it changed; in the transaction that changes it.
INSERT INTO billing.audit (action, subject, decided_by, decided_at, before, after)
VALUES (%(action)s, %(subject)s, %(by)s, %(now)s, %(before)s, %(after)s)

-- name: entries
-- What was decided, the newest first.
SELECT id, decided_at, decided_by, action, subject, before, after
FROM billing.audit
WHERE %(subject)s::text IS NULL OR subject = %(subject)s
ORDER BY id DESC
LIMIT %(most)s
