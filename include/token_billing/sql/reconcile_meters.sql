-- name: due_counters
-- The counters to read: those that are due, the longest waiting first, and as many of the others as a run has room for.
-- Due are hours of which nothing was accepted for long enough, hours that a draft invoice is about to bill, and hours that differed and are
-- not too old to change.
-- Hours with a report or a surplus that may or may not have arrived wait for that.
WITH open_report AS MATERIALIZED (
    SELECT customer_id, meter_id, usage_item_id, window_start, event_time, state, may_have_arrived, accepted_at
    FROM billing.usage_report
    WHERE confirmed_at IS NULL AND token_count > 0 AND meter_id IS NOT NULL AND attempt_count > 0
), doubtful AS (
    SELECT customer_id, meter_id, window_start
    FROM open_report
    WHERE state IN ('sending', 'unresolved') OR (state = 'frozen' AND may_have_arrived)
    UNION
    SELECT report.customer_id, report.meter_id, report.window_start
    FROM billing.surplus
    JOIN billing.usage_report report ON report.id = surplus.report_id
    WHERE surplus.gave_up_at IS NULL AND surplus.resolved_at IS NULL
      AND (surplus.cancelled_at IS NULL OR surplus.cancelled_at > %(settling_since)s)
), draft AS (
    SELECT DISTINCT usage_item_id, period_start, period_end
    FROM billing.invoiced_period
    LEFT JOIN billing.closing USING (invoice_id)
    WHERE closing.final_at IS NULL
      AND (closing.invoice_id IS NOT NULL OR (invoice_status = 'draft' AND seen_at > %(drafts_since)s))
), waiting AS (
    SELECT report.customer_id, report.meter_id, min(report.window_start) AS first_window, max(report.window_start) AS last_window,
           min(report.accepted_at) AS waits_since,
           max(report.accepted_at) FILTER (WHERE draft.usage_item_id IS NOT NULL) AS drafted_at
    FROM open_report report
    LEFT JOIN draft ON draft.usage_item_id = report.usage_item_id
                   AND report.event_time >= draft.period_start AND report.event_time < draft.period_end
    WHERE report.state IN ('accepted', 'billed')
      AND NOT EXISTS (SELECT FROM doubtful WHERE (doubtful.customer_id, doubtful.meter_id, doubtful.window_start)
                                               = (report.customer_id, report.meter_id, report.window_start))
      AND NOT EXISTS (SELECT FROM billing.meter_difference known
                      WHERE (known.customer_id, known.meter_id, known.window_start)
                          = (report.customer_id, report.meter_id, report.window_start))
    GROUP BY report.customer_id, report.meter_id
), unsettled AS (
    SELECT DISTINCT coalesce(report.customer_id, discrepancy.stripe_id) AS customer_id, discrepancy.window_start
    FROM billing.discrepancy
    LEFT JOIN billing.usage_report report ON report.id = discrepancy.report_id
    WHERE discrepancy.resolved_at IS NULL AND discrepancy.cause = ANY(%(causes)s::text[])
), differing AS (
    SELECT known.customer_id, known.meter_id, min(known.window_start) AS first_window, max(known.window_start) AS last_window,
           min(known.first_seen_at) AS waits_since,
           bool_or(known.first_seen_at > %(closely_since)s OR unsettled.customer_id IS NOT NULL) AS closely
    FROM billing.meter_difference known
    LEFT JOIN unsettled ON unsettled.customer_id = known.customer_id AND unsettled.window_start = known.window_start
    -- safeguard: what nobody has looked into is read, however old it is
    WHERE known.window_start > %(oldest)s OR known.concluded_at IS NULL
    GROUP BY known.customer_id, known.meter_id
), counter AS (
    SELECT customer_id, meter_id, least(waiting.first_window, differing.first_window) AS first_window,
           greatest(waiting.last_window, differing.last_window) AS last_window,
           least(waiting.waits_since, differing.waits_since) AS waits_since,
           differing.closely IS NULL OR differing.closely OR waiting.waits_since IS NOT NULL AS is_looked_at_hourly,
           coalesce(waiting.waits_since <= %(settling_since)s, false) OR coalesce(waiting.drafted_at <= %(shown_by)s, false)
               OR differing.closely IS NOT NULL AS is_due
    FROM waiting
    FULL JOIN differing USING (customer_id, meter_id)
), readable AS (
    SELECT counter.*, row_number() OVER (ORDER BY is_due DESC, waits_since, counter.customer_id, meter_id) AS place
    FROM counter
    LEFT JOIN billing.counter_reading reading ON reading.customer_id = counter.customer_id AND reading.counter = counter.meter_id
    WHERE (is_due OR waits_since <= %(shown_by)s)
      AND (reading.read_at IS NULL
           OR reading.read_at <= CASE WHEN is_looked_at_hourly THEN %(read_before)s::timestamptz ELSE %(read_long_before)s END)
)
SELECT customer_id, meter_id, first_window, last_window, count(*) FILTER (WHERE is_due) OVER ()
FROM readable
WHERE is_due OR place <= %(early)s
ORDER BY place
LIMIT %(most)s

