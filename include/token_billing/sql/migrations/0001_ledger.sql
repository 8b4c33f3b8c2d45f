-- The ledger: what was frozen, what was attempted, what Stripe answered. Illegal states are refused here, not only in Python.

CREATE TABLE billing.ledger (
    only_one           boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    ledger_id          uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Transaction ids, and with them every fence, mean something in this cluster only; a recovery in another one shifts them.
    system_identifier  bigint NOT NULL,
    xid_shift          numeric NOT NULL DEFAULT 0 CHECK (xid_shift >= 0),
    -- What a copy of this database that is older, or no longer the one that bills, cannot have (docs/decisions/0006-…).
    epoch              integer NOT NULL DEFAULT 1 CHECK (epoch > 0),
    noted_attempts     bigint NOT NULL DEFAULT 0 CHECK (noted_attempts >= 0),
    recovered_at       timestamptz,
    cut_over           timestamptz CHECK (cut_over = date_trunc('hour', cut_over, 'UTC')),
    adopted_at         timestamptz NOT NULL,
    stripe_account_id  text CHECK (stripe_account_id <> ''),
    stripe_livemode    boolean,
    pinned_at          timestamptz,
    CONSTRAINT pin_is_whole CHECK ((stripe_livemode IS NULL) = (pinned_at IS NULL)),
    CONSTRAINT later_epochs_are_recoveries CHECK ((epoch = 1) = (recovered_at IS NULL)),
    CONSTRAINT no_account_without_mode CHECK (stripe_account_id IS NULL OR stripe_livemode IS NOT NULL)
);

CREATE TABLE billing.fence (
    window_start  timestamptz NOT NULL CHECK (window_start = date_trunc('hour', window_start, 'UTC')),
    revision      integer NOT NULL CHECK (revision >= 0),
    snapshot      pg_snapshot NOT NULL,
    frozen_at     timestamptz NOT NULL,
    PRIMARY KEY (window_start, revision),
    CONSTRAINT frozen_after_it_closed CHECK (frozen_at >= window_start + interval '1 hour')
);

-- What Stripe told about meters and about subscription items; a metered item without a meter is of the legacy metered billing system.
CREATE TABLE billing.meter (
    meter_id              text PRIMARY KEY,
    event_name            text NOT NULL,
    customer_payload_key  text NOT NULL,
    value_payload_key     text NOT NULL
);

CREATE TABLE billing.metered_item (
    usage_item_id  text PRIMARY KEY CHECK (usage_item_id <> ''),
    price_id       text,
    meter_id       text REFERENCES billing.meter,
    problem        text,
    looked_up_at   timestamptz NOT NULL,
    -- Its subscription and billing period when it was looked up, and whether the subscription had no period before.
    subscription_id  text,
    period_start     timestamptz,
    period_end       timestamptz,
    is_first_period  boolean NOT NULL DEFAULT false,
    CONSTRAINT period_is_whole CHECK ((period_start IS NULL) = (period_end IS NULL) AND period_start < period_end),
    CONSTRAINT metered_or_a_problem CHECK (CASE WHEN problem IS NULL THEN price_id IS NOT NULL ELSE meter_id IS NULL END)
);

-- What units cost under a price, which never changes under its id; amounts are in the currency's minor unit.
CREATE TABLE billing.price (
    price_id           text PRIMARY KEY CHECK (price_id <> ''),
    currency           text NOT NULL CHECK (currency ~ '^[a-z]{3}$'),
    mode               text NOT NULL CHECK (mode IN ('per_unit', 'graduated', 'volume')),
    -- [[up to and including, amount of each unit, flat amount], …]; the last goes up to null
    tiers              jsonb NOT NULL CHECK (jsonb_array_length(tiers) > 0 AND tiers -> -1 -> 0 = 'null'),
    package_size       bigint CHECK (package_size > 0),
    package_rounds_up  boolean,
    learned_at         timestamptz NOT NULL,
    CONSTRAINT package_is_whole CHECK ((package_size IS NULL) = (package_rounds_up IS NULL) AND (package_size IS NULL OR mode = 'per_unit'))
);

