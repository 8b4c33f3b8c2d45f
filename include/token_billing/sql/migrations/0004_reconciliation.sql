-- What Stripe's meters and invoices say of what was billed, what differs, and what was decided about it.

-- --- Confirmed by Stripe's meters ---------------------------------------------------------------------------------------

-- When reconciliation saw the report in Stripe's summaries; taken back with the report's generation.
ALTER TABLE billing.usage_report
    ADD COLUMN confirmed_at timestamptz,
    ADD CONSTRAINT only_what_counts_is_confirmed CHECK (confirmed_at IS NULL OR state IN ('accepted', 'billed'));

-- What is still to be compared. No column that a push or a marking changes is in it, so those touch no index.
CREATE INDEX usage_report_unconfirmed ON billing.usage_report (window_start) WHERE confirmed_at IS NULL AND token_count > 0;

-- When a counter was last compared: a customer's meter, or a subscription item (customer '').
CREATE TABLE billing.counter_reading (
    customer_id  text NOT NULL,
    counter      text NOT NULL CHECK (counter <> ''),
    read_at      timestamptz NOT NULL,
    PRIMARY KEY (customer_id, counter)
);

-- Ended billing periods whose total on a customer's meter was compared, which finds what others reported in hours without usage of ours.
CREATE TABLE billing.period_reading (
    customer_id   text NOT NULL CHECK (customer_id <> ''),
    meter_id      text NOT NULL REFERENCES billing.meter,
    period_start  timestamptz NOT NULL,
    period_end    timestamptz NOT NULL,
    read_at       timestamptz NOT NULL,
    PRIMARY KEY (customer_id, meter_id, period_start, period_end),
    CONSTRAINT read_after_its_end CHECK (period_start < period_end AND period_end <= read_at)
);

-- Hours in which the two differed when they were last compared, and since when: what is to be concluded must have lasted.
CREATE TABLE billing.meter_difference (
    customer_id            text NOT NULL CHECK (customer_id <> ''),
    meter_id               text NOT NULL REFERENCES billing.meter,
    window_start           timestamptz NOT NULL CHECK (window_start = date_trunc('hour', window_start, 'UTC')),
    our_token_count        bigint NOT NULL CHECK (our_token_count >= 0),
    stripe_token_count     bigint NOT NULL,
    first_seen_at          timestamptz NOT NULL,
    last_seen_at           timestamptz NOT NULL,
    -- When its cause was last looked for, minute by minute.
    concluded_at           timestamptz,
    PRIMARY KEY (customer_id, meter_id, window_start),
    CONSTRAINT it_differs CHECK (our_token_count <> stripe_token_count),
    CONSTRAINT seen_in_order CHECK (first_seen_at <= last_seen_at),
    CONSTRAINT concluded_from_what_was_seen CHECK (concluded_at BETWEEN first_seen_at AND last_seen_at)
);

-- --- Discrepancies ------------------------------------------------------------------------------------------------------