-- name: counter_hours
-- Hours of counters: what was accepted, what is known beside it, what is in doubt, what to confirm, and how the hour differed before.
-- Only those with something to compare, or every hour.
WITH asked AS (
    SELECT asked.*, meter.event_name
    FROM unnest(%(customer_ids)s::text[], %(meter_ids)s::text[], %(firsts)s::timestamptz[], %(lasts)s::timestamptz[])
        AS asked (customer_id, meter_id, first_window, last_window)
    JOIN billing.meter USING (meter_id)
), report AS MATERIALIZED (
    SELECT report.id, report.identifier, report.customer_id, report.meter_id, report.window_start, report.token_count, report.accepted_at,
           report.confirmed_at, report.state IN ('accepted', 'billed') AS counts,
           report.state IN ('sending', 'unresolved') OR (report.state = 'frozen' AND report.may_have_arrived) AS in_doubt
    FROM asked
    JOIN billing.usage_report report
      ON report.customer_id = asked.customer_id AND report.event_name = asked.event_name AND report.meter_id = asked.meter_id
     AND report.window_start BETWEEN asked.first_window AND asked.last_window AND report.event_time IS NOT NULL
    WHERE report.token_count > 0
), surplus AS (
    SELECT report.customer_id, report.meter_id, report.window_start,
           coalesce(sum(surplus.token_count) FILTER (WHERE surplus.gave_up_at IS NOT NULL), 0)::bigint AS token_count,
           bool_or(surplus.gave_up_at IS NULL AND surplus.resolved_at IS NULL
                   AND (surplus.cancelled_at IS NULL OR surplus.cancelled_at > %(settling_since)s)) AS in_doubt
    FROM billing.surplus
    JOIN report ON report.id = surplus.report_id
    GROUP BY report.customer_id, report.meter_id, report.window_start
), hour AS (
    SELECT customer_id, meter_id, window_start,
           -- safeguard: an hour is all its reports
           coalesce(sum(token_count) FILTER (WHERE counts), 0)::bigint AS token_count, bool_or(in_doubt) AS in_doubt,
           max(accepted_at) FILTER (WHERE counts) AS last_accepted_at,
           array_agg(id ORDER BY id) FILTER (WHERE counts AND confirmed_at IS NULL) AS ids,
           array_agg(identifier ORDER BY id) FILTER (WHERE counts AND confirmed_at IS NULL) AS identifiers
    FROM report
    GROUP BY customer_id, meter_id, window_start
), difference AS (
    SELECT known.*
    FROM asked
    JOIN billing.meter_difference known
      ON known.customer_id = asked.customer_id AND known.meter_id = asked.meter_id
     AND known.window_start BETWEEN asked.first_window AND asked.last_window
)
SELECT customer_id, meter_id, window_start, coalesce(hour.token_count, 0), coalesce(surplus.token_count, 0),
       coalesce(hour.in_doubt, false) OR coalesce(surplus.in_doubt, false), coalesce(hour.ids, '{}'), coalesce(hour.identifiers, '{}'),
       hour.last_accepted_at, difference.first_seen_at, difference.our_token_count, difference.stripe_token_count, difference.concluded_at
