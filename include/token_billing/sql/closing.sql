-- name: billed_items
-- The subscriptions that bill tenants of ours, each with the items that do, or did.
SELECT subscription_id, array_agg(DISTINCT usage_item_id ORDER BY usage_item_id)
FROM (
    SELECT link.subscription_id, period.usage_item_id
    FROM billing.subscription_link link
    JOIN billing.subscription_period period ON period.tenant_id = link.tenant_id AND period.subscription_id = link.subscription_id
    UNION ALL
    SELECT stripe_subscription_id, stripe_usage_item_id
    FROM tenants
    WHERE stripe_subscription_id <> '' AND stripe_usage_item_id <> ''
) billed
GROUP BY subscription_id

-- name: listed_until
-- Until when every invoice that Stripe made was looked at.
SELECT listed_until FROM billing.closing_cursor

-- name: note_listed
-- Every invoice made until then was looked at; of two runs at once the further one counts.
INSERT INTO billing.closing_cursor (listed_until) VALUES (%(until)s)
ON CONFLICT (only_one) DO UPDATE SET listed_until = EXCLUDED.listed_until WHERE closing_cursor.listed_until < EXCLUDED.listed_until

-- name: note_appeared
-- An invoice that closes periods of ours, as it was when it was first seen.
INSERT INTO billing.closing (invoice_id, subscription_id, appeared_at, planned_for)
VALUES (%(invoice_id)s, %(subscription_id)s, %(appeared_at)s, %(planned_for)s)
-- safeguard: the plan is the first one seen
ON CONFLICT (invoice_id) DO NOTHING

-- name: open_closings
-- Invoices that are not known to be final, and those of which somebody was told that they lack usage.
-- A draft that nobody finalised, or that is gone, is looked at no more once a person has settled that and nothing more of it can be sent.
SELECT invoice_id, subscription_id, appeared_at, planned_for, moved_to, released_as, final_at
FROM billing.closing
WHERE final_at IS NULL
      AND (appeared_at > %(since)s
           OR NOT EXISTS (SELECT FROM billing.discrepancy
                          WHERE discrepancy.cause = 'period_incomplete' AND discrepancy.stripe_id = closing.invoice_id
                            AND discrepancy.resolved_by IS NOT NULL))
   OR EXISTS (SELECT FROM billing.discrepancy
              WHERE discrepancy.cause = 'period_incomplete' AND discrepancy.stripe_id = closing.invoice_id AND discrepancy.resolved_at IS NULL)
ORDER BY appeared_at, invoice_id

-- name: newest_draft
-- The draft that appeared last, of those that were seen as one.
SELECT invoice_id, subscription_id, appeared_at, planned_for, moved_to, released_as, final_at
FROM billing.closing
WHERE planned_for IS NOT NULL
ORDER BY appeared_at DESC, invoice_id DESC
LIMIT 1

