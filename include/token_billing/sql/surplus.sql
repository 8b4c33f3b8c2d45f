-- name: note_late_answers
-- Stripe has events under identifiers that their reports have given up since: they are surplus.
INSERT INTO billing.surplus (report_id, identifier, token_count, how, found_at)
SELECT report.id, late.identifier, report.token_count, 'late_answer', %(now)s
FROM unnest(%(ids)s::bigint[], %(identifiers)s::text[]) AS late (id, identifier)
-- safeguard: only a given-up identifier is surplus
JOIN billing.usage_report report ON report.id = late.id AND report.identifier <> late.identifier AND report.sink = 'billing_meters'
ON CONFLICT (identifier) DO NOTHING

-- name: note_surplus
-- Stripe's summary proves that identifiers which a report has given up are counted beside its own.
INSERT INTO billing.surplus (report_id, identifier, token_count, how, found_at)
SELECT report.id, given_up.identifier, report.token_count, 'read_back', %(now)s
FROM unnest(%(identifiers)s::text[]) AS given_up (identifier)
JOIN billing.usage_report report ON report.id = %(report_id)s
ON CONFLICT (identifier) DO UPDATE SET how = EXCLUDED.how

-- name: given_up_reports
-- Settled reports of which Stripe may count an event under an identifier they gave up; first those that were not looked at for longest.
-- In question are identifiers of which some attempt has no final answer, as long as Stripe takes events of that time, and late answers
-- that nobody has acted on. A surplus that is being cancelled, or was just now, has to leave the minute first. What was given up for a
-- person to settle still counts in it.
WITH in_question AS (
    SELECT attempt.report_id, attempt.identifier, surplus.id IS NOT NULL AS has_arrived, max(attempt.attempt) AS last_attempt
    FROM billing.usage_report report
    JOIN billing.push_attempt attempt ON attempt.report_id = report.id AND attempt.identifier <> report.identifier
    LEFT JOIN billing.surplus ON surplus.identifier = attempt.identifier
    WHERE report.generation > 0 AND report.event_time > %(oldest_event)s AND report.state IN ('accepted', 'billed', 'quarantined')
      AND report.sink = 'billing_meters' -- a usage record sent twice is set twice
      -- safeguard: identifiers in question
      AND CASE WHEN surplus.id IS NULL THEN attempt.outcome IS NULL OR attempt.outcome NOT IN ('accepted', 'rejected')
               ELSE surplus.how = 'late_answer' AND surplus.cancelled_at IS NULL AND surplus.gave_up_at IS NULL
                    AND surplus.resolved_at IS NULL
          END
    GROUP BY attempt.report_id, attempt.identifier, surplus.id
), given_up AS (
    SELECT report_id, array_agg(identifier ORDER BY has_arrived DESC, last_attempt DESC) AS identifiers
    FROM in_question
    GROUP BY report_id
)
SELECT report.id, report.tenant_id, report.token_count, report.customer_id, report.meter_id,
       date_trunc('minute', report.event_time, 'UTC'), given_up.identifiers,
       CASE WHEN report.state = 'quarantined' THEN 0 ELSE report.token_count END + minute.other_tokens + known.token_count,
       minute.in_doubt, coalesce(look.unexplained_token_count, 0)
