-- name: add_exclusion
-- Nobody pays for a tenant's usage from that time on.
INSERT INTO billing.excluded_tenant (tenant_id, reason, excluded_from, excluded_by)
VALUES (%(tenant_id)s, %(reason)s, %(since)s, %(by)s)

-- name: end_exclusion
-- A tenant's usage is billed again from that time on.
UPDATE billing.excluded_tenant SET excluded_until = %(until)s
WHERE tenant_id = %(tenant_id)s AND excluded_until IS NULL AND excluded_from < %(until)s
