-- name: take_turn
-- One at a time says what is proposed, and decides; whoever waited sees what the other wrote.
LOCK TABLE billing.proposal IN SHARE ROW EXCLUSIVE MODE

-- name: aside_usage
-- Quarantined usage that leads to a subscription item and that no proposal has settled, by tenant, item and billing period.
-- It is late where that period's invoice is final or Stripe takes nothing so old, else to be released. With the item's price, and with
-- what is billed of the period: by its invoice where that was read, else by our books, and by the invoice items that were decided on.
WITH aside AS (
    SELECT report.id, report.quarantine_reason AS reason, report.tenant_id, report.token_count,
           coalesce(report.event_time, report.side_start) AS used_at,
           coalesce(report.customer_id, destination.customer_id) AS customer_id,
           coalesce(report.usage_item_id, destination.usage_item_id) AS usage_item_id
    FROM billing.usage_report report
    -- LEFT JOIN: it keeps the planner from working the view out for all reports there are.
    LEFT JOIN billing.destination ON destination.report_id = report.id
    -- Nothing quarantined is confirmed; said, it has an index find the few that are not.
    WHERE report.state = 'quarantined' AND report.confirmed_at IS NULL AND report.window_start >= %(since)s AND report.token_count > 0
      AND report.quarantine_reason = ANY(%(mendable)s::text[] || %(too_late)s::text[] || %(late_at_last)s::text[])
      AND (report.attempt_count > 0 OR destination.reason IS NULL)
      -- safeguard: what was settled is not proposed again
      AND NOT EXISTS (SELECT FROM billing.acknowledgement settled WHERE settled.report_id = report.id AND settled.proposal_id IS NOT NULL)
), placed AS (
    SELECT aside.id, aside.reason, aside.tenant_id, aside.token_count, aside.used_at, aside.customer_id, aside.usage_item_id,
           bill.price_id, bill.meter_id, invoiced.invoice_id,
           coalesce(invoiced.period_start, bill.period_start) AS period_start, coalesce(invoiced.period_end, bill.period_end) AS period_end,
           coalesce(period.subscription_id, item.subscription_id, nullif(tenant.stripe_subscription_id, '')) AS subscription_id
    FROM aside
    CROSS JOIN LATERAL billing.bill_of(aside.tenant_id, aside.usage_item_id, aside.used_at) bill
    LEFT JOIN tenants tenant ON tenant.id = aside.tenant_id
    LEFT JOIN billing.metered_item item ON item.usage_item_id = aside.usage_item_id
    LEFT JOIN billing.subscription_period period
      ON period.tenant_id = aside.tenant_id AND period.usage_item_id = aside.usage_item_id
     AND period.billed_from <= aside.used_at AND aside.used_at < period.billed_until
    LEFT JOIN LATERAL (
        SELECT final.invoice_id, final.period_start, final.period_end
        FROM billing.invoiced_period final
        WHERE final.usage_item_id = aside.usage_item_id AND final.period_start <= aside.used_at AND aside.used_at < final.period_end
          AND (final.invoice_status = ANY(%(final_statuses)s::text[]) OR final.finalizes_at <= %(now)s)
        ORDER BY final.period_start DESC, final.seen_at DESC
        LIMIT 1
    ) invoiced ON true
    WHERE aside.customer_id IS NOT NULL AND aside.usage_item_id IS NOT NULL
), sorted AS (
    SELECT placed.*, invoice_id IS NOT NULL OR used_at < %(oldest)s OR reason = ANY(%(too_late)s::text[]) AS is_late
    FROM placed
), summed AS (
    SELECT is_late, tenant_id, subscription_id, customer_id, usage_item_id, price_id, meter_id, period_start, period_end, invoice_id,
           array_agg(id ORDER BY id) AS report_ids, sum(token_count)::bigint AS tokens,
           string_agg(DISTINCT reason, ', ' ORDER BY reason) AS reasons
    FROM sorted
    WHERE is_late OR reason <> ALL(%(late_at_last)s::text[])
    GROUP BY is_late, tenant_id, subscription_id, customer_id, usage_item_id, price_id, meter_id, period_start, period_end, invoice_id
)
SELECT summed.is_late, summed.tenant_id, summed.invoice_id, summed.subscription_id, summed.customer_id, summed.usage_item_id,
       summed.price_id, summed.period_start, summed.period_end, summed.report_ids, summed.tokens, summed.reasons,
       coalesce(on_invoice.tokens, in_books.tokens, 0) + carried.tokens,
       price.currency, price.mode, price.tiers, price.package_size, price.package_rounds_up
