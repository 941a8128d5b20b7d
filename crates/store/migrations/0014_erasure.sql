-- Erasure, and the count of what was written.
--
-- Whoever is erased has a tombstone first: from then on what comes of them is discarded, however late it comes. A job then
-- deletes what there is, a slice at a time. The ledger and the gaps stay: there is no health data in them.
SET ROLE kinara_owner;

CREATE TRIGGER erase AFTER INSERT ON tombstones FOR EACH ROW EXECUTE FUNCTION jobs.of_tenant('erase', 'user_id');
GRANT INSERT ON tombstones TO kinara_ingest;

-- How many readings were written for each clinic and hour, noted by the transaction that writes them, append-only; what
-- is erased is noted with a minus. The nightly reconciliation compares.
CREATE TABLE ts.written (
  tenant_id uuid NOT NULL,
  hour timestamptz NOT NULL,
  readings int8 NOT NULL
);
GRANT INSERT ON ts.written TO kinara_ingest;
-- The notes, added up.
CREATE TABLE ts.written_hours (
  tenant_id uuid NOT NULL,
  hour timestamptz NOT NULL,
  readings int8 NOT NULL,
  changed_at timestamptz NOT NULL,
  checked_at timestamptz,
  PRIMARY KEY (tenant_id, hour)
);
-- What was written before there were notes.
INSERT INTO ts.written (tenant_id, hour, readings)
  SELECT tenant_id, date_bin('1 hour', time, 'epoch'), count(*) FROM ts.readings GROUP BY 1, 2;

-- Where what is there is not what was written. An alert for whoever runs the cloud.
CREATE TABLE differences (
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  hour timestamptz NOT NULL,
  written int8 NOT NULL,
  present int8 NOT NULL,
  since timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, hour)
);
ALTER TABLE differences ENABLE ROW LEVEL SECURITY;
ALTER TABLE differences FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON differences TO kinara_owner USING (true) WITH CHECK (true);
CREATE POLICY ingest ON differences FOR SELECT TO kinara_ingest USING (true);
CREATE POLICY tenant ON differences FOR SELECT TO kinara_app USING (tenant_id = (select current_tenant()));
GRANT SELECT ON differences TO kinara_app, kinara_ingest;

CREATE FUNCTION ts.add_up_written() RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  hours int8;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended('kinara written', 0)) THEN
    RETURN 0;
  END IF;
  WITH gone AS (DELETE FROM ts.written RETURNING tenant_id, hour, readings)
  INSERT INTO ts.written_hours AS w (tenant_id, hour, readings, changed_at)
    SELECT tenant_id, hour, sum(readings), clock_timestamp() FROM gone GROUP BY 1, 2
    ON CONFLICT (tenant_id, hour) DO UPDATE
      SET readings = w.readings + excluded.readings, changed_at = excluded.changed_at;
  GET DIAGNOSTICS hours = ROW_COUNT;
  RETURN hours;
END $$;

-- Compares the oldest day that is over and changed since it was last compared, or is not older than `again_from` and was
-- not compared since `began`; NULL: there is none. One statement, one snapshot: a reading and its note are both seen, or
-- neither. Gives how many hours differ.
CREATE FUNCTION ts.reconcile(raw_from timestamptz, again_from timestamptz, began timestamptz) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  day timestamptz;
  wrong int8;
BEGIN
  SELECT date_bin('1 day', min(hour), 'epoch') INTO day FROM ts.written_hours
    WHERE (checked_at IS NULL OR checked_at < changed_at OR (hour >= again_from AND checked_at < began))
      AND hour < date_bin('1 day', now(), 'epoch') AND hour >= raw_from;
  IF day IS NULL THEN
    RETURN NULL;
  END IF;
  WITH there AS MATERIALIZED (
    SELECT tenant_id, date_bin('1 hour', time, 'epoch') AS hour, count(*) AS n FROM ts.readings
    WHERE time >= day AND time < day + interval '1 day' GROUP BY 1, 2),
  noted AS MATERIALIZED (
    SELECT tenant_id, hour, sum(readings)::int8 AS n FROM (
      SELECT tenant_id, hour, readings FROM ts.written_hours
      UNION ALL SELECT tenant_id, hour, readings FROM ts.written) both_of_them
    WHERE hour >= day AND hour < day + interval '1 day' GROUP BY 1, 2),
  compared AS (
    SELECT tenant_id, hour, coalesce(noted.n, 0) AS written, coalesce(there.n, 0) AS present
    FROM there FULL JOIN noted USING (tenant_id, hour)),
  gone AS (
    DELETE FROM public.differences d USING compared c
    WHERE d.tenant_id = c.tenant_id AND d.hour = c.hour AND c.written = c.present),
  kept AS (
    INSERT INTO public.differences AS d (tenant_id, hour, written, present)
    SELECT tenant_id, hour, written, present FROM compared WHERE written <> present
    ON CONFLICT (tenant_id, hour) DO UPDATE SET written = excluded.written, present = excluded.present
    RETURNING 1),
  checked AS (
    UPDATE ts.written_hours SET checked_at = clock_timestamp() WHERE hour >= day AND hour < day + interval '1 day')
  SELECT count(*) INTO wrong FROM kept;
  RETURN wrong;
END $$;

