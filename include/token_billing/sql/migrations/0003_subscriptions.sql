-- What Stripe tells of checkouts and subscriptions, and what follows from it: which item bills a tenant's usage at every instant.

-- The inbox: every event once, however often and by whatever way it came.
CREATE TABLE billing.stripe_event (
    event_id         text PRIMARY KEY CHECK (event_id <> ''),
    event_type       text NOT NULL CHECK (event_type <> ''),
    happened_at      timestamptz NOT NULL,
    livemode         boolean NOT NULL,
    api_version      text,
    -- What it is about, where it says so.
    subscription_id  text,
    customer_id      text,
    payload          jsonb NOT NULL,
    came_by          text NOT NULL CHECK (came_by IN ('webhook', 'sweep')),
    received_at      timestamptz NOT NULL,
    handled_at       timestamptz
);
CREATE INDEX stripe_event_unhandled ON billing.stripe_event (happened_at) WHERE handled_at IS NULL;
CREATE INDEX stripe_event_handled ON billing.stripe_event (handled_at) WHERE handled_at IS NOT NULL;
CREATE INDEX stripe_event_of_subscription ON billing.stripe_event (subscription_id, happened_at);
CREATE INDEX stripe_event_of_deleted_customers ON billing.stripe_event (customer_id) WHERE event_type = 'customer.deleted';

-- safeguard: an event stays as it came
CREATE TRIGGER an_event_stays_as_it_came
    BEFORE UPDATE OF event_id, event_type, happened_at, livemode, api_version, subscription_id, customer_id, payload, came_by, received_at
    ON billing.stripe_event FOR EACH ROW EXECUTE FUNCTION billing.refuse_change('an event stays as it came');

-- Until when the inbox holds every event that Stripe's list has.
CREATE TABLE billing.event_cursor (
    only_one     boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    swept_until  timestamptz NOT NULL
);

-- safeguard: the cursor only advances
CREATE TRIGGER the_cursor_only_advances BEFORE UPDATE OF swept_until ON billing.event_cursor
    FOR EACH ROW WHEN (NEW.swept_until < OLD.swept_until) EXECUTE FUNCTION billing.refuse_change('the cursor only advances');

-- A subscription as it was when Stripe was last asked about it.
CREATE TABLE billing.subscription (
    subscription_id  text PRIMARY KEY CHECK (subscription_id <> ''),
    payload          jsonb NOT NULL,
    asked_at         timestamptz NOT NULL
);

-- Which tenant bought which subscription in a checkout.
CREATE TABLE billing.checkout (
    event_id         text PRIMARY KEY REFERENCES billing.stripe_event,
    tenant_id        text NOT NULL,
    subscription_id  text NOT NULL CHECK (subscription_id <> ''),
    customer_id      text NOT NULL CHECK (customer_id <> ''),
    happened_at      timestamptz NOT NULL
);
CREATE INDEX checkout_of_tenant ON billing.checkout (tenant_id);
CREATE INDEX checkout_of_subscription ON billing.checkout (subscription_id);

-- Whose usage a subscription bills. A tenant may have had several, one after another; the tenant's own columns name the present one.
CREATE TABLE billing.subscription_link (
    subscription_id      text PRIMARY KEY CHECK (subscription_id <> ''),
    tenant_id            text NOT NULL,
    customer_id          text NOT NULL CHECK (customer_id <> ''),
    -- The checkout that linked it; NULL where the application did, which no checkout overrules.
    checkout_event_id    text REFERENCES billing.checkout,
    linked_at            timestamptz NOT NULL,
    ended_at             timestamptz,
    customer_deleted_at  timestamptz
);
CREATE INDEX subscription_link_of_tenant ON billing.subscription_link (tenant_id);
CREATE INDEX subscription_link_of_customer ON billing.subscription_link (customer_id);

-- Texts have no GiST operators of their own; as ranges of one text each they do, without an extension.
CREATE TYPE billing.text_range AS RANGE (subtype = text);

-- When which item at which price bills a tenant's usage, and in which billing period: half-open, never two at once.
CREATE TABLE billing.subscription_period (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id        text NOT NULL,
    subscription_id  text NOT NULL REFERENCES billing.subscription_link,
    customer_id      text NOT NULL CHECK (customer_id <> ''),
    usage_item_id    text NOT NULL CHECK (usage_item_id <> ''),
    price_id         text NOT NULL CHECK (price_id <> ''),
    -- NULL for a price of the legacy metered billing system.
    meter_id         text,
    period_start     timestamptz NOT NULL,
    period_end       timestamptz NOT NULL,
    billed_from      timestamptz NOT NULL,
    billed_until     timestamptz NOT NULL,
    during           tstzrange NOT NULL GENERATED ALWAYS AS (tstzrange(billed_from, billed_until)) STORED,
    CONSTRAINT inside_its_period CHECK (period_start <= billed_from AND billed_from < billed_until AND billed_until <= period_end),
    CONSTRAINT one_item_at_a_time EXCLUDE USING gist (billing.text_range(tenant_id, tenant_id, '[]') WITH &&, during WITH &&)
);
CREATE INDEX subscription_period_of_tenant ON billing.subscription_period (tenant_id, billed_from);
CREATE INDEX subscription_period_starts ON billing.subscription_period (billed_from);
CREATE INDEX subscription_period_ends ON billing.subscription_period (billed_until);

-- Meters of timelines that no usage can be billed from: they do not add their events up.
CREATE TABLE billing.unusable_meter (
    meter_id  text PRIMARY KEY CHECK (meter_id <> ''),
    problem   text NOT NULL CHECK (problem <> '')
);