FROM summed
LEFT JOIN billing.price price ON price.price_id = summed.price_id
LEFT JOIN LATERAL (
    SELECT coalesce((SELECT sum(line.quantity) FROM billing.invoice_line line
                     WHERE line.invoice_id = invoice.invoice_id AND line.kind = 'usage' AND line.usage_item_id = summed.usage_item_id
                       AND invoice.status <> 'void'), 0)::bigint AS tokens
    FROM billing.invoice invoice
    WHERE summed.is_late AND invoice.invoice_id = summed.invoice_id AND invoice.status <> 'draft'
) on_invoice ON true
LEFT JOIN LATERAL (
    SELECT sum(report.token_count)::bigint AS tokens
    FROM billing.usage_report report
    WHERE summed.is_late AND report.customer_id = summed.customer_id AND report.meter_id IS NOT DISTINCT FROM summed.meter_id
      AND report.usage_item_id = summed.usage_item_id AND report.state IN ('accepted', 'billed')
      AND report.window_start >= summed.period_start - interval '1 hour' AND report.window_start < summed.period_end
      AND report.event_time >= summed.period_start AND report.event_time < summed.period_end
) in_books ON on_invoice.tokens IS NULL
CROSS JOIN LATERAL (
    SELECT coalesce(sum(proposal.token_count), 0)::bigint AS tokens
    FROM billing.proposal
    WHERE proposal.kind = 'late_usage' AND proposal.decision = 'invoice_item'
      AND proposal.usage_item_id = summed.usage_item_id AND proposal.period_start = summed.period_start
) carried
ORDER BY summed.tenant_id, summed.usage_item_id, summed.period_start

-- name: billed_nowhere
-- Usage that Stripe took and that the final invoice of its period does not bill: it came after it, was lost, or the invoice was voided.
SELECT found.id, found.cause, found.tenant_id, found.window_start, invoice.invoice_id, invoice.subscription_id, invoice.customer_id,
       goes.usage_item_id, coalesce(line.price_id, item.price_id), coalesce(line.period_start, invoiced.period_start),
       coalesce(line.period_end, invoiced.period_end), found.expected_token_count - found.found_token_count, found.details,
       CASE WHEN invoice.status = 'void' THEN 0 ELSE coalesce(line.tokens, 0) END + carried.tokens,
       price.currency, price.mode, price.tiers, price.package_size, price.package_rounds_up
FROM billing.discrepancy found
JOIN billing.invoice invoice ON invoice.invoice_id = found.scope AND invoice.status <> 'draft'
LEFT JOIN billing.invoice_line named ON named.line_id = found.stripe_id AND named.invoice_id = invoice.invoice_id
-- An invoice without a line of the item is named with the item behind it.
CROSS JOIN LATERAL (SELECT coalesce(named.usage_item_id, nullif(split_part(found.stripe_id, '/', 2), '')) AS usage_item_id) goes
LEFT JOIN LATERAL (
    SELECT min(usage.price_id) AS price_id, min(usage.period_start) AS period_start, max(usage.period_end) AS period_end,
           sum(usage.quantity)::bigint AS tokens
    FROM billing.invoice_line usage
    WHERE usage.invoice_id = invoice.invoice_id AND usage.kind = 'usage' AND usage.usage_item_id = goes.usage_item_id
) line ON true
LEFT JOIN billing.metered_item item ON item.usage_item_id = goes.usage_item_id
LEFT JOIN LATERAL (
    SELECT final.period_start, final.period_end
    FROM billing.invoiced_period final
    WHERE final.usage_item_id = goes.usage_item_id AND final.invoice_id = invoice.invoice_id
    ORDER BY final.period_start DESC
    LIMIT 1
) invoiced ON true
LEFT JOIN billing.price price ON price.price_id = coalesce(line.price_id, item.price_id)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(proposal.token_count), 0)::bigint AS tokens
    FROM billing.proposal
    WHERE proposal.kind = 'late_usage' AND proposal.decision = 'invoice_item'
      AND proposal.usage_item_id = goes.usage_item_id AND proposal.period_start = coalesce(line.period_start, invoiced.period_start)
      -- What was carried forward before the invoice was voided lies on top of what that billed, not below.
      AND (found.cause <> 'voided_invoice' OR proposal.subject LIKE 'voided_invoice %%')
) carried
WHERE found.cause = ANY(%(causes)s::text[]) AND found.resolved_at IS NULL
  AND coalesce(line.period_start, invoiced.period_start) IS NOT NULL
  -- safeguard: what was taken back since is not judged by an older comparison
  AND NOT EXISTS (SELECT FROM billing.revocation
                  JOIN billing.usage_report report ON report.id = revocation.report_id
                  WHERE report.customer_id = invoice.customer_id AND report.usage_item_id = goes.usage_item_id
                    AND report.event_time >= coalesce(line.period_start, invoiced.period_start)
                    AND report.event_time < coalesce(line.period_end, invoiced.period_end)
                    AND revocation.revoked_at >= coalesce(invoice.compared_at, found.found_at))