-- Which periods of which items invoices bill, as far as Stripe was asked: in those that are final, nothing more is billed.
CREATE TABLE billing.invoiced_period (
    usage_item_id   text NOT NULL CHECK (usage_item_id <> ''),
    invoice_id      text NOT NULL CHECK (invoice_id <> ''),
    period_start    timestamptz NOT NULL,
    period_end      timestamptz NOT NULL,
    invoice_status  text NOT NULL,
    finalizes_at    timestamptz,
    seen_at         timestamptz NOT NULL,
    PRIMARY KEY (usage_item_id, invoice_id, period_start),
    CONSTRAINT period_goes_forward CHECK (period_start < period_end)
);

CREATE TABLE billing.usage_report (
    id                   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id            text NOT NULL,
    window_start         timestamptz NOT NULL,
    side_start           timestamptz NOT NULL,
    side_end             timestamptz NOT NULL,
    revision             integer NOT NULL,
    generation           integer NOT NULL DEFAULT 0 CHECK (generation >= 0),
    identifier           text NOT NULL UNIQUE CHECK (length(identifier) BETWEEN 1 AND 100),
    row_count            bigint NOT NULL CHECK (row_count > 0),
    token_count          bigint NOT NULL CHECK (token_count >= 0),
    frozen_at            timestamptz NOT NULL,
    state                text NOT NULL DEFAULT 'frozen' CHECK (state IN
                             ('frozen', 'sending', 'accepted', 'rejected', 'unresolved', 'billed', 'revoked', 'quarantined')),
    -- The destination, fixed for ever by the first attempt; a usage record has no meter (docs/decisions/0007-…).
    sink                 text CHECK (sink IN ('billing_meters', 'usage_records')),
    customer_id          text,
    event_name           text,
    meter_id             text REFERENCES billing.meter,
    usage_item_id        text,
    event_time           timestamptz,
    first_attempted_at   timestamptz,
    attempt_count        integer NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    may_have_arrived     boolean NOT NULL DEFAULT false,
    -- A restored database may have forgotten attempts of it: what Stripe counts in its whole hour decides, and where that holds it, it is
    -- accepted under whatever identifier.
    forgotten            boolean NOT NULL DEFAULT false,
    -- Since when Stripe's summary of the report's own minute is known not to hold it.
    absent_since         timestamptz,
    read_back_at         timestamptz,
    key_number           integer NOT NULL DEFAULT 0 CHECK (key_number >= 0),
    accepted_at          timestamptz,
    billed_at            timestamptz,
    quarantined_at       timestamptz,
    quarantine_reason    text CHECK (quarantine_reason IN ('unknown_tenant', 'no_customer', 'no_subscription_item',
                             'item_not_metered', 'older_than_35_days', 'too_many_digits', 'before_adoption', 'refused_at_gate', 'disowned',
                             'period_invoiced', 'before_subscription', 'after_subscription', 'item_ended', 'customer_deleted',
                             'excluded_tenant')),
    CONSTRAINT one_report_per_tenant_window_side_and_revision UNIQUE (window_start, revision, tenant_id, side_start),
    CONSTRAINT held_by_a_fence FOREIGN KEY (window_start, revision) REFERENCES billing.fence,
    CONSTRAINT side_inside_window CHECK (
        side_start >= window_start AND side_start < side_end AND side_end <= window_start + interval '1 hour'),
    CONSTRAINT event_inside_side CHECK (event_time >= side_start AND event_time < side_end),
    CONSTRAINT attempted_whole CHECK (
        (attempt_count = 0) = (first_attempted_at IS NULL)
        AND (attempt_count = 0 OR (sink IS NOT NULL AND customer_id IS NOT NULL AND usage_item_id IS NOT NULL AND event_time IS NOT NULL))),
    CONSTRAINT meters_have_a_meter CHECK (
        (event_name IS NULL) = (meter_id IS NULL) AND (sink IS NULL OR (sink = 'billing_meters') = (meter_id IS NOT NULL))),
    CONSTRAINT only_attempts_arrive CHECK (attempt_count > 0 OR NOT may_have_arrived),
    CONSTRAINT only_the_unresolved_are_absent CHECK (absent_since IS NULL OR state = 'unresolved'),
    CONSTRAINT an_answer_needs_an_attempt CHECK (state NOT IN ('sending', 'rejected', 'unresolved', 'revoked') OR attempt_count > 0),
    CONSTRAINT only_nothing_is_accepted_unsent CHECK (state NOT IN ('accepted', 'billed') OR attempt_count > 0 OR token_count = 0),
    CONSTRAINT accepted_has_a_time CHECK ((state IN ('accepted', 'billed', 'revoked')) = (accepted_at IS NOT NULL)),
    CONSTRAINT billed_has_a_time CHECK ((state = 'billed') = (billed_at IS NOT NULL)),
    CONSTRAINT quarantined_has_a_reason CHECK (
        (state = 'quarantined') = (quarantined_at IS NOT NULL) AND (state = 'quarantined') = (quarantine_reason IS NOT NULL))
) WITH (fillfactor = 50); -- every report is updated three times: its new versions find room beside it, and no index is touched