FROM given_up
JOIN billing.usage_report report ON report.id = given_up.report_id
LEFT JOIN billing.surplus_look look ON look.report_id = report.id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(other.token_count) FILTER (WHERE other.state IN ('accepted', 'billed')), 0)::bigint AS other_tokens,
           coalesce(bool_or(other.state NOT IN ('accepted', 'billed')), false) AS in_doubt
    FROM billing.usage_report other
    WHERE other.customer_id = report.customer_id AND other.event_name = report.event_name AND other.window_start = report.window_start
      AND date_trunc('minute', other.event_time, 'UTC') = date_trunc('minute', report.event_time, 'UTC')
      AND other.id <> report.id AND other.attempt_count > 0
) minute
CROSS JOIN LATERAL (
    SELECT coalesce(sum(surplus.token_count) FILTER (WHERE surplus.gave_up_at IS NOT NULL), 0)::bigint AS token_count,
           coalesce(bool_or(surplus.cancelled_at > %(settling_since)s
                            OR surplus.cancelled_at IS NULL AND surplus.gave_up_at IS NULL AND surplus.resolved_at IS NULL
                               AND (surplus.how = 'read_back' OR surplus.attempt_count > 0)), false) AS on_its_way
    FROM billing.surplus
    WHERE surplus.report_id = report.id
) known
-- safeguard: a cancelled event has to leave its minute
WHERE NOT known.on_its_way
  AND (look.looked_at IS NULL
       OR look.looked_at <= CASE WHEN coalesce(report.accepted_at, report.quarantined_at) > %(closely_since)s
                                 THEN %(closely_looked_before)s::timestamptz ELSE %(looked_before)s END)
ORDER BY look.looked_at NULLS FIRST, report.id
LIMIT %(most)s

-- name: note_look
-- The summary of a report's minute was read, and held so many tokens that nothing of ours explains.
INSERT INTO billing.surplus_look (report_id, looked_at, unexplained_token_count)
VALUES (%(report_id)s, %(now)s, %(unexplained)s)
ON CONFLICT (report_id) DO UPDATE
SET looked_at = EXCLUDED.looked_at, unexplained_token_count = EXCLUDED.unexplained_token_count

-- name: dismiss_late_answers
-- A late answer that told of the very event for which the report was accepted: the settled minute holds the report once.
UPDATE billing.surplus
SET resolved_at = %(now)s, resolved_by = 'the summary of its minute', message = 'Stripe counts the report once'
-- safeguard: an answer about the event that counts
WHERE report_id = %(report_id)s AND how = 'late_answer' AND attempt_count = 0 AND resolved_at IS NULL AND found_at <= %(found_before)s

-- name: surplus_to_cancel
-- What is certainly too much, those tried least first.
-- That is what the minute proved, and late answers of reports of which it is known without the minute what became of them.
SELECT surplus.id, report.tenant_id, surplus.identifier, report.event_name, surplus.token_count, surplus.key_number
FROM billing.surplus
JOIN billing.usage_report report ON report.id = surplus.report_id
WHERE surplus.cancelled_at IS NULL AND surplus.gave_up_at IS NULL AND surplus.resolved_at IS NULL
  -- safeguard: only what is certainly too much is cancelled
  AND (surplus.how = 'read_back' OR report.state NOT IN ('accepted', 'billed')
       OR EXISTS (SELECT FROM billing.push_attempt attempt
                  WHERE attempt.report_id = report.id AND attempt.identifier = report.identifier AND attempt.outcome = 'accepted'))
ORDER BY surplus.attempt_count, surplus.id

-- name: note_cancellation
-- Writes down, before Stripe is asked, that it may have been.
UPDATE billing.surplus
SET attempt_count = attempt_count + 1, attempted_at = %(now)s
WHERE id = %(id)s

-- name: record_cancellation
-- Writes down what Stripe did: cancelled the event, refused for good, or neither. What is cancelled or given up already stays so.
UPDATE billing.surplus
SET cancelled_at = CASE WHEN %(outcome)s = 'cancelled' THEN %(now)s::timestamptz END,
    gave_up_at = CASE WHEN %(outcome)s = 'not_cancellable' THEN %(now)s::timestamptz END,
    message = %(message)s,
    key_number = key_number + %(new_key)s::int
-- safeguard: a cancellation that ended stays so
WHERE id = %(id)s AND cancelled_at IS NULL AND gave_up_at IS NULL AND resolved_at IS NULL

-- name: given_up_tokens
-- Tokens by tenant that Stripe counts too much and will not cancel, until somebody has settled them.
SELECT report.tenant_id, sum(surplus.token_count)::bigint
FROM billing.surplus
JOIN billing.usage_report report ON report.id = surplus.report_id
WHERE surplus.gave_up_at IS NOT NULL AND surplus.resolved_at IS NULL
GROUP BY report.tenant_id
ORDER BY report.tenant_id