FROM hour
FULL JOIN difference USING (customer_id, meter_id, window_start)
LEFT JOIN surplus USING (customer_id, meter_id, window_start)
WHERE %(every_hour)s OR hour.ids IS NOT NULL OR difference.first_seen_at IS NOT NULL
ORDER BY customer_id, meter_id, window_start

-- name: reports_of_hour
-- The reports that show in a counter's hour, each with its minute, and what may explain that one does not.
SELECT report.id, report.tenant_id, date_trunc('minute', report.event_time, 'UTC'), report.token_count,
       report.state IN ('accepted', 'billed'), report.attempt_count,
       (SELECT coalesce(sum(surplus.token_count), 0)::bigint FROM billing.surplus
        WHERE surplus.report_id = report.id AND surplus.gave_up_at IS NOT NULL),
       EXISTS (SELECT FROM billing.discrepancy told
               LEFT JOIN billing.stripe_event event ON event.event_id = told.stripe_id
               WHERE told.cause = 'meter_error' AND told.resolved_at IS NULL
                 AND (told.report_id = report.id AND told.stripe_id = report.identifier
                      OR told.report_id IS NULL AND event.payload -> 'related_object' ->> 'id' = report.meter_id
                         AND event.happened_at BETWEEN report.accepted_at - interval '1 hour' AND report.accepted_at + interval '1 day')),
       EXISTS (SELECT FROM billing.subscription_link link
               WHERE link.customer_id = report.customer_id AND link.customer_deleted_at IS NOT NULL)
FROM billing.usage_report report
JOIN billing.meter USING (meter_id)
WHERE report.customer_id = %(customer_id)s AND report.event_name = meter.event_name AND report.meter_id = %(meter_id)s
  AND report.window_start = %(window_start)s AND report.event_time IS NOT NULL AND report.token_count > 0
  AND (report.state IN ('accepted', 'billed') OR report.may_have_arrived)
ORDER BY report.event_time, report.id

-- name: confirm
-- Confirms the reports that were compared, as far as they are still accepted under the identifier that was compared.
UPDATE billing.usage_report report
SET confirmed_at = %(now)s
FROM (
    SELECT report.id
    FROM unnest(%(ids)s::bigint[], %(identifiers)s::text[]) AS compared (id, identifier)
    -- safeguard: only what was compared is confirmed
    JOIN billing.usage_report report ON report.id = compared.id AND report.identifier = compared.identifier
    WHERE report.confirmed_at IS NULL AND report.state IN ('accepted', 'billed')
    ORDER BY report.id
    FOR NO KEY UPDATE OF report
) still
WHERE report.id = still.id

-- name: note_readings
-- When counters were last compared.
INSERT INTO billing.counter_reading (customer_id, counter, read_at)
SELECT customer_id, counter, %(now)s
FROM unnest(%(customer_ids)s::text[], %(counters)s::text[]) AS read (customer_id, counter)
ORDER BY customer_id, counter
ON CONFLICT (customer_id, counter) DO UPDATE SET read_at = EXCLUDED.read_at

-- name: keep_differences
-- Hours that differ, and since when; those whose cause was looked for just now are concluded.
INSERT INTO billing.meter_difference AS known
    (customer_id, meter_id, window_start, our_token_count, stripe_token_count, first_seen_at, last_seen_at, concluded_at)
SELECT customer_id, meter_id, window_start, ours, stripes, %(now)s, %(now)s, CASE WHEN is_concluded THEN %(now)s::timestamptz END
FROM unnest(%(customer_ids)s::text[], %(meter_ids)s::text[], %(windows)s::timestamptz[], %(ours)s::bigint[], %(stripes)s::bigint[],
            %(concluded)s::boolean[]) AS seen (customer_id, meter_id, window_start, ours, stripes, is_concluded)
ORDER BY customer_id, meter_id, window_start
ON CONFLICT (customer_id, meter_id, window_start) DO UPDATE
SET our_token_count = EXCLUDED.our_token_count, stripe_token_count = EXCLUDED.stripe_token_count,
    last_seen_at = greatest(known.last_seen_at, EXCLUDED.last_seen_at),
    concluded_at = coalesce(EXCLUDED.concluded_at, known.concluded_at)