-- name: settled
-- Tokens and cents by subject that were carried forward, credited or written off, of what comparisons found on an invoice about an item.
SELECT kind, subject, invoice_id, usage_item_id, sum(token_count)::bigint, coalesce(sum(amount_cents), 0)::bigint
FROM billing.proposal
WHERE decision IN ('invoice_item', 'credit_note', 'write_off') AND discrepancy_id IS NOT NULL
GROUP BY kind, subject, invoice_id, usage_item_id

-- name: overbilled
-- Final invoices that billed more than they should.
SELECT found.id, found.cause, found.tenant_id, found.window_start, invoice.invoice_id, invoice.subscription_id, invoice.customer_id,
       line.usage_item_id, line.price_id, line.period_start, line.period_end, found.stripe_id, found.details,
       found.expected_token_count, found.expected_cents, found.found_token_count, found.found_cents, invoice.currency,
       price.currency, price.mode, price.tiers, price.package_size, price.package_rounds_up
FROM billing.discrepancy found
JOIN billing.invoice invoice ON invoice.invoice_id = found.scope AND invoice.status IN ('open', 'paid')
LEFT JOIN LATERAL (
    SELECT named.usage_item_id, named.price_id, named.period_start, named.period_end
    FROM billing.invoice_line named
    WHERE named.invoice_id = invoice.invoice_id AND named.line_id = found.stripe_id
) line ON true
LEFT JOIN billing.price price ON price.price_id = line.price_id
WHERE found.cause = ANY(%(causes)s::text[]) AND found.resolved_at IS NULL

-- name: proven_absent
-- Accepted reports that Stripe's meter has lacked for so long that it will not show them any more.
-- They can still be sent and billed, and this ledger has forgotten nothing of them.
SELECT found.id, report.id, report.tenant_id, report.window_start, report.customer_id, report.usage_item_id, report.token_count,
       report.identifier, difference.first_seen_at
FROM billing.discrepancy found
JOIN billing.usage_report report ON report.id = found.report_id
JOIN billing.meter_difference difference
  ON difference.customer_id = report.customer_id AND difference.meter_id = report.meter_id AND difference.window_start = report.window_start
WHERE found.cause = 'missing_at_stripe' AND found.resolved_at IS NULL
  -- safeguard: only what is proven absent is proposed to be sent anew
  AND difference.first_seen_at <= %(absent_since)s AND report.accepted_at <= %(absent_since)s
  AND difference.our_token_count - difference.stripe_token_count >= report.token_count
  AND report.state IN ('accepted', 'billed') AND report.confirmed_at IS NULL AND report.sink = 'billing_meters' AND report.attempt_count > 0
  AND report.event_time >= %(oldest)s AND NOT report.forgotten
  AND (%(recovered_at)s::timestamptz IS NULL OR report.window_start + interval '1 hour' > %(recovered_at)s)
  AND billing.final_invoice_of(report.usage_item_id, report.event_time, %(now)s) IS NULL

-- name: proposals
-- Proposals by number: those that wait for a decision, those that were decided and are not done, or all.
SELECT id, kind, subject, token_count, evidence, tenant_id, invoice_id, subscription_id, customer_id, usage_item_id, price_id,
       period_start, period_end, report_ids, discrepancy_id, amount_cents, currency,
       proposed_at, decision, decided_by, decided_at, request, key_number, attempt_count, attempted_at, may_have_arrived, refused_at,
       message, applied_at, stripe_id, not_made_at
FROM billing.proposal
WHERE withdrawn_at IS NULL
  AND CASE %(which)s WHEN 'open' THEN decision IS NULL
                     WHEN 'standing' THEN decision IS NOT NULL AND applied_at IS NULL
                     WHEN 'to_apply' THEN decision <> 'declined' AND applied_at IS NULL AND refused_at IS NULL
                     ELSE true END
ORDER BY id

-- name: proposal
-- One proposal, whatever became of it, and when it was withdrawn.
SELECT id, kind, subject, token_count, evidence, tenant_id, invoice_id, subscription_id, customer_id, usage_item_id, price_id,
       period_start, period_end, report_ids, discrepancy_id, amount_cents, currency,
       proposed_at, decision, decided_by, decided_at, request, key_number, attempt_count, attempted_at, may_have_arrived, refused_at,
       message, applied_at, stripe_id, not_made_at, withdrawn_at