-- Deletes what there is of a wearer who has a tombstone: up to so many days of readings a call, and the rest at the end.
-- Gives how many rows went; 0: there is nothing left.
CREATE FUNCTION ts.erase(tenant uuid, wearer uuid, most_days int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  first timestamptz;
  after timestamptz := '-infinity';
  gone int8;
  total int8 := 0;
  base text;
BEGIN
  IF NOT EXISTS (SELECT FROM public.tombstones t WHERE t.tenant_id = tenant AND t.user_id = wearer) THEN
    RAISE EXCEPTION 'there is no tombstone for this wearer' USING ERRCODE = '55000';
  END IF;
  -- What is compressed is decompressed for it.
  PERFORM set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true);
  FOR i IN 1..most_days LOOP
    SELECT min(t) INTO first FROM (
      SELECT (SELECT r.time FROM ts.readings r WHERE r.tenant_id = tenant AND r.user_id = wearer AND r.type = c.type
                AND r.time >= after ORDER BY r.time LIMIT 1) AS t FROM public.channels c
      UNION ALL
      SELECT (SELECT w.time FROM ts.waveforms w WHERE w.tenant_id = tenant AND w.user_id = wearer AND w.type = c.type
                AND w.time >= after ORDER BY w.time LIMIT 1) FROM public.channels c) firsts;
    EXIT WHEN first IS NULL;
    after := first + interval '1 day';
    WITH rows AS (
      DELETE FROM ts.readings r WHERE r.tenant_id = tenant AND r.user_id = wearer AND r.time >= first AND r.time < after
      RETURNING r.time), noted AS (
      INSERT INTO ts.written (tenant_id, hour, readings)
        SELECT tenant, date_bin('1 hour', time, 'epoch'), -count(*) FROM rows GROUP BY 2)
    SELECT count(*) INTO gone FROM rows;
    total := total + gone;
    DELETE FROM ts.waveforms w WHERE w.tenant_id = tenant AND w.user_id = wearer AND w.time >= first AND w.time < after;
    GET DIAGNOSTICS gone = ROW_COUNT;
    total := total + gone;
  END LOOP;
  IF total > 0 THEN
    RETURN total;
  END IF;

  FOREACH base IN ARRAY ARRAY['ts.events', 'ts.stale', 'ts.stale_hrv', 'ts.readings_minute', 'ts.readings_15min',
    'ts.readings_hourly', 'ts.readings_daily', 'ts.hrv', 'public.event_keys', 'public.consents'] LOOP
    EXECUTE format('DELETE FROM %s WHERE tenant_id = $1 AND user_id = $2', base) USING tenant, wearer;
    GET DIAGNOSTICS gone = ROW_COUNT;
    total := total + gone;
  END LOOP;
  -- What of their time was refused, or said whether they wore it.
  DELETE FROM public.quarantine q USING public.device_assignments a, public.hardware h
    WHERE a.tenant_id = tenant AND a.user_id = wearer AND h.id = a.hardware_id AND q.hardware_id = h.hardware_id
      AND q.tenant_id = tenant AND q.received_at >= a.valid_from AND (a.valid_to IS NULL OR q.received_at < a.valid_to);
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  DELETE FROM public.wear w USING public.device_assignments a WHERE a.tenant_id = tenant AND a.user_id = wearer
    AND w.hardware = a.hardware_id AND w.at >= a.valid_from AND (a.valid_to IS NULL OR w.at < a.valid_to);
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  -- That something was decided stays, and by whom; about whom goes.
  UPDATE public.decisions SET user_id = NULL, detail = '{}', payload = '' WHERE tenant_id = tenant AND user_id = wearer;
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  UPDATE public.users SET merged_into = NULL WHERE tenant_id = tenant AND merged_into = wearer;
  DELETE FROM public.users WHERE tenant_id = tenant AND id = wearer;
  GET DIAGNOSTICS gone = ROW_COUNT;
  RETURN total + gone;
END $$;

REVOKE ALL ON FUNCTION ts.add_up_written(), ts.reconcile(timestamptz, timestamptz, timestamptz), ts.erase(uuid, uuid, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.add_up_written(), ts.reconcile(timestamptz, timestamptz, timestamptz), ts.erase(uuid, uuid, int) TO kinara_ingest;

-- What a clinic's day gives: the lowest quarter of an hour of the heart rate (of at least five minutes' beats), and the
-- minutes with a heart rate, which is measured on skin alone. Zones are looked up here and not by ts.zone_at: who reads a
-- view needs the right to what it calls.
CREATE VIEW wearer_days WITH (security_barrier) AS
  SELECT d.tenant_id, d.user_id, d.day, d.bucket,
    (SELECT min(q.mean) FROM ts.readings_15min q WHERE q.tenant_id = d.tenant_id AND q.user_id = d.user_id AND q.type = 1
       AND q.bucket >= d.bucket AND q.bucket < d.bucket + interval '26 hours'
       AND (q.bucket AT TIME ZONE (SELECT z.time_zone FROM user_time_zones z
         WHERE z.user_id = q.user_id AND z.from_time <= q.bucket ORDER BY z.from_time DESC LIMIT 1))::date = d.day AND q.count >= 300) AS resting_heart_rate,
    (SELECT count(*) FROM ts.readings_minute m WHERE m.tenant_id = d.tenant_id AND m.user_id = d.user_id AND m.type = 1
       AND m.bucket >= d.bucket AND m.bucket < d.bucket + interval '26 hours'
       AND (m.bucket AT TIME ZONE (SELECT z.time_zone FROM user_time_zones z
         WHERE z.user_id = m.user_id AND z.from_time <= m.bucket ORDER BY z.from_time DESC LIMIT 1))::date = d.day) AS worn_minutes
  FROM ts.readings_daily d WHERE d.type = 1 AND d.tenant_id = (select current_tenant());
GRANT SELECT ON wearer_days TO kinara_app;
RESET ROLE;