-- name: drop_differences
-- Hours that agree now.
DELETE FROM billing.meter_difference known
USING unnest(%(customer_ids)s::text[], %(meter_ids)s::text[], %(windows)s::timestamptz[]) AS agreed (customer_id, meter_id, window_start)
WHERE (known.customer_id, known.meter_id, known.window_start) = (agreed.customer_id, agreed.meter_id, agreed.window_start)

-- name: ended_periods
-- Billing periods that have ended and settled, and whose totals were not compared yet: customer, meter, start and end.
-- Of tenants that are followed their timeline tells them, of others the invoices that push looked at. Another job's usage, from before the
-- cut-over hour, is left out.
WITH period AS (
    SELECT customer_id, meter_id, period_start, period_end
    FROM billing.subscription_period
    WHERE period_end > %(oldest)s AND period_end <= %(settled_by)s
    UNION
    SELECT tenant.stripe_customer_id, item.meter_id, invoiced.period_start, invoiced.period_end
    FROM billing.invoiced_period invoiced
    JOIN billing.metered_item item USING (usage_item_id)
    JOIN tenants tenant ON tenant.stripe_usage_item_id = invoiced.usage_item_id AND tenant.stripe_customer_id <> ''
    WHERE invoiced.period_end > %(oldest)s AND invoiced.period_end <= %(settled_by)s
)
SELECT customer_id, meter_id, greatest(period_start, ledger.cut_over), period_end, period_start
FROM period
JOIN billing.meter USING (meter_id)
CROSS JOIN billing.ledger
WHERE NOT EXISTS (SELECT FROM billing.period_reading read
                  WHERE (read.customer_id, read.meter_id, read.period_start, read.period_end)
                      = (period.customer_id, period.meter_id, period.period_start, period.period_end))
  AND (ledger.cut_over IS NULL OR ledger.cut_over < period_end)
ORDER BY period_end, customer_id, meter_id
LIMIT %(most)s

-- name: note_periods
-- Ended periods whose totals were compared.
INSERT INTO billing.period_reading (customer_id, meter_id, period_start, period_end, read_at)
SELECT customer_id, meter_id, period_start, period_end, %(now)s
FROM unnest(%(customer_ids)s::text[], %(meter_ids)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[])
    AS read (customer_id, meter_id, period_start, period_end)
ORDER BY customer_id, meter_id, period_start, period_end
ON CONFLICT DO NOTHING

-- name: due_items
-- Subscription items with usage records that wait to be confirmed, those that are due first.
SELECT report.usage_item_id
FROM billing.usage_report report
LEFT JOIN billing.counter_reading reading ON reading.customer_id = '' AND reading.counter = report.usage_item_id
WHERE report.confirmed_at IS NULL AND report.token_count > 0 AND report.sink = 'usage_records' AND report.state IN ('accepted', 'billed')
  AND (reading.read_at IS NULL OR reading.read_at <= %(read_before)s)
GROUP BY report.usage_item_id
HAVING min(report.accepted_at) <= %(shown_by)s
ORDER BY min(report.accepted_at), report.usage_item_id
LIMIT %(most)s

-- name: item_period
-- What a subscription item's usage records of a billing period come to: tokens, whether any is in doubt, what to confirm, whose it is.
SELECT coalesce(sum(token_count) FILTER (WHERE state IN ('accepted', 'billed')), 0)::bigint,
       coalesce(bool_or(state IN ('sending', 'unresolved') OR (state = 'frozen' AND may_have_arrived) OR accepted_at > %(began)s), false),
       coalesce(array_agg(id ORDER BY id) FILTER (WHERE state IN ('accepted', 'billed') AND confirmed_at IS NULL), '{}'),
       coalesce(array_agg(identifier ORDER BY id) FILTER (WHERE state IN ('accepted', 'billed') AND confirmed_at IS NULL), '{}'),
       CASE WHEN min(tenant_id) = max(tenant_id) THEN min(tenant_id) END
FROM billing.usage_report
WHERE sink = 'usage_records' AND usage_item_id = %(usage_item_id)s AND event_time >= %(start)s AND event_time < %(end)s