-- `scope`: what a comparison looked at as a whole (a customer's meter, an invoice); what it does not find again there has gone away.
ALTER TABLE billing.discrepancy
    ADD COLUMN scope           text CHECK (scope <> ''),
    ADD COLUMN window_start    timestamptz,
    ADD COLUMN expected_cents  bigint,
    ADD COLUMN found_cents     bigint,
    ADD COLUMN currency        text CHECK (currency ~ '^[a-z]{3}$'),
    ADD CONSTRAINT money_has_a_currency CHECK (currency IS NOT NULL OR (expected_cents IS NULL AND found_cents IS NULL)),
    DROP CONSTRAINT changed_rows_are_counted,
    -- What a comparison finds is about a tenant's hour, not about a report.
    ADD CONSTRAINT changed_rows_are_counted CHECK (cause <> 'rows_changed' OR scope IS NOT NULL OR (report_id IS NOT NULL
        AND expected_token_count IS NOT NULL AND found_token_count IS NOT NULL AND expected_row_count IS NOT NULL
        AND found_row_count IS NOT NULL));
DROP INDEX billing.one_open_discrepancy_per_object_and_cause;
CREATE UNIQUE INDEX one_open_discrepancy_per_object_and_cause
    ON billing.discrepancy (cause, coalesce(tenant_id, ''), coalesce(stripe_id, ''), coalesce(scope, ''), coalesce(window_start, '-infinity'))
    WHERE report_id IS NULL AND resolved_at IS NULL;
CREATE INDEX discrepancy_of_scope ON billing.discrepancy (scope) WHERE scope IS NOT NULL;

-- --- Invoices -----------------------------------------------------------------------------------------------------------

-- An invoice as it was last read. `compared_at`: when its lines, final as they are, were last held against our rows.
CREATE TABLE billing.invoice (
    invoice_id       text PRIMARY KEY CHECK (invoice_id <> ''),
    customer_id      text NOT NULL,
    subscription_id  text,
    billing_reason   text,
    status           text NOT NULL CHECK (status IN ('draft', 'open', 'paid', 'uncollectible', 'void')),
    currency         text NOT NULL CHECK (currency ~ '^[a-z]{3}$'),
    created_at       timestamptz NOT NULL,
    finalizes_at     timestamptz,
    finalized_at     timestamptz,
    total_cents      bigint NOT NULL,
    read_at          timestamptz NOT NULL,
    compared_at      timestamptz,
    CONSTRAINT only_a_final_invoice_is_compared CHECK (compared_at IS NULL OR status <> 'draft')
);
CREATE INDEX invoice_to_compare ON billing.invoice (created_at) WHERE compared_at IS NULL;
CREATE INDEX invoice_of_subscription ON billing.invoice (subscription_id);

-- Until when every invoice that Stripe made has been read.
CREATE TABLE billing.invoice_cursor (
    only_one      boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    listed_until  timestamptz NOT NULL
);

-- Its lines, in their order. Usage and flat lines name an item and a price; a manual one need not.
CREATE TABLE billing.invoice_line (
    line_id        text NOT NULL CHECK (line_id <> ''),
    invoice_id     text NOT NULL REFERENCES billing.invoice ON DELETE CASCADE,
    position       integer NOT NULL CHECK (position >= 0),
    kind           text NOT NULL CHECK (kind IN ('usage', 'flat', 'proration', 'manual')),
    usage_item_id  text,
    price_id       text,
    quantity       bigint NOT NULL,
    unit_cents     numeric,
    amount_cents   bigint NOT NULL,
    currency       text NOT NULL CHECK (currency ~ '^[a-z]{3}$'),
    period_start   timestamptz NOT NULL,
    period_end     timestamptz NOT NULL,
    description    text NOT NULL DEFAULT '',
    -- The invoice item behind a manual line: one of ours carries the proposal that made it.
    invoice_item_id  text,
    proposal_id      bigint,
    PRIMARY KEY (line_id, invoice_id),
    CONSTRAINT one_line_at_a_place UNIQUE (invoice_id, position),
    CONSTRAINT usage_names_its_item CHECK (kind <> 'usage' OR (usage_item_id IS NOT NULL AND price_id IS NOT NULL)),
    CONSTRAINT a_line_goes_forward CHECK (period_start <= period_end)
);
CREATE INDEX invoice_line_of_item ON billing.invoice_line (usage_item_id, period_start) WHERE usage_item_id IS NOT NULL;

-- What a price's terms were, from when on: Stripe never changes them under an id, and if somebody else did, it shows. The first reading
-- is the one in billing.price.
CREATE TABLE billing.price_reading (
    price_id           text NOT NULL REFERENCES billing.price,
    read_at            timestamptz NOT NULL,
    currency           text NOT NULL CHECK (currency ~ '^[a-z]{3}$'),
    mode               text NOT NULL CHECK (mode IN ('per_unit', 'graduated', 'volume')),
    tiers              jsonb NOT NULL CHECK (jsonb_array_length(tiers) > 0 AND tiers -> -1 -> 0 = 'null'),
    package_size       bigint CHECK (package_size > 0),
    package_rounds_up  boolean,
    PRIMARY KEY (price_id, read_at)
);

-- What Stripe said of a subscription item, each time that it was something else: a past period is judged by what was known of it then.
CREATE TABLE billing.item_reading (
    usage_item_id    text NOT NULL CHECK (usage_item_id <> ''),
    read_at          timestamptz NOT NULL,
    price_id         text NOT NULL,
    meter_id         text REFERENCES billing.meter,
    subscription_id  text,
    period_start     timestamptz,
    period_end       timestamptz,
    PRIMARY KEY (usage_item_id, read_at),
    CONSTRAINT read_period_is_whole CHECK ((period_start IS NULL) = (period_end IS NULL) AND period_start < period_end)
);
INSERT INTO billing.item_reading
SELECT usage_item_id, looked_up_at, price_id, meter_id, subscription_id, period_start, period_end
FROM billing.metered_item
WHERE price_id IS NOT NULL AND problem IS NULL;

-- The meter that a price bills, NULL of the legacy metered billing system's.
CREATE VIEW billing.meter_of_price AS
SELECT price_id, meter_id FROM billing.item_reading
UNION
SELECT price_id, meter_id FROM billing.subscription_period;

-- What a comparison found, as a person reads it.
CREATE TABLE billing.statement (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    made_at      timestamptz NOT NULL,
    title        text NOT NULL CHECK (title <> ''),
    discrepancy_count  integer NOT NULL CHECK (discrepancy_count >= 0),
    csv          text NOT NULL,
    html         text NOT NULL
);

-- --- Closing ------------------------------------------------------------------------------------------------------------

-- Invoices that close a period of ours, from their appearance as drafts until they are final. `planned_for`: when Stripe would have
-- finalised it had nobody moved that, which tells the account's grace; NULL where nobody saw the draft. `moved_to`: every time that we
-- meant it to be finalised at, the latest last; any other one is somebody else's doing.
CREATE TABLE billing.closing (
    invoice_id       text PRIMARY KEY CHECK (invoice_id <> ''),
    subscription_id  text NOT NULL CHECK (subscription_id <> ''),
    appeared_at      timestamptz NOT NULL,
    planned_for      timestamptz,
    moved_to         timestamptz[] NOT NULL DEFAULT '{}',
    released_as      text CHECK (released_as IN ('complete', 'incomplete')),
    final_at         timestamptz,
    -- What was missing when it was last looked at, and when somebody was last told of it.
    missing          text CHECK (missing <> ''),
    told_at          timestamptz,
    CONSTRAINT released_to_a_time CHECK (released_as IS NULL OR cardinality(moved_to) > 0),
    CONSTRAINT only_what_is_missing_is_told CHECK (told_at IS NULL OR missing IS NOT NULL)
);
CREATE INDEX closing_open ON billing.closing (appeared_at) WHERE final_at IS NULL;

-- Until when every invoice that Stripe made was looked at.
CREATE TABLE billing.closing_cursor (
    only_one      boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    listed_until  timestamptz NOT NULL
);

-- The final invoice of an item's period that an instant lies in, as far as it is known: usage sent into it now is on no invoice. An invoice
-- closes what had ended when it was made, and nothing else, whatever it shows of the time to come.
CREATE FUNCTION billing.final_invoice_of(of_item text, used_at timestamptz, now timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT invoice_id
    FROM billing.invoiced_period
    WHERE usage_item_id = of_item AND period_start <= used_at AND used_at < period_end
      AND (invoice_status IN ('open', 'paid', 'uncollectible', 'void') OR finalizes_at <= now)
    UNION ALL
    SELECT invoice_id
    FROM billing.invoice_line line
    JOIN billing.invoice USING (invoice_id)
    WHERE line.kind = 'usage' AND line.usage_item_id = of_item AND line.period_start <= used_at AND used_at < line.period_end
      AND invoice.status IN ('open', 'paid', 'uncollectible', 'void') AND line.period_end <= invoice.created_at
    LIMIT 1
$$;

-- --- Decisions ----------------------------------------------------------------------------------------------------------

-- What could be done about what differs or was kept aside; nothing of it is done before somebody decides.
CREATE TABLE billing.proposal (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind             text NOT NULL CHECK (kind IN ('late_usage', 'overbilled', 'resend', 'release')),
    subject          text NOT NULL CHECK (subject <> ''),
    tenant_id        text,
    -- Where the usage belongs: the invoice that bills its period, the item and its subscription, the price.
    invoice_id       text,
    subscription_id  text,
    customer_id      text,
    usage_item_id    text,
    price_id         text,
    period_start     timestamptz,
    period_end       timestamptz,
    -- What it is about: reports of ours, or something that a comparison found.
    report_ids       bigint[] NOT NULL DEFAULT '{}',
    discrepancy_id   bigint REFERENCES billing.discrepancy,
    token_count      bigint NOT NULL,
    amount_cents     bigint,
    currency         text CHECK (currency ~ '^[a-z]{3}$'),
    evidence         text NOT NULL CHECK (btrim(evidence) <> ''),
    proposed_at      timestamptz NOT NULL,
    asked_at         timestamptz,
    -- Its cause went away, or its figures changed, before anybody decided.
    withdrawn_at     timestamptz,
    decision         text CHECK (decision IN ('invoice_item', 'credit_note', 'write_off', 'resend', 'release', 'declined')),
    decided_by       text CHECK (btrim(decided_by) <> ''),
    decided_at       timestamptz,
    -- What Stripe was asked to make, under which key, whether it may have made it, and what it said last.
    request          jsonb,
    key_number       integer NOT NULL DEFAULT 0 CHECK (key_number >= 0),
    attempt_count    integer NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    attempted_at     timestamptz,
    may_have_arrived boolean NOT NULL DEFAULT false,
    refused_at       timestamptz,
    message          text CHECK (message <> ''),
    applied_at       timestamptz,
    -- What was made of it at Stripe.
    stripe_id        text,
    -- Since when somebody says that no attempt before has made anything.
    not_made_at      timestamptz,
    CONSTRAINT proposal_decided_whole CHECK (
        (decision IS NULL) = (decided_at IS NULL) AND (decision IS NULL) = (decided_by IS NULL)),
    CONSTRAINT only_decided_is_applied CHECK (applied_at IS NULL OR (decision IS NOT NULL AND decision <> 'declined')),
    CONSTRAINT withdrawn_or_decided CHECK (withdrawn_at IS NULL OR decision IS NULL),
    CONSTRAINT proposed_money_has_a_currency CHECK ((amount_cents IS NULL) = (currency IS NULL)),
    CONSTRAINT only_attempts_make_anything CHECK (attempt_count > 0 OR NOT may_have_arrived),
    CONSTRAINT refused_or_applied CHECK (refused_at IS NULL OR (applied_at IS NULL AND NOT may_have_arrived))
);
CREATE UNIQUE INDEX proposed_once_at_a_time ON billing.proposal (kind, subject) WHERE withdrawn_at IS NULL AND decision IS NULL;
CREATE INDEX proposal_of_subject ON billing.proposal (subject) WHERE decision IS NOT NULL;

-- What was decided and done stays; Stripe may have it.
-- safeguard: what was applied stays applied
CREATE TRIGGER what_was_applied_stays_applied
    BEFORE UPDATE OR DELETE ON billing.proposal
    FOR EACH ROW WHEN (OLD.applied_at IS NOT NULL)
    EXECUTE FUNCTION billing.refuse_change('what was applied is written down for ever');

-- Quarantined usage that an invoice need not wait for: somebody has seen it and lets it be for the time being, or a proposal has
-- settled it for good, by an invoice item or a write-off. That happens to a report once.
CREATE TABLE billing.acknowledgement (
    report_id        bigint PRIMARY KEY REFERENCES billing.usage_report,
    acknowledged_by  text NOT NULL CHECK (btrim(acknowledged_by) <> ''),
    acknowledged_at  timestamptz NOT NULL,
    reason           text NOT NULL CHECK (btrim(reason) <> ''),
    proposal_id      bigint REFERENCES billing.proposal
);

-- Who decided what, and what it changed.
CREATE TABLE billing.audit (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action      text NOT NULL CHECK (action <> ''),
    subject     text NOT NULL CHECK (subject <> ''),
    decided_by  text NOT NULL CHECK (btrim(decided_by) <> ''),
    decided_at  timestamptz NOT NULL,
    before      jsonb NOT NULL,
    after       jsonb NOT NULL,
    written_by  xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX audit_of_subject ON billing.audit (subject);

-- safeguard: an audit row stands
CREATE TRIGGER an_audit_row_stands BEFORE UPDATE OR DELETE ON billing.audit
    FOR EACH ROW EXECUTE FUNCTION billing.refuse_change('what was decided is written down for ever');

-- A report leaves quarantine only in a transaction that says who let it go.
CREATE FUNCTION billing.require_audited_release() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- safeguard: a release is audited
    IF NOT EXISTS (SELECT FROM billing.audit
                   WHERE subject = 'report ' || NEW.id AND action = 'release' AND written_by = pg_current_xact_id()) THEN
        RAISE EXCEPTION 'report % was released without being noted in billing.audit', NEW.id USING ERRCODE = 'check_violation';
    END IF;
    -- safeguard: what a proposal settled is not released
    IF EXISTS (SELECT FROM billing.acknowledgement WHERE report_id = NEW.id AND proposal_id IS NOT NULL) THEN
        RAISE EXCEPTION 'report % was settled by a proposal; released, it would be billed twice', NEW.id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

-- safeguard: an unaudited release is found
CREATE CONSTRAINT TRIGGER a_release_is_audited
    AFTER UPDATE OF state ON billing.usage_report DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.state = 'quarantined' AND NEW.state = 'frozen')
    EXECUTE FUNCTION billing.require_audited_release();

-- --- What was decided about which reports ----------------------------------------------------------------------------------

-- The reports that a proposal names, or, where it is about what Stripe took after an invoice was final, those that it took so.
CREATE VIEW billing.decided_report AS
SELECT proposal.id AS proposal_id, named.report_id
FROM billing.proposal
CROSS JOIN LATERAL unnest(proposal.report_ids) AS named (report_id)
UNION ALL
SELECT proposal.id, report.id
FROM billing.proposal
JOIN billing.invoice ON invoice.invoice_id = proposal.invoice_id
JOIN billing.usage_report report
  ON report.customer_id = proposal.customer_id AND report.usage_item_id = proposal.usage_item_id
 AND report.window_start > proposal.period_start - interval '1 hour' AND report.window_start < proposal.period_end
 AND report.event_time >= proposal.period_start AND report.event_time < proposal.period_end
 AND report.accepted_at > invoice.finalized_at AND report.accepted_at <= proposal.proposed_at
WHERE proposal.kind = 'late_usage' AND proposal.report_ids = '{}';

-- --- Which bill usage belongs to -------------------------------------------------------------------------------------------

-- The item, price and period that bill a tenant's usage of a time, whether or not it was sent; `of_item`: where it went, if it was. By the
-- tenant's timeline: what bills the tenant then, else what billed it last before, else first after; without one, as the application's
-- columns and Stripe's items say. The period is the item's billing period where one is known to hold the time, else the calendar month in UTC.
CREATE FUNCTION billing.bill_of(of_tenant text, of_item text, used_at timestamptz)
RETURNS TABLE (usage_item_id text, customer_id text, price_id text, meter_id text,
               period_start timestamptz, period_end timestamptz, is_billing_period boolean)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT goes.usage_item_id, coalesce(near.customer_id, tenant.stripe_customer_id), coalesce(near.price_id, item.price_id),
           coalesce(near.meter_id, item.meter_id),
           coalesce(known.period_start, date_trunc('month', used_at, 'UTC')),
           coalesce(known.period_end, (date_trunc('month', used_at AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC'),
           known.period_start IS NOT NULL
    FROM (SELECT of_tenant AS id) asked
    LEFT JOIN tenants tenant ON tenant.id = asked.id
    LEFT JOIN LATERAL (
        SELECT period.usage_item_id, period.customer_id, period.price_id, period.meter_id, period.period_start, period.period_end
        FROM billing.subscription_period period
        WHERE period.tenant_id = of_tenant AND (of_item IS NULL OR period.usage_item_id = of_item)
        ORDER BY period.billed_from > used_at, abs(extract(epoch FROM period.billed_from - used_at))
        LIMIT 1
    ) near ON true
    CROSS JOIN LATERAL (SELECT coalesce(of_item, near.usage_item_id, nullif(tenant.stripe_usage_item_id, '')) AS usage_item_id) goes
    LEFT JOIN billing.metered_item item ON item.usage_item_id = goes.usage_item_id
    LEFT JOIN LATERAL (
        SELECT period.period_start, period.period_end
        FROM (SELECT item.period_start, item.period_end, false AS is_only_a_line
              UNION ALL
              SELECT near.period_start, near.period_end, false
              UNION ALL
              SELECT invoiced.period_start, invoiced.period_end, false
              FROM billing.invoiced_period invoiced WHERE invoiced.usage_item_id = goes.usage_item_id
              UNION ALL
              SELECT line.period_start, line.period_end, true
              FROM billing.invoice_line line WHERE line.kind = 'usage' AND line.usage_item_id = goes.usage_item_id) period
        WHERE period.period_start <= used_at AND used_at < period.period_end
        -- A line may be wrong about its period: where anything else tells, that counts.
        ORDER BY period.is_only_a_line, period.period_start DESC
        LIMIT 1
    ) known ON true;
END;
