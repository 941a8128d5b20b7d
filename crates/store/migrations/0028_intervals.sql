-- How often wearables measured, where it was not always as the registry says: what they said of it in their own logs. By hardware
-- as the ledger: an assignment says whose it was.
SET ROLE kinara_owner;
CREATE TABLE device_intervals (
  hardware uuid NOT NULL REFERENCES hardware,
  channel int2 NOT NULL, -- 0: of all channels, at a boot, which begins with the registry's
  from_time timestamptz NOT NULL,
  interval_ms int4 NOT NULL, -- 0: the registry's
  PRIMARY KEY (hardware, channel, from_time)
);
ALTER TABLE device_intervals ENABLE ROW LEVEL SECURITY;
ALTER TABLE device_intervals FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON device_intervals TO kinara_owner USING (true) WITH CHECK (true);
CREATE POLICY ingest ON device_intervals TO kinara_ingest USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON device_intervals TO kinara_ingest;

-- From when until when each channel of a device had another interval, until the next word of that channel or the next boot. The
-- lookup is at most two steps in the key.
CREATE VIEW device_interval_spans AS
  SELECT i.hardware, i.channel, i.from_time, i.interval_ms,
    least(
      (SELECT min(n.from_time) FROM device_intervals n
       WHERE n.hardware = i.hardware AND n.channel = i.channel AND n.from_time > i.from_time),
      (SELECT min(b.from_time) FROM device_intervals b
       WHERE b.hardware = i.hardware AND b.channel = 0 AND b.from_time > i.from_time)) AS to_time
  FROM device_intervals i WHERE i.channel > 0;
GRANT SELECT ON device_interval_spans TO kinara_ingest;

-- The same for a clinic's pages: of the time in which the device was its wearer's.
CREATE VIEW wearer_intervals WITH (security_barrier) AS
  SELECT a.tenant_id, a.user_id, a.device_id, s.channel, greatest(a.valid_from, s.from_time) AS from_time,
    least(a.valid_to, s.to_time) AS to_time, s.interval_ms
  FROM device_interval_spans s JOIN device_assignments a ON a.hardware_id = s.hardware
  WHERE a.tenant_id = (select current_tenant())
    AND (a.valid_to IS NULL OR s.from_time < a.valid_to) AND (s.to_time IS NULL OR s.to_time > a.valid_from);
GRANT SELECT ON wearer_intervals TO kinara_app;

-- What clinics' wearers' days give, as before, but a reading of the heart rate stands for the interval that was in force, and a minute
-- that holds one for no less than that.
CREATE OR REPLACE VIEW wearer_days WITH (security_barrier) AS
  SELECT d.tenant_id, d.user_id, d.day, d.bucket,
    (WITH spans AS MATERIALIZED (
       SELECT greatest(a.valid_from, s.from_time) AS from_time,
         least(coalesce(a.valid_to, 'infinity'), coalesce(s.to_time, 'infinity')) AS to_time, s.interval_ms
       FROM device_assignments a JOIN device_interval_spans s ON s.hardware = a.hardware_id AND s.channel = 1
       WHERE a.tenant_id = d.tenant_id AND a.user_id = d.user_id)
     SELECT min(q.mean)
     FROM (SELECT z.from_time, lead(z.from_time, 1, 'infinity') OVER (ORDER BY z.from_time) AS to_time,
             CASE WHEN ts.is_zone(z.time_zone) THEN z.time_zone ELSE 'UTC' END AS zone
           FROM user_time_zones z WHERE z.user_id = d.user_id) z
     CROSS JOIN LATERAL (
       SELECT q.bucket, q.mean, q.count FROM ts.readings_15min q
       WHERE q.tenant_id = d.tenant_id AND q.user_id = d.user_id AND q.type = 1
         AND q.bucket >= greatest(z.from_time, d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours')
         AND q.bucket < least(z.to_time, d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours')
         AND (q.bucket AT TIME ZONE z.zone)::date = d.day OFFSET 0) q
     WHERE q.count * coalesce((SELECT max(s.interval_ms) FROM spans s
         WHERE q.bucket >= s.from_time AND q.bucket < s.to_time), 1000)::int8 >= 300000) AS resting_heart_rate,
    (WITH spans AS MATERIALIZED (
       SELECT greatest(a.valid_from, s.from_time) AS from_time,
         least(coalesce(a.valid_to, 'infinity'), coalesce(s.to_time, 'infinity')) AS to_time, s.interval_ms
       FROM device_assignments a JOIN device_interval_spans s ON s.hardware = a.hardware_id AND s.channel = 1
       WHERE a.tenant_id = d.tenant_id AND a.user_id = d.user_id)
     SELECT coalesce(sum(greatest(60000, (SELECT max(s.interval_ms) FROM spans s
         WHERE m.bucket >= s.from_time AND m.bucket < s.to_time))) / 60000, 0)::int8
     FROM (SELECT z.from_time, lead(z.from_time, 1, 'infinity') OVER (ORDER BY z.from_time) AS to_time,
             CASE WHEN ts.is_zone(z.time_zone) THEN z.time_zone ELSE 'UTC' END AS zone
           FROM user_time_zones z WHERE z.user_id = d.user_id) z
     CROSS JOIN LATERAL (
       SELECT m.bucket FROM ts.readings_minute m WHERE m.tenant_id = d.tenant_id AND m.user_id = d.user_id AND m.type = 1
         AND m.bucket >= greatest(z.from_time, d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours')
         AND m.bucket < least(z.to_time, d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours')
         AND (m.bucket AT TIME ZONE z.zone)::date = d.day OFFSET 0) m) AS worn_minutes
  FROM ts.readings_daily d WHERE d.type = 1 AND d.tenant_id = (select current_tenant());
RESET ROLE;
