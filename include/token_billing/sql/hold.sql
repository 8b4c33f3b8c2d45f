-- name: hold_unusual
-- Holds the shard's unsent reports whose tenant's hour, all revisions and sides together, comes to more than a gate allows; once each.
WITH waiting AS (
    SELECT id, tenant_id
    FROM billing.usage_report report
    WHERE window_start = %(window_start)s AND state = 'frozen' AND attempt_count = 0 AND token_count > 0
      AND (hashtextextended(tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
      AND NOT EXISTS (SELECT FROM billing.hold WHERE hold.report_id = report.id)
), hour AS (
    SELECT tenant_id, sum(token_count)::bigint AS tokens
    FROM billing.usage_report
    WHERE window_start = %(window_start)s AND tenant_id IN (SELECT tenant_id FROM waiting)
    GROUP BY tenant_id
), earlier_hour AS (
    SELECT tenant_id, window_start, sum(token_count) AS tokens
    FROM billing.usage_report
    WHERE %(multiple)s::numeric IS NOT NULL AND state = 'billed' AND tenant_id IN (SELECT tenant_id FROM waiting)
      AND window_start >= %(window_start)s - interval '28 days' AND window_start < %(window_start)s
    GROUP BY tenant_id, window_start
), history AS (
    SELECT tenant_id, (max(tokens) * %(multiple)s::numeric)::bigint AS allowed
    FROM earlier_hour
    GROUP BY tenant_id
    HAVING count(*) >= 24
)
-- safeguard: totals that look wrong are held
INSERT INTO billing.hold (report_id, reason, token_count, limit_tokens, held_at)
SELECT waiting.id, CASE WHEN hour.tokens > %(largest_total)s::bigint THEN 'absurd_total' ELSE 'beyond_history' END, hour.tokens,
       CASE WHEN hour.tokens > %(largest_total)s::bigint THEN %(largest_total)s::bigint ELSE history.allowed END, %(now)s
FROM waiting
JOIN hour USING (tenant_id)
LEFT JOIN history USING (tenant_id)
WHERE hour.tokens > %(largest_total)s::bigint OR hour.tokens > history.allowed
ON CONFLICT DO NOTHING

-- name: held_reports
-- Reports that wait for a decision, oldest first.
SELECT hold.report_id, report.tenant_id, report.window_start, hold.reason, hold.token_count, hold.limit_tokens
FROM billing.hold
JOIN billing.usage_report report ON report.id = hold.report_id
WHERE hold.decision IS NULL
ORDER BY report.window_start, hold.report_id

-- name: take_questions
-- Undecided reports that nobody has been asked about since a time; from now on somebody is. Of several runs at once, one gets each.
WITH unasked AS (
    SELECT report_id
    FROM billing.hold
    WHERE decision IS NULL AND (asked_at IS NULL OR asked_at < %(asked_before)s)
    -- safeguard: each question is asked once
    FOR UPDATE SKIP LOCKED  -- who holds the lock asks about it, or decides
), asked AS (
    UPDATE billing.hold
    SET asked_at = %(now)s
    FROM unasked
    WHERE hold.report_id = unasked.report_id
    RETURNING hold.report_id, hold.reason, hold.token_count, hold.limit_tokens
)
SELECT asked.report_id, report.tenant_id, report.window_start, asked.reason, asked.token_count, asked.limit_tokens
FROM asked
JOIN billing.usage_report report ON report.id = asked.report_id
ORDER BY report.window_start, asked.report_id

-- name: decide
-- Writes the decision down, unless there is one; a refused report is quarantined.
WITH decided AS (
    UPDATE billing.hold
    SET decision = %(decision)s, decided_by = %(by)s, decided_at = %(now)s
    -- safeguard: a decision stands
    WHERE report_id = %(report_id)s AND decision IS NULL
    RETURNING report_id
), refused AS (
    UPDATE billing.usage_report
    SET state = 'quarantined', quarantined_at = %(now)s, quarantine_reason = 'refused_at_gate'
    -- safeguard: a refused report is kept aside
    WHERE id IN (SELECT report_id FROM decided) AND %(decision)s = 'refused' AND state = 'frozen' AND attempt_count = 0
)
SELECT count(*) FROM decided

-- name: decision
-- What was decided about a report, and by whom.
SELECT decision, decided_by FROM billing.hold WHERE report_id = %(report_id)s
