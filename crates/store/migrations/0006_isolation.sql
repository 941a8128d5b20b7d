-- Who may see what. Relational tables: forced row-level security, with a policy for each role that has any business
-- there. Time series: no grant to the application role, only views that filter by the transaction's tenant.
SET ROLE kinara_owner;

-- Forced everywhere; the owner (security definer functions, the operator's commands) has a policy that says so openly.
DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['tenants', 'members', 'sessions', 'api_keys', 'users', 'consents', 'audit_log',
    'model_versions', 'hardware', 'devices', 'gateways', 'gateway_buffers', 'device_assignments', 'tombstones',
    'channels', 'ledger', 'frame_times', 'event_keys', 'gaps', 'quarantine'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY owner ON %I TO kinara_owner USING (true) WITH CHECK (true)', t);
  END LOOP;
  FOREACH t IN ARRAY ARRAY['members', 'sessions', 'api_keys', 'users', 'consents', 'audit_log', 'devices', 'gateways',
    'device_assignments', 'tombstones'] LOOP
    EXECUTE format('CREATE POLICY tenant ON %I TO kinara_app USING (tenant_id = (select current_tenant()))
      WITH CHECK (tenant_id = (select current_tenant()))', t);
  END LOOP;
END $$;

-- The application.
CREATE POLICY tenant ON tenants TO kinara_app USING (id = (select current_tenant()))
  WITH CHECK (id = (select current_tenant()));
CREATE POLICY tenant ON hardware FOR SELECT TO kinara_app USING (hardware_id IN
  (SELECT d.hardware_id FROM devices d WHERE d.tenant_id = (select current_tenant())));
CREATE POLICY tenant ON gateway_buffers FOR SELECT TO kinara_app USING (gateway_id IN
  (SELECT g.id FROM gateways g WHERE g.tenant_id = (select current_tenant())));
-- The same for every tenant, and nothing of any.
CREATE POLICY everybody ON channels FOR SELECT TO kinara_app, kinara_ingest USING (true);
CREATE POLICY everybody ON model_versions FOR SELECT TO kinara_app, kinara_ingest USING (true);

GRANT SELECT, UPDATE (name, settings, time_zone, updated_at) ON tenants TO kinara_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON members, sessions, api_keys, users TO kinara_app;
GRANT SELECT, INSERT, UPDATE ON consents, devices, gateways, device_assignments TO kinara_app;
GRANT SELECT, INSERT ON audit_log, tombstones TO kinara_app;
GRANT SELECT ON hardware, gateway_buffers, channels, model_versions TO kinara_app;

-- The bridge. Its transactions span tenants; it has no grant on members, sessions, keys or the audit log, and of a
-- wearer it sees what a roster carries.
DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['tenants', 'users', 'consents', 'hardware', 'devices', 'gateways', 'gateway_buffers',
    'device_assignments', 'tombstones', 'ledger', 'frame_times', 'event_keys', 'gaps', 'quarantine'] LOOP
    EXECUTE format('CREATE POLICY ingest ON %I TO kinara_ingest USING (true) WITH CHECK (true)', t);
  END LOOP;
END $$;
CREATE POLICY ingest ON channels FOR INSERT TO kinara_ingest WITH CHECK (true);
GRANT SELECT (id, name, slug, settings, region, time_zone) ON tenants TO kinara_ingest;
GRANT SELECT (id, tenant_id, display_name, time_zone) ON users TO kinara_ingest;
GRANT SELECT ON consents, device_assignments, tombstones, model_versions TO kinara_ingest;
GRANT SELECT, INSERT ON hardware, channels, event_keys TO kinara_ingest;
GRANT SELECT, UPDATE (firmware_version, last_seen_at, battery_percent, worn, link) ON devices TO kinara_ingest;
GRANT SELECT, UPDATE (state, last_seen_at) ON gateways TO kinara_ingest;
GRANT SELECT, INSERT, UPDATE ON gateway_buffers, ledger, frame_times, gaps TO kinara_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON quarantine TO kinara_ingest;
GRANT SELECT ON ts.storage TO kinara_ingest;
GRANT INSERT ON ts.readings, ts.events, ts.waveforms TO kinara_ingest;

-- The published names. A view runs with its owner's rights, so the filter is the whole of the isolation here.
CREATE VIEW readings WITH (security_barrier) AS
  SELECT r.time, r.tenant_id, r.user_id, r.device_id, c.name AS reading_type, r.value, c.unit, r.quality,
    NULL::jsonb AS metadata
  FROM ts.readings r JOIN channels c ON c.type = r.type
  WHERE r.tenant_id = (select current_tenant());

-- The same rows with their keys, by which a live value finds the stored reading that replaces it.
CREATE VIEW reading_keys WITH (security_barrier) AS
  SELECT r.time, r.tenant_id, r.user_id, r.device_id, c.name AS reading_type, r.value, c.unit, r.quality,
    r.epoch, r.seq, r.idx
  FROM ts.readings r JOIN channels c ON c.type = r.type
  WHERE r.tenant_id = (select current_tenant());

CREATE VIEW events WITH (security_barrier) AS
  SELECT time, tenant_id, user_id, device_id, event_type, severity, confidence, data, acknowledged_at
  FROM ts.events
  WHERE tenant_id = (select current_tenant())
  WITH LOCAL CHECK OPTION;

CREATE VIEW waveforms WITH (security_barrier) AS
  SELECT w.time, w.tenant_id, w.user_id, w.device_id, c.name AS reading_type, w.interval_ms, w.ticks, w.scale,
    w.components, c.unit, w.data, w.quality
  FROM ts.waveforms w JOIN channels c ON c.type = w.type
  WHERE w.tenant_id = (select current_tenant());

-- What a tenant may know of its wearers' gaps: each cut to the time in which the device was that wearer's.
CREATE VIEW wearer_gaps WITH (security_barrier) AS
  SELECT g.id, a.tenant_id, a.user_id, a.device_id, g.reason,
    greatest(g.from_time, a.valid_from) AS from_time,
    least(g.to_time, a.valid_to) AS to_time,
    g.gateway_id, g.created_at,
    (SELECT sum(upper(s) - lower(s)) FROM unnest(g.seqs) s)::int8 AS frames
  FROM gaps g JOIN device_assignments a ON a.hardware_id = g.hardware
  WHERE a.tenant_id = (select current_tenant()) AND g.withdrawn_at IS NULL
    AND tstzrange(a.valid_from, a.valid_to) &&
      tstzrange(least(g.from_time, g.to_time), greatest(g.from_time, g.to_time), '[]');

GRANT SELECT ON readings, reading_keys, waveforms, wearer_gaps TO kinara_app;
GRANT SELECT, UPDATE (acknowledged_at) ON events TO kinara_app;

-- Before there is a tenant: who is this? Each answers for one exact secret or address, and nothing else.
CREATE FUNCTION login_lookup(address text)
  RETURNS TABLE (member_id uuid, tenant_id uuid, password_hash text, role varchar)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT m.id, m.tenant_id, m.password_hash, m.role FROM members m
    WHERE lower(m.email) = lower(address) AND m.disabled_at IS NULL $$;
CREATE FUNCTION session_lookup(hash bytea) RETURNS TABLE (session_id uuid, tenant_id uuid, member_id uuid)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT s.id, s.tenant_id, s.member_id FROM sessions s WHERE s.token_hash = hash $$;
CREATE FUNCTION api_key_lookup(hash text) RETURNS TABLE (api_key_id uuid, tenant_id uuid, scopes text[])
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT k.id, k.tenant_id, k.scopes FROM api_keys k
    WHERE k.key_hash = hash AND (k.expires_at IS NULL OR k.expires_at > now()) $$;
REVOKE ALL ON FUNCTION login_lookup(text), session_lookup(bytea), api_key_lookup(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION login_lookup(text), session_lookup(bytea), api_key_lookup(text) TO kinara_app;
RESET ROLE;

-- Programs check at start that the schema is theirs.
GRANT USAGE ON SCHEMA kinara TO kinara_app, kinara_ingest;
GRANT SELECT ON kinara.migrations TO kinara_app, kinara_ingest;
