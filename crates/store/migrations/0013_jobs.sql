-- Work that waits in the database: a queue of jobs (graphile_worker's tables), and what comes over HTTP.
--
-- The queue's schema belongs to a role of its own, which can do nothing else in this database; whoever works on jobs
-- becomes it for that (SET ROLE). A job names what is to be done by id: no job carries a reading. Jobs are made by
-- triggers, so whoever inserts a row needs no right to the queue. A clinic's jobs stand in a queue of its own, one after
-- another: it waits for itself alone.
DO $$
BEGIN
  CREATE ROLE kinara_jobs NOLOGIN NOSUPERUSER NOBYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
DO $$
BEGIN
  IF NOT pg_has_role(current_user, 'kinara_jobs', 'MEMBER') THEN
    EXECUTE format('GRANT kinara_jobs TO %I', current_user);
  END IF;
END $$;
GRANT kinara_jobs TO kinara_ingest;
CREATE SCHEMA jobs AUTHORIZATION kinara_jobs;
SET ROLE kinara_jobs;

-- As the library makes it, which would make the schema, too, for which its role has no right.
CREATE TABLE jobs.migrations (
  id int PRIMARY KEY,
  ts timestamptz NOT NULL DEFAULT now(),
  breaking boolean NOT NULL DEFAULT false
);

-- A job about a row of a tenant. Only triggers call it.
CREATE FUNCTION jobs.of_tenant() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  this jsonb := to_jsonb(NEW);
  about text := this ->> TG_ARGV[1];
BEGIN
  PERFORM jobs.add_job(TG_ARGV[0], json_build_object('tenant', this ->> 'tenant_id', 'id', about),
    queue_name => 'tenant:' || (this ->> 'tenant_id'), job_key => TG_ARGV[0] || ':' || about);
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION jobs.of_tenant() FROM PUBLIC;
GRANT USAGE ON SCHEMA jobs TO kinara_owner;
GRANT EXECUTE ON FUNCTION jobs.of_tenant() TO kinara_owner;
RESET ROLE;
SET ROLE kinara_owner;

-- What came over HTTP. The payload goes once it is written; what became of it stays for as long as the key counts.
CREATE TABLE ingest_requests (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  api_key_id uuid REFERENCES api_keys ON DELETE SET NULL,
  idempotency_key varchar(255),
  digest bytea NOT NULL,       -- SHA-256 of the body
  items int4 NOT NULL,
  refused int4 NOT NULL,
  told jsonb NOT NULL,         -- [{index, field, detail}], the first of those refused
  payload bytea,               -- batches, as crates/ingest packs them; NULL: written
  received_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  outcome jsonb                -- {stored, duplicate, quarantined, discarded, expired, aside}
);
CREATE UNIQUE INDEX ingest_requests_key ON ingest_requests (tenant_id, idempotency_key);
CREATE INDEX ingest_requests_waiting ON ingest_requests (tenant_id) WHERE finished_at IS NULL;
CREATE INDEX ingest_requests_age ON ingest_requests USING brin (received_at);
CREATE TRIGGER take AFTER INSERT ON ingest_requests FOR EACH ROW EXECUTE FUNCTION jobs.of_tenant('take_request', 'id');

ALTER TABLE ingest_requests ENABLE ROW LEVEL SECURITY;
ALTER TABLE ingest_requests FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON ingest_requests TO kinara_owner USING (true) WITH CHECK (true);
CREATE POLICY ingest ON ingest_requests TO kinara_ingest USING (true) WITH CHECK (true);
CREATE POLICY tenant ON ingest_requests TO kinara_app USING (tenant_id = (select current_tenant()))
  WITH CHECK (tenant_id = (select current_tenant()));
GRANT SELECT, INSERT ON ingest_requests TO kinara_app;
GRANT SELECT, UPDATE (payload, finished_at, outcome) ON ingest_requests TO kinara_ingest;

-- Forgets what was finished so long ago, a slice a call.
CREATE FUNCTION forget_requests(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
      DELETE FROM ingest_requests WHERE id = ANY(ARRAY(
        SELECT id FROM ingest_requests WHERE received_at < before AND finished_at IS NOT NULL LIMIT most))
      RETURNING 1)
    SELECT count(*) FROM gone $$;
REVOKE ALL ON FUNCTION forget_requests(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_requests(timestamptz, int) TO kinara_ingest;

-- When a key was last used, to the minute: a row that is written at every request would be written at nothing else.
CREATE FUNCTION api_key_used(key uuid) RETURNS void
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE api_keys SET last_used_at = now()
    WHERE id = key AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute') $$;
REVOKE ALL ON FUNCTION api_key_used(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION api_key_used(uuid) TO kinara_app;

-- What wearables said of being worn, by hardware as the ledger: an assignment says whose it was.
CREATE TABLE wear (
  hardware uuid NOT NULL REFERENCES hardware,
  epoch int8 NOT NULL,
  at timestamptz NOT NULL,
  worn boolean NOT NULL,
  PRIMARY KEY (hardware, epoch, at, worn)
);
ALTER TABLE wear ENABLE ROW LEVEL SECURITY;
ALTER TABLE wear FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON wear TO kinara_owner USING (true) WITH CHECK (true);
CREATE POLICY ingest ON wear TO kinara_ingest USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON wear TO kinara_ingest;
CREATE VIEW wearer_wear WITH (security_barrier) AS
  SELECT a.tenant_id, a.user_id, a.device_id, w.at, w.worn
  FROM wear w JOIN device_assignments a ON a.hardware_id = w.hardware
  WHERE a.tenant_id = (select current_tenant()) AND w.at >= a.valid_from AND (a.valid_to IS NULL OR w.at < a.valid_to);
GRANT SELECT ON wearer_wear TO kinara_app;
RESET ROLE;