-- name: missing_reports
-- Reports of the invoices' periods that are not known to be on them, by invoice, reason and tenant.
-- Only what is unconfirmed can be missing on a draft; on a final invoice, what was accepted after it as well.
WITH invoice AS (
    SELECT invoice_id, final_at FROM unnest(%(invoice_ids)s::text[], %(final_ats)s::timestamptz[]) AS invoice (invoice_id, final_at)
), billed AS (
    SELECT invoice.invoice_id, invoice.final_at, period.usage_item_id, period.period_start, period.period_end
    FROM invoice JOIN billing.invoiced_period period USING (invoice_id)
), tenant_of AS (
    SELECT DISTINCT billed.*, period.tenant_id
    FROM billed JOIN billing.closing USING (invoice_id)
    JOIN billing.subscription_link link USING (subscription_id)
    JOIN billing.subscription_period period ON period.tenant_id = link.tenant_id AND period.usage_item_id = billed.usage_item_id
    UNION
    SELECT billed.*, tenant.id FROM billed JOIN tenants tenant ON tenant.stripe_usage_item_id = billed.usage_item_id
), unconfirmed AS (
    SELECT report.*, coalesce(report.usage_item_id, destination.usage_item_id) AS goes_to,
           coalesce(report.event_time, report.side_start) AS used_at
    FROM billing.usage_report report
    LEFT JOIN billing.destination ON destination.report_id = report.id
    -- safeguard: unconfirmed usage is missing
    WHERE report.confirmed_at IS NULL AND report.token_count > 0
      AND report.window_start > (SELECT min(period_start) FROM billed) - interval '1 hour'
      AND report.window_start < (SELECT max(period_end) FROM billed)
      AND (report.tenant_id IN (SELECT tenant_id FROM tenant_of) OR report.usage_item_id IN (SELECT usage_item_id FROM billed))
), found AS (
    SELECT billed.invoice_id, unconfirmed.id, unconfirmed.tenant_id, unconfirmed.window_start, unconfirmed.token_count,
           CASE WHEN unconfirmed.accepted_at > billed.final_at THEN 'after_finalisation'
                WHEN unconfirmed.state IN ('accepted', 'billed') THEN 'not_confirmed'
                WHEN unconfirmed.state IN ('rejected', 'quarantined') THEN unconfirmed.state
                WHEN hold.report_id IS NOT NULL THEN 'held'
                ELSE 'not_accepted' END AS why
    FROM unconfirmed
    JOIN billed ON billed.usage_item_id = unconfirmed.goes_to
     -- safeguard: usage of the invoice's own periods
     AND billed.period_start <= unconfirmed.used_at AND unconfirmed.used_at < billed.period_end
    LEFT JOIN billing.hold ON hold.report_id = unconfirmed.id AND hold.decision IS NULL
    -- safeguard: quarantined usage is waited for
    WHERE coalesce(unconfirmed.quarantine_reason, '') <> ALL(%(decided)s::text[])
      AND NOT (unconfirmed.state IN ('rejected', 'quarantined')
               AND EXISTS (SELECT FROM billing.acknowledgement WHERE acknowledgement.report_id = unconfirmed.id))
    UNION
    SELECT tenant_of.invoice_id, report.id, report.tenant_id, report.window_start, report.token_count, 'after_finalisation'
    FROM tenant_of
    -- LATERAL, and OFFSET: tenant by tenant, and not at all for drafts, instead of all reports there are.
    CROSS JOIN LATERAL (
        SELECT sent.*
        FROM billing.usage_report sent
        WHERE tenant_of.final_at IS NOT NULL
          AND sent.tenant_id = tenant_of.tenant_id AND sent.usage_item_id = tenant_of.usage_item_id
          AND sent.window_start > tenant_of.period_start - interval '1 hour' AND sent.window_start < tenant_of.period_end
          AND sent.event_time >= tenant_of.period_start AND sent.event_time < tenant_of.period_end
        OFFSET 0
    ) report
    -- safeguard: what came after the invoice was final
    WHERE report.accepted_at > tenant_of.final_at AND report.confirmed_at IS NOT NULL
)
SELECT invoice_id, why, tenant_id, min(window_start), count(DISTINCT window_start), sum(token_count)::bigint
FROM found
GROUP BY invoice_id, why, tenant_id
ORDER BY invoice_id, sum(token_count) DESC, tenant_id, why

-- name: unfrozen_usage
-- Rows of the invoices' periods that no fence of their window has seen, by invoice and tenant.
-- A row may be any tenant's that the subscription bills then, as the timeline says, or else as the application's own columns do.
WITH billed AS (
    SELECT closing.invoice_id, closing.subscription_id, period.usage_item_id, period.period_start, period.period_end
    FROM billing.closing JOIN billing.invoiced_period period USING (invoice_id)
    WHERE closing.invoice_id = ANY(%(invoice_ids)s::text[])
), billed_time AS (
    SELECT billed.invoice_id, period.tenant_id, greatest(billed.period_start, period.billed_from) AS used_from,
           least(billed.period_end, period.billed_until) AS used_until
    FROM billed
    JOIN billing.subscription_link link USING (subscription_id)
    JOIN billing.subscription_period period
      ON period.tenant_id = link.tenant_id AND period.usage_item_id = billed.usage_item_id
     AND period.billed_from < billed.period_end AND billed.period_start < period.billed_until
    UNION
    SELECT billed.invoice_id, tenant.id, billed.period_start, billed.period_end
    FROM billed JOIN tenants tenant ON tenant.stripe_usage_item_id = billed.usage_item_id
    WHERE NOT EXISTS (SELECT FROM billing.subscription_link link
                      WHERE link.subscription_id = tenant.stripe_subscription_id AND link.tenant_id = tenant.id)
), last_fence AS (
    SELECT DISTINCT ON (window_start) window_start, snapshot
    FROM billing.fence
    WHERE window_start > (SELECT min(used_from) FROM billed_time) - interval '1 hour'
      AND window_start < (SELECT max(used_until) FROM billed_time)
    ORDER BY window_start, revision DESC
), usage AS (
    SELECT tenant_id, created_at, date_bin(interval '1 hour', created_at, timestamptz '2000-01-01T00:00Z') AS window_start, recorded_xid,
           input_tokens::bigint + output_tokens::bigint AS tokens
    FROM token_usage
    WHERE NOT billed AND created_at BETWEEN (SELECT min(used_from) FROM billed_time) AND (SELECT max(used_until) FROM billed_time)
)
SELECT billed_time.invoice_id, usage.tenant_id, min(usage.window_start), count(DISTINCT usage.window_start), sum(usage.tokens)::bigint
FROM usage
JOIN billed_time
  ON billed_time.tenant_id = usage.tenant_id
 -- safeguard: rows of the invoice's own periods
 AND billed_time.used_from <= usage.created_at AND usage.created_at < billed_time.used_until