-- Tenants whose usage nobody pays for: kept, counted, never sent.
CREATE TABLE billing.excluded_tenant (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id      text NOT NULL,
    reason         text NOT NULL CHECK (reason IN ('internal', 'complimentary')),
    excluded_from  timestamptz NOT NULL,
    excluded_until timestamptz,
    excluded_by    text NOT NULL CHECK (btrim(excluded_by) <> ''),
    CONSTRAINT excluded_for_a_time CHECK (excluded_from < excluded_until),
    CONSTRAINT excluded_once_at_a_time EXCLUDE USING gist (
        billing.text_range(tenant_id, tenant_id, '[]') WITH &&, tstzrange(excluded_from, excluded_until) WITH &&)
);

-- The ids that set-up found or made at Stripe, by the names the catalogue gives; those before stay, since subscriptions go on under them.
CREATE TABLE billing.catalogue_price (
    price_id   text PRIMARY KEY CHECK (price_id <> ''),
    name       text NOT NULL CHECK (name <> ''),
    is_newest  boolean NOT NULL,
    learned_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX one_newest_price_by_name ON billing.catalogue_price (name) WHERE is_newest;

-- What was sent of a tenant's, looked at when its timeline changes.
CREATE INDEX usage_report_of_tenant ON billing.usage_report (tenant_id, window_start);

-- Where a report that was never attempted would go, and why it may not: by the tenant's timeline where its present subscription is
-- followed, else as the application's own columns and Stripe's items say. Neither a reason nor known: more must be found out first.
CREATE VIEW billing.destination AS
SELECT report.id AS report_id,
       link.subscription_id IS NOT NULL AS is_followed,
       CASE WHEN link.subscription_id IS NULL THEN nullif(tenant.stripe_customer_id, '') ELSE period.customer_id END AS customer_id,
       CASE WHEN link.subscription_id IS NULL THEN nullif(tenant.stripe_usage_item_id, '') ELSE period.usage_item_id END AS usage_item_id,
       coalesce(period.meter_id, item.meter_id) AS meter_id,
       CASE WHEN link.subscription_id IS NULL THEN item.usage_item_id IS NOT NULL AND item.problem IS NULL
            ELSE period.id IS NOT NULL AND (period.meter_id IS NULL OR meter.meter_id IS NOT NULL) END AS is_known,
       -- safeguard: usage that leads nowhere
       CASE WHEN excluded.id IS NOT NULL THEN 'excluded_tenant'
            WHEN tenant.id IS NULL THEN 'unknown_tenant'
            WHEN link.subscription_id IS NULL AND coalesce(tenant.stripe_customer_id, '') = '' THEN 'no_customer'
            WHEN link.subscription_id IS NULL AND coalesce(tenant.stripe_usage_item_id, '') = '' THEN 'no_subscription_item'
            WHEN link.subscription_id IS NULL AND item.problem IS NOT NULL THEN 'item_not_metered'
            WHEN link.subscription_id IS NULL THEN NULL
            WHEN billed_by.customer_deleted_at IS NOT NULL THEN 'customer_deleted'
            WHEN unusable.meter_id IS NOT NULL THEN 'item_not_metered'
            WHEN period.id IS NOT NULL THEN NULL
            WHEN before.customer_deleted_at <= report.side_start THEN 'customer_deleted'
            WHEN before.ended_at <= report.side_start THEN 'after_subscription'
            WHEN before.subscription_id IS NULL AND EXISTS (SELECT FROM billing.subscription_period later
                                                            WHERE later.tenant_id = report.tenant_id) THEN 'before_subscription'
            -- What is not known yet may turn out to be billed: only what the events up to then say nothing of has no item.
            WHEN report.side_start < greatest((SELECT swept_until FROM billing.event_cursor),
                                              (SELECT known.asked_at FROM billing.subscription known
                                               WHERE known.subscription_id = link.subscription_id)) THEN 'item_ended'
       END AS reason
FROM billing.usage_report report
LEFT JOIN tenants tenant ON tenant.id = report.tenant_id
LEFT JOIN billing.subscription_link link ON link.subscription_id = tenant.stripe_subscription_id AND link.tenant_id = tenant.id
LEFT JOIN billing.subscription_period period
  ON link.subscription_id IS NOT NULL AND period.tenant_id = report.tenant_id
 AND period.billed_from <= report.side_start AND report.side_start < period.billed_until
LEFT JOIN billing.subscription_link billed_by ON billed_by.subscription_id = period.subscription_id
LEFT JOIN LATERAL (
    SELECT earlier.subscription_id, earlier.ended_at, earlier.customer_deleted_at
    FROM billing.subscription_period past
    JOIN billing.subscription_link earlier USING (subscription_id)
    WHERE link.subscription_id IS NOT NULL AND period.id IS NULL
      AND past.tenant_id = report.tenant_id AND past.billed_until <= report.side_start
    ORDER BY past.billed_until DESC
    LIMIT 1
) before ON true
LEFT JOIN billing.meter meter ON meter.meter_id = period.meter_id
LEFT JOIN billing.unusable_meter unusable ON unusable.meter_id = period.meter_id
LEFT JOIN billing.metered_item item ON link.subscription_id IS NULL AND item.usage_item_id = tenant.stripe_usage_item_id
LEFT JOIN billing.excluded_tenant excluded
  ON excluded.tenant_id = report.tenant_id AND tstzrange(excluded.excluded_from, excluded.excluded_until) @> report.side_start
WHERE report.attempt_count = 0;