FROM billing.proposal WHERE id = %(id)s
FOR UPDATE

-- name: add
-- Puts something to people.
INSERT INTO billing.proposal
    (kind, subject, token_count, evidence, tenant_id, invoice_id, subscription_id, customer_id, usage_item_id, price_id, period_start,
     period_end, report_ids, discrepancy_id, amount_cents, currency, proposed_at)
VALUES (%(kind)s, %(subject)s, %(token_count)s, %(evidence)s, %(tenant_id)s, %(invoice_id)s, %(subscription_id)s, %(customer_id)s,
        %(usage_item_id)s, %(price_id)s, %(period_start)s, %(period_end)s, %(report_ids)s, %(discrepancy_id)s, %(amount_cents)s,
        %(currency)s, %(now)s)

-- name: withdraw
-- What its cause left, or what is another by its figures, waits no more.
UPDATE billing.proposal SET withdrawn_at = %(now)s WHERE id = ANY(%(ids)s::bigint[]) AND decision IS NULL

-- name: take_questions
-- Undecided proposals that nobody has been asked about since a time; from now on somebody is. Of several runs at once, one gets each.
WITH unasked AS (
    SELECT id
    FROM billing.proposal
    WHERE decision IS NULL AND withdrawn_at IS NULL AND (asked_at IS NULL OR asked_at < %(asked_before)s)
    FOR UPDATE SKIP LOCKED
)
UPDATE billing.proposal SET asked_at = %(now)s
FROM unasked WHERE proposal.id = unasked.id
RETURNING proposal.id

-- name: decide
-- Writes a decision down; what was refused before is tried anew.
UPDATE billing.proposal
SET decision = %(decision)s, decided_by = %(by)s, decided_at = %(now)s, refused_at = NULL, message = NULL
WHERE id = %(id)s AND withdrawn_at IS NULL AND applied_at IS NULL

-- name: note_attempt
-- Writes down, before Stripe is asked, that it may have been, and for what: under one key it is asked for one thing.
UPDATE billing.proposal
-- safeguard: an attempt at a proposal is noted before the call
SET request = coalesce(request, %(request)s), attempt_count = attempt_count + 1, attempted_at = %(now)s, may_have_arrived = true
WHERE id = %(id)s AND decision = %(decision)s AND applied_at IS NULL AND refused_at IS NULL
RETURNING request

-- name: note_answer
-- What Stripe said, where it did not make anything for all that is known.
UPDATE billing.proposal
SET may_have_arrived = %(may_have_arrived)s, message = %(message)s, refused_at = CASE WHEN %(refused)s THEN %(now)s::timestamptz END,
    key_number = key_number + CASE WHEN %(new_key)s THEN 1 ELSE 0 END, request = CASE WHEN %(refused)s THEN NULL ELSE request END,
    attempted_at = coalesce(%(in_doubt_since)s, attempted_at)
WHERE id = %(id)s AND attempt_count = %(attempt)s AND applied_at IS NULL

-- name: note_not_made
-- Somebody has looked: nothing was made by any attempt so far.
UPDATE billing.proposal SET may_have_arrived = false, not_made_at = %(now)s, message = %(message)s WHERE id = %(id)s AND applied_at IS NULL

-- name: note_applied
-- It is done; once.
UPDATE billing.proposal
SET applied_at = %(now)s, stripe_id = %(stripe_id)s, message = NULL, refused_at = NULL
WHERE id = %(id)s AND applied_at IS NULL

-- name: absent_report
-- An accepted report that is to be sent anew, its minute, what else of ours Stripe counts there, or may, and the final invoice of its period.
SELECT report.identifier, report.token_count, report.customer_id, report.meter_id, date_trunc('minute', report.event_time, 'UTC'),
       coalesce(sum(other.token_count) FILTER (WHERE other.state IN ('accepted', 'billed')), 0)::bigint,
       coalesce(bool_or(other.state IN ('sending', 'unresolved')), false),
       billing.final_invoice_of(report.usage_item_id, report.event_time, %(now)s)
FROM billing.usage_report report
LEFT JOIN billing.usage_report other
  ON other.customer_id = report.customer_id AND other.event_name = report.event_name AND other.window_start = report.window_start
 AND date_trunc('minute', other.event_time, 'UTC') = date_trunc('minute', report.event_time, 'UTC')
 AND other.id <> report.id AND other.attempt_count > 0
WHERE report.id = %(id)s AND report.state IN ('accepted', 'billed') AND report.confirmed_at IS NULL
GROUP BY report.id

-- name: was_revoked
-- Whether an identifier was taken back.
SELECT EXISTS (SELECT FROM billing.revocation WHERE identifier = %(identifier)s)