-- Finds the minutes a customer's reports of an hour already use.
CREATE INDEX usage_report_minutes ON billing.usage_report (customer_id, event_name, window_start) WHERE event_time IS NOT NULL;

-- A usage record sets the usage of its item at its time: of two reports at one time, only one would be billed.
-- safeguard: a second of its own in the database
CREATE UNIQUE INDEX one_usage_record_per_item_and_time ON billing.usage_report (usage_item_id, event_time) WHERE sink = 'usage_records';

CREATE TABLE billing.push_attempt (
    report_id      bigint NOT NULL REFERENCES billing.usage_report,
    attempt        integer NOT NULL CHECK (attempt > 0),
    identifier     text NOT NULL,
    noted_at       timestamptz NOT NULL,
    answered_at    timestamptz,
    outcome        text CHECK (outcome IN ('accepted', 'rejected', 'unresolved', 'undelivered', 'disowned')),
    http_status    integer,
    message        text,
    PRIMARY KEY (report_id, attempt),
    CONSTRAINT answered_has_an_outcome CHECK ((answered_at IS NULL) = (outcome IS NULL))
);

-- One call at a time per counter, across all runs: a lease is a row, so that connection poolers cannot break it.
-- A counter is what adds reports up: a meter of a customer, by its event name, or a subscription item, whosever it is (customer '').
-- Its time is the database's own: it says whether a worker is alive, not what may be billed.
CREATE TABLE billing.customer_lease (
    customer_id  text NOT NULL,
    counter      text NOT NULL,
    holder       uuid NOT NULL,
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (customer_id, counter)
) WITH (fillfactor = 50);

-- What does not fit together and waits for a person, or for the rows to agree again. What it is about: a report, a tenant, or an object
-- at Stripe (an event, a subscription).
CREATE TABLE billing.discrepancy (
    id                     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cause                  text NOT NULL CHECK (cause <> ''),
    report_id              bigint REFERENCES billing.usage_report,
    tenant_id              text,
    stripe_id              text CHECK (stripe_id <> ''),
    details                text NOT NULL DEFAULT '',
    expected_token_count   bigint,
    found_token_count      bigint,
    expected_row_count     bigint,
    found_row_count        bigint,
    found_at               timestamptz NOT NULL,
    resolved_at            timestamptz,
    -- NULL where it went away by itself.
    resolved_by            text CHECK (btrim(resolved_by) <> ''),
    CONSTRAINT about_something CHECK (report_id IS NOT NULL OR tenant_id IS NOT NULL OR stripe_id IS NOT NULL),
    CONSTRAINT changed_rows_are_counted CHECK (cause <> 'rows_changed' OR (report_id IS NOT NULL AND expected_token_count IS NOT NULL
        AND found_token_count IS NOT NULL AND expected_row_count IS NOT NULL AND found_row_count IS NOT NULL)),
    CONSTRAINT resolved_at_a_time CHECK (resolved_by IS NULL OR resolved_at IS NOT NULL)
);
CREATE UNIQUE INDEX one_open_discrepancy_per_report_and_cause ON billing.discrepancy (report_id, cause) WHERE resolved_at IS NULL;
CREATE UNIQUE INDEX one_open_discrepancy_per_object_and_cause ON billing.discrepancy (cause, coalesce(tenant_id, ''), coalesce(stripe_id, ''))
    WHERE report_id IS NULL AND resolved_at IS NULL;

