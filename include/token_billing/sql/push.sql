-- name: accept_zero_totals
-- A report of no tokens needs no call.
UPDATE billing.usage_report
-- safeguard: only nothing is accepted unsent
SET state = 'accepted', accepted_at = %(now)s
WHERE window_start = %(window_start)s AND state = 'frozen' AND attempt_count = 0 AND token_count = 0

-- name: items_in_the_way
-- Why reports of the shard cannot be sent yet: subscription items that Stripe must be asked about, NULL where they lead to none.
-- LEFT JOIN, here and below: it keeps the planner from working the view out for all reports there are.
SELECT DISTINCT CASE WHEN destination.reason IS NULL AND NOT destination.is_followed THEN destination.usage_item_id END
FROM billing.usage_report report
LEFT JOIN billing.destination ON destination.report_id = report.id
LEFT JOIN billing.metered_item item ON item.usage_item_id = destination.usage_item_id AND NOT destination.is_followed
WHERE report.window_start = %(window_start)s AND report.state = 'frozen' AND report.attempt_count = 0 AND report.token_count > 0
  AND (hashtextextended(report.tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
  AND (destination.reason IS NOT NULL
       OR NOT destination.is_followed
          AND (NOT destination.is_known
               -- its period is over: there may be another; what was asked around its end, or long ago, is asked again
               OR item.period_end <= %(now)s
                  AND (item.looked_up_at < item.period_end + interval '5 minutes' OR item.looked_up_at < %(now)s - interval '1 day')))

-- name: add_meter
-- What Stripe said of a meter; nothing of it but its display name can change there.
INSERT INTO billing.meter (meter_id, event_name, customer_payload_key, value_payload_key)
VALUES (%(id)s, %(event_name)s, %(customer_payload_key)s, %(value_payload_key)s)
ON CONFLICT DO NOTHING

-- name: add_price
-- What Stripe said of a price; nothing that counts can change there.
INSERT INTO billing.price (price_id, currency, mode, tiers, package_size, package_rounds_up, learned_at)
VALUES (%(id)s, %(currency)s, %(mode)s, %(tiers)s, %(package_size)s, %(package_rounds_up)s, %(now)s)
ON CONFLICT DO NOTHING

-- name: set_metered_item
-- What Stripe said of a subscription item; newer news replaces older.
INSERT INTO billing.metered_item
    (usage_item_id, price_id, meter_id, problem, subscription_id, period_start, period_end, is_first_period, looked_up_at)
VALUES (%(usage_item_id)s, %(price_id)s, %(meter_id)s, %(problem)s, %(subscription_id)s, %(period_start)s, %(period_end)s,
        %(is_first_period)s, %(now)s)
ON CONFLICT (usage_item_id) DO UPDATE
SET price_id = coalesce(EXCLUDED.price_id, metered_item.price_id), meter_id = EXCLUDED.meter_id, problem = EXCLUDED.problem,
    subscription_id = coalesce(EXCLUDED.subscription_id, metered_item.subscription_id),
    period_start = coalesce(EXCLUDED.period_start, metered_item.period_start),
    period_end = coalesce(EXCLUDED.period_end, metered_item.period_end), is_first_period = EXCLUDED.is_first_period,
    looked_up_at = EXCLUDED.looked_up_at
WHERE metered_item.looked_up_at <= EXCLUDED.looked_up_at

-- name: note_item_reading
-- What Stripe said of a subscription item in a billing period, where it never said the same before.
INSERT INTO billing.item_reading (usage_item_id, read_at, price_id, meter_id, subscription_id, period_start, period_end)
SELECT %(usage_item_id)s, %(now)s, %(price_id)s, %(meter_id)s, %(subscription_id)s, %(period_start)s, %(period_end)s
WHERE NOT EXISTS (SELECT FROM billing.item_reading reading
                  WHERE reading.usage_item_id = %(usage_item_id)s
                    AND (reading.price_id, reading.meter_id, reading.subscription_id, reading.period_start, reading.period_end)
                        IS NOT DISTINCT FROM (%(price_id)s, %(meter_id)s::text, %(subscription_id)s::text,
                                              %(period_start)s::timestamptz, %(period_end)s::timestamptz))
ON CONFLICT DO NOTHING

-- name: quarantine_unlinked
-- Usage that leads to no metered subscription item is kept aside with the reason.
WITH unlinked AS MATERIALIZED (
    SELECT waiting.id, destination.reason
    FROM billing.usage_report waiting
    LEFT JOIN billing.destination ON destination.report_id = waiting.id
    WHERE waiting.window_start = %(window_start)s AND waiting.state = 'frozen' AND waiting.attempt_count = 0 AND waiting.token_count > 0
      AND (hashtextextended(waiting.tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
)
UPDATE billing.usage_report report
SET state = 'quarantined', quarantined_at = %(now)s, quarantine_reason = unlinked.reason
FROM unlinked
WHERE report.id = unlinked.id AND unlinked.reason IS NOT NULL AND report.state = 'frozen' AND report.attempt_count = 0

-- name: reports_to_read_back
-- Reports that may have arrived and are to be looked for at Stripe, and what their span holds of their customers' other reports.
-- The span is the report's minute, or its hour where a restored database may have forgotten how it was dated; that of a usage record, its
-- item's billing period, only Stripe can tell. Of the others: the tokens that Stripe has, and those of reports in doubt themselves.
SELECT report.id, report.tenant_id, report.side_start, report.side_end,
       CASE WHEN report.forgotten THEN report.window_start ELSE date_trunc('minute', report.event_time, 'UTC') END,
       CASE WHEN report.forgotten THEN report.window_start + interval '1 hour'
            ELSE date_trunc('minute', report.event_time, 'UTC') + interval '1 minute' END,
       report.customer_id, report.usage_item_id,
       meter.meter_id, meter.event_name, meter.customer_payload_key, meter.value_payload_key,
       report.revision, report.generation, report.token_count, report.event_time, report.forgotten, report.absent_since,
       -- safeguard: others in the span
       coalesce(sum(other.token_count) FILTER (WHERE other.state IN ('accepted', 'billed')), 0)::bigint,
       coalesce(sum(other.token_count) FILTER (WHERE other.state = 'sending' OR other.state = 'unresolved' AND other.may_have_arrived), 0)
           ::bigint
FROM billing.usage_report report
LEFT JOIN billing.meter meter ON meter.meter_id = report.meter_id
LEFT JOIN billing.usage_report other
  ON other.customer_id = report.customer_id AND other.event_name = report.event_name AND other.window_start = report.window_start
 AND (report.forgotten OR date_trunc('minute', other.event_time, 'UTC') = date_trunc('minute', report.event_time, 'UTC'))
 AND other.id <> report.id AND other.attempt_count > 0
WHERE report.window_start = %(window_start)s AND report.state IN ('sending', 'unresolved')
  AND (report.may_have_arrived OR report.state = 'sending') AND (report.forgotten OR report.first_attempted_at <= %(attempted_before)s)
  -- safeguard: nothing is concluded while a surplus is in the minute
  AND NOT EXISTS (SELECT FROM billing.surplus -- until it has left the minute, nothing is concluded from that
                  WHERE surplus.report_id = report.id AND surplus.resolved_at IS NULL
                    AND (surplus.cancelled_at IS NULL OR surplus.cancelled_at > %(attempted_before)s))
  AND (hashtextextended(report.tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
GROUP BY report.id, meter.meter_id
ORDER BY report.read_back_at NULLS FIRST, report.id

-- name: usage_in_period
-- What a subscription item's usage records of a billing period come to without one of them: tokens that Stripe has, and tokens in doubt.
SELECT coalesce(sum(token_count) FILTER (WHERE state IN ('accepted', 'billed')), 0)::bigint,
       coalesce(sum(token_count) FILTER (WHERE state = 'sending' OR state = 'unresolved' AND may_have_arrived), 0)::bigint
FROM billing.usage_report
WHERE sink = 'usage_records' AND usage_item_id = %(usage_item_id)s AND event_time >= %(start)s AND event_time < %(end)s AND id <> %(id)s

-- name: begin_again
-- Proven absent: the usage record is to be set as if nothing had been sent, under its name and at its time.
UPDATE billing.usage_report
SET state = 'frozen', may_have_arrived = false, forgotten = false, absent_since = NULL
WHERE generation = %(generation)s AND state IN ('sending', 'unresolved') AND id = %(id)s

-- name: accept_read_back
-- Stripe's summary holds the report; one that was forgotten stays so, since its hour does not tell under which identifier it counts.
UPDATE billing.usage_report
-- safeguard: an earlier generation's presence
SET state = 'accepted', accepted_at = %(now)s, absent_since = NULL
WHERE id = %(id)s AND generation = %(generation)s AND state IN ('sending', 'unresolved')

-- name: note_absence
-- Stripe's summary does not hold the report (the time), or holds something else (no time).
UPDATE billing.usage_report
-- safeguard: an earlier generation's absence
SET state = 'unresolved', may_have_arrived = true, absent_since = %(absent_since)s, read_back_at = %(now)s
WHERE id = %(id)s AND generation = %(generation)s AND state IN ('sending', 'unresolved')

-- name: begin_generation
-- Proven absent: the report is to be sent again, under a new identifier.
UPDATE billing.usage_report
-- safeguard: a generation begins as if nothing had been sent
SET state = 'frozen', generation = generation + 1, identifier = %(identifier)s, first_attempted_at = %(now)s,
    may_have_arrived = false, key_number = 0, absent_since = NULL, forgotten = false
WHERE id = %(id)s AND generation = %(generation)s AND state IN ('sending', 'unresolved')

-- name: last_report
-- The latest report of a window; later ones, which a push that begins now has not looked at, have a push of their own.
SELECT coalesce(max(id), 0) FROM billing.usage_report WHERE window_start = %(window_start)s

-- name: waiting_reports
-- The reports of a shard that want sending, and where each would go: as first attempted, else as its tenant is linked at that time.
SELECT report.id, coalesce(report.customer_id, destination.customer_id), coalesce(report.usage_item_id, destination.usage_item_id),
       meter.meter_id, meter.event_name, meter.customer_payload_key, meter.value_payload_key
FROM billing.usage_report report
LEFT JOIN billing.destination ON destination.report_id = report.id
LEFT JOIN billing.meter meter ON meter.meter_id = coalesce(report.meter_id, destination.meter_id)
-- safeguard: what is frozen during a push has a push of its own
WHERE report.window_start = %(window_start)s AND report.id <= %(last_report)s
  AND report.state IN ('frozen', 'sending', 'unresolved') AND report.token_count > 0 AND NOT report.forgotten
  AND (report.attempt_count > 0 OR destination.is_known AND destination.reason IS NULL AND destination.customer_id IS NOT NULL)
  AND (hashtextextended(report.tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
  -- safeguard: what is held is not sent
  AND NOT EXISTS (SELECT FROM billing.hold WHERE hold.report_id = report.id AND hold.decision IS NULL)
ORDER BY report.id

-- name: lease_customers
-- Leases counters to one holder, except those that another holder's living lease covers. Says how many hold any.
WITH leased AS (
    INSERT INTO billing.customer_lease (customer_id, counter, holder, expires_at)
    SELECT customer_id, counter, %(holder)s::uuid, clock_timestamp() + %(lease)s
    FROM (SELECT DISTINCT * FROM unnest(%(customer_ids)s::text[], %(counters)s::text[])) AS wanted (customer_id, counter)
    ORDER BY customer_id, counter  -- in one order, so that two holders cannot wait for each other
    -- safeguard: a lease of another
    ON CONFLICT (customer_id, counter) DO UPDATE
    SET holder = EXCLUDED.holder, expires_at = EXCLUDED.expires_at
    WHERE customer_lease.holder = EXCLUDED.holder OR customer_lease.expires_at < clock_timestamp()
    RETURNING customer_id, counter
)
SELECT customer_id, counter,
       (SELECT count(DISTINCT holder) FROM billing.customer_lease
        WHERE expires_at >= clock_timestamp() AND holder <> %(holder)s::uuid) + 1 AS holder_count
FROM leased

-- name: release_leases
-- Gives back what a holder leased, but for the counters it still needs.
DELETE FROM billing.customer_lease
WHERE holder = %(holder)s::uuid
  AND (customer_id, counter) NOT IN (SELECT * FROM unnest(%(customer_ids)s::text[], %(counters)s::text[]))

-- name: reports_to_send
-- The given reports as they stand now that their counters are leased, with the times that the counters' other reports of the hour use.
SELECT report.id, report.side_start, report.side_end, report.identifier, report.token_count,
       -- safeguard: what a dead worker was sending
       report.attempt_count, report.first_attempted_at, report.may_have_arrived OR report.state = 'sending',
       report.key_number, report.event_time,
       ARRAY(SELECT other.event_time
             FROM billing.usage_report other
             WHERE other.customer_id = wanted.customer_id AND other.event_name = wanted.counter
               AND other.window_start = report.window_start AND other.event_time IS NOT NULL
             UNION ALL
             SELECT other.event_time
             FROM billing.usage_report other
             WHERE other.sink = 'usage_records' AND other.usage_item_id = wanted.counter
               AND other.event_time >= report.window_start AND other.event_time < report.window_start + interval '1 hour')
FROM unnest(%(ids)s::bigint[], %(customer_ids)s::text[], %(counters)s::text[]) AS wanted (id, customer_id, counter)
JOIN billing.usage_report report ON report.id = wanted.id
-- safeguard: settled reports are not sent
WHERE report.state IN ('frozen', 'sending', 'unresolved') AND NOT report.forgotten
ORDER BY report.id
FOR UPDATE OF report

-- name: note_attempts
-- Writes down, before anything is sent, that it may have been: from here on the report counts as attempted.
WITH noted AS (
    UPDATE billing.usage_report report
    -- safeguard: the first attempt is dated once
    SET state = 'sending',
        absent_since = NULL,
        may_have_arrived = attempt.may_have_arrived,
        attempt_count = report.attempt_count + 1,
        first_attempted_at = coalesce(report.first_attempted_at, %(now)s),
        sink = attempt.sink, customer_id = attempt.customer_id, usage_item_id = attempt.usage_item_id,
        meter_id = attempt.meter_id, event_name = attempt.event_name, event_time = attempt.event_time
    FROM jsonb_to_recordset(%(attempts)s::jsonb) AS attempt (
        id bigint, may_have_arrived boolean, sink text, customer_id text, usage_item_id text, meter_id text, event_name text,
        event_time timestamptz)
    WHERE report.id = attempt.id
    RETURNING report.id, report.attempt_count, report.identifier
)
INSERT INTO billing.push_attempt (report_id, attempt, identifier, noted_at)
SELECT id, attempt_count, identifier, %(now)s FROM noted

-- name: count_attempts
-- Adds newly noted attempts to those of the ledger; the last statement of its transaction, because others wait for it.
UPDATE billing.ledger SET noted_attempts = noted_attempts + %(count)s

-- name: doubt_reports
-- Reports whose attempts, if any, were forgotten with an older copy of the database: nothing is sent before their hour was read back.
WITH doubted AS (
    UPDATE billing.usage_report
    SET state = 'unresolved', may_have_arrived = true, forgotten = true
    WHERE id = ANY(%(ids)s::bigint[])
    RETURNING id, attempt_count
)
UPDATE billing.push_attempt attempt
SET answered_at = %(now)s, outcome = 'unresolved', message = 'the database was restored and may have forgotten that this was sent'
FROM doubted
WHERE attempt.report_id = doubted.id AND attempt.attempt = doubted.attempt_count

-- name: quarantine_reports
-- Keeps reports aside that no attempt can have delivered.
UPDATE billing.usage_report report
SET state = 'quarantined', quarantined_at = %(now)s, quarantine_reason = aside.reason
FROM unnest(%(ids)s::bigint[], %(reasons)s::text[]) AS aside (id, reason)
WHERE report.id = aside.id AND NOT report.may_have_arrived

-- name: record_outcomes
-- Writes down how attempts ended. Only a holder's own attempt decides a state, but that Stripe has a report is true whoever learns it.
-- An answer is about the identifier that was attempted: it says nothing of a generation begun since.
WITH outcome AS (
    SELECT *
    FROM jsonb_to_recordset(%(outcomes)s::jsonb) AS ended (
        id bigint, attempt integer, identifier text, state text, outcome text, may_have_arrived boolean, key_number integer,
        http_status integer, message text)
), answered AS (
    UPDATE billing.push_attempt attempt
    SET answered_at = %(now)s, outcome = outcome.outcome, http_status = outcome.http_status, message = outcome.message
    FROM outcome
    WHERE attempt.report_id = outcome.id AND attempt.attempt = outcome.attempt
)
UPDATE billing.usage_report report
SET state = outcome.state,
    may_have_arrived = outcome.may_have_arrived,
    absent_since = NULL,
    key_number = outcome.key_number,
    accepted_at = CASE WHEN outcome.state = 'accepted' THEN %(now)s::timestamptz END,
    forgotten = false
FROM outcome
-- safeguard: an answer about the holder's own attempt
WHERE report.id = outcome.id AND report.identifier = outcome.identifier
  AND (report.state = 'sending' AND report.attempt_count = outcome.attempt
       OR outcome.state = 'accepted' AND report.state IN ('frozen', 'sending', 'unresolved', 'rejected'))

-- name: take_back_attempts
-- Stripe refused these reports for what their items are and has nothing of them: they are as if never attempted, their items asked anew.
WITH wrong AS (
    SELECT id, usage_item_id
    FROM billing.usage_report
    -- safeguard: only what certainly did not arrive is taken back
    WHERE id = ANY(%(ids)s::bigint[]) AND state = 'frozen' AND NOT may_have_arrived AND generation = 0 AND attempt_count > 0
      AND NOT EXISTS (SELECT FROM billing.push_attempt attempt
                      WHERE attempt.report_id = usage_report.id AND attempt.outcome IS DISTINCT FROM 'undelivered')
    FOR UPDATE
), taken_back AS (
    UPDATE billing.usage_report report
    -- Stripe keeps its refusal under the key that was used.
    SET attempt_count = 0, first_attempted_at = NULL, key_number = key_number + 1,
        sink = NULL, customer_id = NULL, usage_item_id = NULL, meter_id = NULL, event_name = NULL, event_time = NULL
    FROM wrong
    WHERE report.id = wrong.id
), forgotten AS (
    DELETE FROM billing.push_attempt attempt USING wrong WHERE attempt.report_id = wrong.id
)
DELETE FROM billing.metered_item item USING wrong WHERE item.usage_item_id = wrong.usage_item_id

-- name: shard_states
-- How many reports of a shard are in each state, with the last trouble that one of them met; without those that are held.
SELECT report.state, count(*), max(attempt.message)
FROM billing.usage_report report
LEFT JOIN billing.push_attempt attempt
  ON attempt.report_id = report.id AND attempt.attempt = report.attempt_count AND report.state NOT IN ('accepted', 'billed')
WHERE report.window_start = %(window_start)s AND report.id <= %(last_report)s
  AND (hashtextextended(report.tenant_id, 0) & 65535) %% %(shard_count)s = %(shard)s
  AND NOT EXISTS (SELECT FROM billing.hold WHERE hold.report_id = report.id AND hold.decision IS NULL)
GROUP BY report.state