LEFT JOIN last_fence ON last_fence.window_start = usage.window_start
-- safeguard: rows that no fence has seen are missing on a draft
WHERE (last_fence.snapshot IS NULL OR NOT pg_visible_in_snapshot(usage.recorded_xid, last_fence.snapshot)) AND usage.tokens > 0
GROUP BY billed_time.invoice_id, usage.tenant_id
ORDER BY billed_time.invoice_id, sum(usage.tokens) DESC, usage.tenant_id

-- name: open_hours
-- Invoices whose periods' last hour has not closed, or was not frozen and has closed only lately; each with that hour.
-- A period that was cut short ends with its invoice's appearance, whatever the invoice's lines say.
SELECT last.invoice_id, max(last.window_start)
FROM (
    SELECT closing.invoice_id,
           date_trunc('hour', least(period.period_end, closing.appeared_at) - interval '1 microsecond', 'UTC') AS window_start
    FROM billing.closing JOIN billing.invoiced_period period USING (invoice_id)
    WHERE closing.invoice_id = ANY(%(invoice_ids)s::text[])
) last
WHERE last.window_start + interval '1 hour' + %(waits)s > %(now)s
  AND NOT EXISTS (SELECT FROM billing.fence WHERE fence.window_start = last.window_start)
GROUP BY last.invoice_id

-- name: note_step
-- What was found missing, what is about to be done about the draft, and whether the invoice is final.
UPDATE billing.closing
SET missing = %(missing)s,
    told_at = CASE WHEN %(is_told)s THEN told_at END,
    -- safeguard: our own times are known again
    moved_to = CASE WHEN %(move_to)s::timestamptz = ANY(moved_to) THEN array_remove(moved_to, %(move_to)s) ELSE moved_to END
               || CASE WHEN %(move_to)s::timestamptz IS NULL THEN '{}' ELSE ARRAY[%(move_to)s::timestamptz] END,
    released_as = CASE WHEN %(move_to)s::timestamptz IS NULL THEN released_as ELSE %(released_as)s END,
    final_at = coalesce(final_at, %(final_at)s)
WHERE invoice_id = %(invoice_id)s

-- name: note_moved
-- The time that Stripe says it set, where it is not quite ours; whoever pushes usage knows it from now on.
WITH moved AS (
    UPDATE billing.closing SET moved_to = moved_to || %(moved_to)s::timestamptz
    WHERE invoice_id = %(invoice_id)s AND %(moved_to)s::timestamptz <> ALL(moved_to)
)
UPDATE billing.invoiced_period SET finalizes_at = %(moved_to)s, seen_at = %(now)s
WHERE invoice_id = %(invoice_id)s AND invoice_status = 'draft' AND seen_at <= %(now)s

-- name: tell
-- Invoices that somebody has to be told of now: for the first time, or once more a day later; those of a moment ago too.
-- A worker that died between writing this down and telling has told nobody.
WITH due AS (
    UPDATE billing.closing
    SET told_at = CASE WHEN told_at > %(now)s - %(told_again)s THEN told_at ELSE %(now)s END
    FROM billing.discrepancy
    WHERE discrepancy.cause = 'period_incomplete' AND discrepancy.stripe_id = closing.invoice_id AND discrepancy.resolved_at IS NULL
      -- safeguard: nobody is told too seldom
      AND (told_at IS NULL OR told_at > %(now)s - %(moment)s OR told_at <= %(now)s - %(told_again)s)
    RETURNING closing.appeared_at, closing.invoice_id, discrepancy.details
)
SELECT details FROM due ORDER BY appeared_at, invoice_id