-- Reports that look wrong and wait for a person's decision before their first attempt.
CREATE TABLE billing.hold (
    report_id     bigint PRIMARY KEY REFERENCES billing.usage_report,
    reason        text NOT NULL CHECK (reason IN ('absurd_total', 'beyond_history')),
    -- What the tenant's whole hour came to, and what was allowed.
    token_count   bigint NOT NULL,
    limit_tokens  bigint NOT NULL,
    held_at       timestamptz NOT NULL,
    asked_at      timestamptz,
    decision      text CHECK (decision IN ('approved', 'refused')),
    decided_by    text CHECK (decided_by <> ''),
    decided_at    timestamptz,
    CONSTRAINT decided_whole CHECK ((decision IS NULL) = (decided_at IS NULL) AND (decision IS NULL) = (decided_by IS NULL))
);

-- One switch pauses all sending: it is on while a row has not been resumed. The rows are its history.
CREATE TABLE billing.pause (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    paused_by   text NOT NULL CHECK (paused_by <> ''),
    paused_at   timestamptz NOT NULL,
    reason      text NOT NULL CHECK (reason <> ''),
    resumed_by  text CHECK (resumed_by <> ''),
    resumed_at  timestamptz,
    CONSTRAINT resumed_whole CHECK ((resumed_by IS NULL) = (resumed_at IS NULL))
);
CREATE UNIQUE INDEX paused_once_at_a_time ON billing.pause ((resumed_at IS NULL)) WHERE resumed_at IS NULL;

-- Reports that Stripe disowned after it had accepted them, a row for each generation taken back.
CREATE TABLE billing.revocation (
    report_id    bigint NOT NULL REFERENCES billing.usage_report,
    generation   integer NOT NULL CHECK (generation >= 0),
    identifier   text NOT NULL UNIQUE CHECK (identifier <> ''),
    cause        text NOT NULL CHECK (cause IN ('error_report', 'settled_summary', 'operator')),
    evidence     text NOT NULL CHECK (btrim(evidence) <> ''),
    row_count    bigint NOT NULL CHECK (row_count > 0),
    token_count  bigint NOT NULL CHECK (token_count > 0),
    -- Whether its rows were marked, so that this took their marks away.
    was_billed   boolean NOT NULL,
    resent       boolean NOT NULL,
    revoked_at   timestamptz NOT NULL,
    revoked_by   text NOT NULL CHECK (btrim(revoked_by) <> ''),
    PRIMARY KEY (report_id, generation)
);

-- A database that was restored from an older copy, or carried to another cluster, and bills again.
CREATE TABLE billing.recovery (
    epoch              integer PRIMARY KEY CHECK (epoch > 1),
    cause              text NOT NULL CHECK (cause <> ''),
    recovered_at       timestamptz NOT NULL,
    recovered_by       text NOT NULL CHECK (btrim(recovered_by) <> ''),
    system_identifier  bigint NOT NULL,
    xid_shift          numeric NOT NULL CHECK (xid_shift >= 0),
    -- Reports that may have been sent by attempts this database does not know of.
    doubtful_reports   bigint NOT NULL CHECK (doubtful_reports >= 0)
);

-- Events that Stripe has beside the one that counts: they arrived under an identifier that the report had given up. Each is cancelled,
-- or waits for a person from the time we gave up.
CREATE TABLE billing.surplus (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    report_id      bigint NOT NULL REFERENCES billing.usage_report,
    identifier     text NOT NULL UNIQUE CHECK (identifier <> ''),
    token_count    bigint NOT NULL CHECK (token_count > 0),
    how            text NOT NULL CHECK (how IN ('late_answer', 'read_back')),
    found_at       timestamptz NOT NULL,
    attempt_count  integer NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    attempted_at   timestamptz,
    key_number     integer NOT NULL DEFAULT 0 CHECK (key_number >= 0),
    -- What Stripe said last, where it did not cancel.
    message        text CHECK (message <> ''),
    cancelled_at   timestamptz,
    gave_up_at     timestamptz,
    resolved_by    text CHECK (btrim(resolved_by) <> ''),
    resolved_at    timestamptz,
    CONSTRAINT tried_at_a_time CHECK ((attempt_count = 0) = (attempted_at IS NULL)),
    CONSTRAINT only_tries_end_it CHECK (attempt_count > 0 OR (cancelled_at IS NULL AND gave_up_at IS NULL)),
    CONSTRAINT cancelled_or_given_up CHECK (cancelled_at IS NULL OR gave_up_at IS NULL),
    CONSTRAINT giving_up_has_a_reason CHECK (gave_up_at IS NULL OR message IS NOT NULL),
    CONSTRAINT resolved_by_somebody CHECK ((resolved_at IS NULL) = (resolved_by IS NULL)),
    CONSTRAINT cancelled_is_resolved CHECK (cancelled_at IS NULL OR resolved_at IS NULL)
);

