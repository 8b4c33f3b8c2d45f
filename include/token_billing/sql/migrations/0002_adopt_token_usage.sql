-- Adopts the application's token_usage: who recorded a row, and that what was recorded stays.

-- The ids that rows are stamped with, and the snapshots that fences are made of. Both are the cluster's own, until a recovery in
-- another cluster, whose ids may begin below those of the rows, replaces these two functions by ones that add a constant.
CREATE FUNCTION billing.recording_xid() RETURNS xid8 LANGUAGE sql STABLE AS 'SELECT pg_current_xact_id()';
CREATE FUNCTION billing.recording_snapshot() RETURNS pg_snapshot LANGUAGE sql STABLE AS 'SELECT pg_current_snapshot()';
-- Whoever records usage calls it, whatever else the application's role may do.
GRANT EXECUTE ON FUNCTION billing.recording_xid() TO PUBLIC;

-- The transaction that made the row visible. Adding it rewrites nothing: existing rows share this transaction's id.
ALTER TABLE token_usage ADD COLUMN recorded_xid xid8 NOT NULL DEFAULT billing.recording_xid();

-- IS TRUE refuses the NULLs as well: every row is checked again when it is marked, so the terms are few.
-- NOT VALID: rows from before are checked by the adoption itself, which names them.
-- safeguard: usage that can be billed
ALTER TABLE token_usage ADD CONSTRAINT billable_usage CHECK (
    (input_tokens >= 0 AND output_tokens >= 0 AND isfinite(created_at) AND tenant_id IS NOT NULL AND billed IS NOT NULL) IS TRUE
) NOT VALID;

-- The application cannot set recorded_xid: whatever it writes there is replaced by the truth. SECURITY DEFINER, because the
-- application's own role need not see schema billing.
CREATE FUNCTION billing.stamp_recorded_xid() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    NEW.recorded_xid := billing.recording_xid();
    RETURN NEW;
END $$;

-- safeguard: who recorded a row
CREATE TRIGGER billing_stamps_usage BEFORE INSERT ON token_usage
    FOR EACH ROW WHEN (NEW.recorded_xid IS DISTINCT FROM billing.recording_xid())
    EXECUTE FUNCTION billing.stamp_recorded_xid();

-- AFTER, not BEFORE: where a BEFORE ROW trigger exists, every updated row is locked and fetched first, also when marking.
-- safeguard: usage is insert-only
CREATE TRIGGER billing_keeps_usage
    AFTER UPDATE OF id, tenant_id, input_tokens, output_tokens, created_at, recorded_xid ON token_usage
    FOR EACH ROW WHEN ((OLD.id, OLD.tenant_id, OLD.input_tokens, OLD.output_tokens, OLD.created_at, OLD.recorded_xid)
        IS DISTINCT FROM (NEW.id, NEW.tenant_id, NEW.input_tokens, NEW.output_tokens, NEW.created_at, NEW.recorded_xid))
    EXECUTE FUNCTION billing.refuse_change('usage is insert-only; record a correction as a row of its own');

-- Retention may delete what is billed, in a transaction that says so: SET LOCAL billing.retention = 'on'.
CREATE FUNCTION billing.refuse_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- safeguard: only retention deletes, and only what is billed
    IF OLD.billed AND current_setting('billing.retention', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'token_usage row % cannot be deleted: only billed rows, by retention (SET LOCAL billing.retention = ''on'')', OLD.id
        USING ERRCODE = 'check_violation';
END $$;

-- safeguard: usage is not deleted
CREATE TRIGGER billing_keeps_rows BEFORE DELETE ON token_usage FOR EACH ROW EXECUTE FUNCTION billing.refuse_delete();

-- safeguard: usage is not truncated
CREATE TRIGGER billing_keeps_all BEFORE TRUNCATE ON token_usage
    FOR EACH STATEMENT EXECUTE FUNCTION billing.refuse_change('usage is never truncated; retention deletes what is billed');
