-- name: current_pause
-- Who paused all sending, when and why; no row where it is not paused.
SELECT paused_by, paused_at, reason
FROM billing.pause
WHERE resumed_at IS NULL

-- name: pause
-- Pauses all sending; nothing happens where it is paused already.
INSERT INTO billing.pause (paused_by, paused_at, reason)
VALUES (%(by)s, %(now)s, %(reason)s)
-- safeguard: one pause at a time
ON CONFLICT DO NOTHING

-- name: resume
-- Ends the pause.
UPDATE billing.pause
SET resumed_by = %(by)s, resumed_at = %(now)s
WHERE resumed_at IS NULL