-- When Stripe's summary of a report's minute was last read for a surplus.
CREATE TABLE billing.surplus_look (
    report_id  bigint PRIMARY KEY REFERENCES billing.usage_report,
    looked_at  timestamptz NOT NULL,
    -- What the minute held beyond all that any of our events explains.
    unexplained_token_count  bigint NOT NULL DEFAULT 0 CHECK (unexplained_token_count >= 0)
);

-- Reports that were sent anew are few, and only their next generation moves them in here: other updates touch no index.
CREATE INDEX usage_report_sent_anew ON billing.usage_report (id) WHERE generation > 0;

-- A report fixes for ever what it holds; its first attempt fixes where it goes. (AFTER, since a BEFORE trigger would lock each row first.)
CREATE FUNCTION billing.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%.% row cannot be changed that way: %', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'check_violation';
END $$;

-- safeguard: what a report holds is frozen
CREATE TRIGGER what_it_holds_is_frozen
    AFTER UPDATE OF tenant_id, window_start, side_start, side_end, revision, row_count, token_count ON billing.usage_report
    FOR EACH ROW WHEN ((OLD.tenant_id, OLD.window_start, OLD.side_start, OLD.side_end, OLD.revision, OLD.row_count, OLD.token_count)
        IS DISTINCT FROM (NEW.tenant_id, NEW.window_start, NEW.side_start, NEW.side_end, NEW.revision, NEW.row_count, NEW.token_count))
    EXECUTE FUNCTION billing.refuse_change('a frozen report keeps its tenant, window, side, revision and counts');

-- safeguard: where a report went is fixed
CREATE TRIGGER where_it_went_is_fixed
    AFTER UPDATE OF sink, customer_id, event_name, meter_id, usage_item_id, event_time ON billing.usage_report
    FOR EACH ROW WHEN (OLD.first_attempted_at IS NOT NULL AND NEW.attempt_count > 0
        AND (OLD.sink, OLD.customer_id, OLD.event_name, OLD.meter_id, OLD.usage_item_id, OLD.event_time)
        IS DISTINCT FROM (NEW.sink, NEW.customer_id, NEW.event_name, NEW.meter_id, NEW.usage_item_id, NEW.event_time))
    EXECUTE FUNCTION billing.refuse_change('the first attempt fixed where it goes and when it is dated');

-- docs/states.md draws the same steps.
-- safeguard: a state follows from another
CREATE TRIGGER a_state_follows_from_another
    AFTER UPDATE OF state ON billing.usage_report
    FOR EACH ROW WHEN (OLD.state <> NEW.state AND OLD.state || ' --> ' || NEW.state <> ALL (ARRAY[
        'frozen --> sending', 'frozen --> accepted', 'frozen --> unresolved', 'frozen --> quarantined',
        'sending --> accepted', 'sending --> rejected', 'sending --> unresolved', 'sending --> frozen',
        'unresolved --> sending', 'unresolved --> accepted', 'unresolved --> frozen', 'unresolved --> quarantined',
        'rejected --> accepted',
        'accepted --> billed', 'accepted --> revoked', 'billed --> revoked', 'revoked --> frozen', 'revoked --> quarantined',
        'quarantined --> frozen']))
    EXECUTE FUNCTION billing.refuse_change('a report takes no such step; docs/states.md draws those that there are');

-- safeguard: a first attempt belongs to a generation
CREATE TRIGGER a_first_attempt_belongs_to_a_generation
    AFTER UPDATE OF first_attempted_at, generation ON billing.usage_report
    FOR EACH ROW WHEN (OLD.first_attempted_at IS DISTINCT FROM NEW.first_attempted_at AND NEW.attempt_count > 0
        AND OLD.first_attempted_at IS NOT NULL AND NEW.generation <= OLD.generation)
    EXECUTE FUNCTION billing.refuse_change('a generation was first attempted once');

-- Attempts are taken back only together, of a report of which Stripe certainly has nothing.
-- safeguard: what may have arrived stays attempted
CREATE TRIGGER what_may_have_arrived_stays_attempted
    AFTER UPDATE OF attempt_count ON billing.usage_report
    FOR EACH ROW WHEN (NEW.attempt_count < OLD.attempt_count
        AND (OLD.may_have_arrived OR OLD.state <> 'frozen' OR OLD.generation > 0 OR NEW.attempt_count > 0))
    EXECUTE FUNCTION billing.refuse_change('what may have arrived stays attempted');

-- safeguard: an identifier belongs to a generation
CREATE TRIGGER an_identifier_belongs_to_a_generation
    AFTER UPDATE OF identifier, generation ON billing.usage_report
    FOR EACH ROW WHEN (OLD.identifier IS DISTINCT FROM NEW.identifier AND NEW.generation <= OLD.generation)
    EXECUTE FUNCTION billing.refuse_change('a new identifier needs a new generation');

-- safeguard: a revocation stands
CREATE TRIGGER a_revocation_stands BEFORE UPDATE OR DELETE ON billing.revocation
    FOR EACH ROW EXECUTE FUNCTION billing.refuse_change('a revocation is written down for ever');

-- An answer that wakes up after its event was disowned must not pass for an answer about the report's next generation.
-- safeguard: what was disowned gets no answer
CREATE TRIGGER what_was_disowned_gets_no_answer
    AFTER UPDATE OF outcome ON billing.push_attempt
    FOR EACH ROW WHEN (OLD.outcome = 'disowned')
    EXECUTE FUNCTION billing.refuse_change('its event was disowned; run the task again');

-- Nothing rests in state revoked: the transaction that revokes also says why and what follows.
CREATE FUNCTION billing.require_whole_revocation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- safeguard: a revocation is whole
    IF EXISTS (SELECT FROM billing.usage_report WHERE id = NEW.id AND generation = NEW.generation)
       OR NOT EXISTS (SELECT FROM billing.revocation
                      WHERE report_id = NEW.id AND generation = NEW.generation AND identifier = NEW.identifier
                        AND row_count = NEW.row_count AND token_count = NEW.token_count) THEN
        RAISE EXCEPTION 'report % was revoked without being noted in billing.revocation, or without a new generation', NEW.id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

-- safeguard: half a revocation is found
CREATE CONSTRAINT TRIGGER a_revocation_is_whole
    AFTER UPDATE OF state ON billing.usage_report DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'revoked')
    EXECUTE FUNCTION billing.require_whole_revocation();

-- safeguard: a recovery stands
CREATE TRIGGER a_recovery_stands BEFORE UPDATE OR DELETE ON billing.recovery
    FOR EACH ROW EXECUTE FUNCTION billing.refuse_change('a recovery is written down for ever');

-- safeguard: epochs only grow
CREATE TRIGGER an_epoch_never_ends_twice BEFORE UPDATE OF epoch, noted_attempts ON billing.ledger
    FOR EACH ROW WHEN (NEW.epoch < OLD.epoch OR NEW.noted_attempts < OLD.noted_attempts)
    EXECUTE FUNCTION billing.refuse_change('epochs and noted attempts only grow');

-- safeguard: a fence stands
CREATE TRIGGER a_fence_stands BEFORE UPDATE OR DELETE ON billing.fence
    FOR EACH ROW EXECUTE FUNCTION billing.refuse_change('a fence stands where it was set');

-- safeguard: a pin holds
CREATE TRIGGER a_pin_holds BEFORE UPDATE OF ledger_id, cut_over, stripe_account_id, stripe_livemode ON billing.ledger
    FOR EACH ROW WHEN (OLD.ledger_id <> NEW.ledger_id OR OLD.cut_over IS DISTINCT FROM NEW.cut_over
        OR (OLD.pinned_at IS NOT NULL
            AND (OLD.stripe_account_id, OLD.stripe_livemode) IS DISTINCT FROM (NEW.stripe_account_id, NEW.stripe_livemode)))
    EXECUTE FUNCTION billing.refuse_change('a ledger keeps its id, its cut-over hour and its Stripe account');
