-- Aggregates of readings, by minute, quarter of an hour, hour, and the wearer's local day: the same on both storages.
--
-- A write notes, in its own transaction, which (tenant, user, type, hour) it made stale. ts.roll_up recomputes these whole:
-- minutes from the readings, each coarser one from the finer, so late, doubled and replayed data come out the same as data
-- in time. What is older than raw readings are kept is never recomputed from them: those rows stay as they are.
SET ROLE kinara_owner;

-- Append-only: writers never wait for each other here.
CREATE TABLE ts.stale (
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  type int2 NOT NULL,
  hour timestamptz NOT NULL,
  -- Only the local days are to be made anew, and those beside them: the wearer's time zone was another one.
  days_only boolean NOT NULL DEFAULT false
);

CREATE TYPE ts.stale_day AS (tenant_id uuid, user_id uuid, type int2, day date);

-- m2 is the sum of squared deviations from the mean: means and deviations of parts can be put together (Chan, Golub and
-- LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances, eq. 2.1).
CREATE TABLE ts.readings_minute (
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  type int2 NOT NULL,
  bucket timestamptz NOT NULL,
  count int8 NOT NULL,
  mean float8 NOT NULL,
  m2 float8 NOT NULL,
  min float8 NOT NULL,
  max float8 NOT NULL,
  PRIMARY KEY (tenant_id, user_id, type, bucket)
);
CREATE TABLE ts.readings_15min (LIKE ts.readings_minute INCLUDING INDEXES);
CREATE TABLE ts.readings_hourly (LIKE ts.readings_minute INCLUDING INDEXES);
-- `bucket` is the local day's first moment, by the time zone at the day's first reading.
CREATE TABLE ts.readings_daily (
  LIKE ts.readings_minute,
  day date NOT NULL,
  PRIMARY KEY (tenant_id, user_id, type, day)
);

CREATE FUNCTION ts.is_zone(name text) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM now() AT TIME ZONE name;
  RETURN true;
EXCEPTION WHEN invalid_parameter_value THEN
  RETURN false;
END $$;

-- Where a wearer's clock stood: the newest entry at or before a time. The first one holds for all time before it too.
CREATE TABLE user_time_zones (
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
  from_time timestamptz NOT NULL,
  -- One that is none would stop everybody's aggregates.
  time_zone varchar(64) NOT NULL CHECK (ts.is_zone(time_zone)),
  PRIMARY KEY (user_id, from_time)
);
INSERT INTO user_time_zones (tenant_id, user_id, from_time, time_zone)
  SELECT tenant_id, id, '-infinity', CASE WHEN ts.is_zone(time_zone) THEN time_zone ELSE 'UTC' END FROM users;

CREATE FUNCTION ts.zone_at(which uuid, at timestamptz) RETURNS text
  LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT time_zone FROM public.user_time_zones WHERE user_id = which AND from_time <= at
    ORDER BY from_time DESC LIMIT 1 $$;

-- A change counts from now on. A correction of the past is an entry in user_time_zones.
CREATE FUNCTION ts.note_time_zone() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO public.user_time_zones (tenant_id, user_id, from_time, time_zone)
    VALUES (NEW.tenant_id, NEW.id, CASE TG_OP WHEN 'INSERT' THEN '-infinity' ELSE clock_timestamp() END, NEW.time_zone);
  RETURN NULL;
END $$;
CREATE TRIGGER time_zone_new AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION ts.note_time_zone();
CREATE TRIGGER time_zone_changed AFTER UPDATE OF time_zone ON users FOR EACH ROW
  WHEN (OLD.time_zone IS DISTINCT FROM NEW.time_zone) EXECUTE FUNCTION ts.note_time_zone();

CREATE FUNCTION ts.note_stale_days() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  entry public.user_time_zones := coalesce(NEW, OLD);
BEGIN
  INSERT INTO ts.stale (tenant_id, user_id, type, hour, days_only)
    SELECT h.tenant_id, h.user_id, h.type, h.bucket, true FROM ts.readings_hourly h
    WHERE h.tenant_id = entry.tenant_id AND h.user_id = entry.user_id
      AND h.bucket >= entry.from_time - interval '1 hour'
      AND h.bucket < coalesce((SELECT min(z.from_time) FROM public.user_time_zones z
        WHERE z.user_id = entry.user_id AND z.from_time > entry.from_time), 'infinity');
  RETURN NULL;
END $$;
CREATE TRIGGER days_stale AFTER INSERT OR UPDATE OR DELETE ON user_time_zones FOR EACH ROW
  EXECUTE FUNCTION ts.note_stale_days();

-- Recomputes up to so many hours, with all the notes there are of them; gives how many. Readings before `raw_from` may be gone: what is there of that time stays.
CREATE FUNCTION ts.roll_up(most int, raw_from timestamptz) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  notes ts.stale[];
  hours ts.stale[];
  days ts.stale_day[];
BEGIN
  -- One at a time: who comes second would make the same rows.
  IF NOT pg_try_advisory_xact_lock(hashtextextended('kinara roll-up', 0)) THEN
    RETURN 0;
  END IF;
  -- A writer that has not committed yet leaves its note for the next time; a note that is seen here comes with its rows.
  WITH chosen AS (SELECT DISTINCT s.* FROM ts.stale s LIMIT most),
  taken AS (
    DELETE FROM ts.stale s USING chosen c WHERE s.tenant_id = c.tenant_id AND s.user_id = c.user_id
      AND s.type = c.type AND s.hour = c.hour AND s.days_only = c.days_only
    RETURNING s.*)
  SELECT array_agg(DISTINCT taken) INTO notes FROM taken;
  IF notes IS NULL THEN
    RETURN 0;
  END IF;
  SELECT array_agg(n) INTO hours FROM unnest(notes) n WHERE NOT n.days_only AND n.hour >= raw_from;
  -- Dates by the zone that holds; where that changed, the days beside them, which were the others.
  SELECT array_agg(DISTINCT (s.tenant_id, s.user_id, s.type,
      (q AT TIME ZONE ts.zone_at(s.user_id, q))::date + shift)::ts.stale_day) INTO days
    FROM unnest(notes) s
    CROSS JOIN generate_series(s.hour, s.hour + interval '45 minutes', interval '15 minutes') q
    CROSS JOIN generate_series(CASE WHEN s.days_only THEN -1 ELSE 0 END, CASE WHEN s.days_only THEN 1 ELSE 0 END) shift;

  DELETE FROM ts.readings_minute m USING unnest(hours) h
    WHERE m.tenant_id = h.tenant_id AND m.user_id = h.user_id AND m.type = h.type
      AND m.bucket >= h.hour AND m.bucket < h.hour + interval '1 hour';
  INSERT INTO ts.readings_minute (tenant_id, user_id, type, bucket, count, mean, m2, min, max)
    SELECT r.tenant_id, r.user_id, r.type, date_bin('1 minute', r.time, 'epoch'), count(*), avg(r.value),
      coalesce(var_pop(r.value) * count(*), 0), min(r.value), max(r.value)
    FROM unnest(hours) h
    JOIN ts.readings r ON r.tenant_id = h.tenant_id AND r.user_id = h.user_id AND r.type = h.type
      AND r.time >= h.hour AND r.time < h.hour + interval '1 hour'
    WHERE r.quality > 0
    GROUP BY 1, 2, 3, 4;

  DELETE FROM ts.readings_15min m USING unnest(hours) h
    WHERE m.tenant_id = h.tenant_id AND m.user_id = h.user_id AND m.type = h.type
      AND m.bucket >= h.hour AND m.bucket < h.hour + interval '1 hour';
  INSERT INTO ts.readings_15min (tenant_id, user_id, type, bucket, count, mean, m2, min, max)
    SELECT tenant_id, user_id, type, wide, sum(count), min(together), sum(m2 + count * (mean - together) ^ 2), min(min),
      max(max)
    FROM (
      SELECT f.*, b.wide, sum(f.count * f.mean) OVER w / sum(f.count) OVER w AS together
      FROM unnest(hours) h
      JOIN ts.readings_minute f ON f.tenant_id = h.tenant_id AND f.user_id = h.user_id AND f.type = h.type
        AND f.bucket >= h.hour AND f.bucket < h.hour + interval '1 hour'
      CROSS JOIN LATERAL (SELECT date_bin('15 minutes', f.bucket, 'epoch') AS wide) b
      WINDOW w AS (PARTITION BY f.tenant_id, f.user_id, f.type, b.wide)) fine
    GROUP BY 1, 2, 3, 4;

  DELETE FROM ts.readings_hourly m USING unnest(hours) h
    WHERE m.tenant_id = h.tenant_id AND m.user_id = h.user_id AND m.type = h.type AND m.bucket = h.hour;
  INSERT INTO ts.readings_hourly (tenant_id, user_id, type, bucket, count, mean, m2, min, max)
    SELECT tenant_id, user_id, type, wide, sum(count), min(together), sum(m2 + count * (mean - together) ^ 2), min(min),
      max(max)
    FROM (
      SELECT f.*, h.hour AS wide, sum(f.count * f.mean) OVER w / sum(f.count) OVER w AS together
      FROM unnest(hours) h
      JOIN ts.readings_15min f ON f.tenant_id = h.tenant_id AND f.user_id = h.user_id AND f.type = h.type
        AND f.bucket >= h.hour AND f.bucket < h.hour + interval '1 hour'
      WINDOW w AS (PARTITION BY f.tenant_id, f.user_id, f.type, h.hour)) fine
    GROUP BY 1, 2, 3, 4;

  -- Every zone of today is a multiple of a quarter of an hour away from UTC, so local days are made of whole quarters.
  DELETE FROM ts.readings_daily m USING unnest(days) d
    WHERE m.tenant_id = d.tenant_id AND m.user_id = d.user_id AND m.type = d.type AND m.day = d.day;
  INSERT INTO ts.readings_daily (tenant_id, user_id, type, day, bucket, count, mean, m2, min, max)
    SELECT tenant_id, user_id, type, day, day::timestamp AT TIME ZONE ts.zone_at(user_id, min(bucket)), sum(count),
      min(together), sum(m2 + count * (mean - together) ^ 2), min(min), max(max)
    FROM (
      SELECT f.*, d.day, sum(f.count * f.mean) OVER w / sum(f.count) OVER w AS together
      FROM unnest(days) d
      JOIN ts.readings_15min f ON f.tenant_id = d.tenant_id AND f.user_id = d.user_id AND f.type = d.type
        AND f.bucket >= d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours'
        AND f.bucket < d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours'
      WHERE (f.bucket AT TIME ZONE ts.zone_at(f.user_id, f.bucket))::date = d.day
      WINDOW w AS (PARTITION BY f.tenant_id, f.user_id, f.type, d.day)) fine
    GROUP BY 1, 2, 3, 4;
  RETURN cardinality(notes);
END $$;

-- Minutes live as long as readings, the rest five years. A slice a call; gives how many rows went.
CREATE FUNCTION ts.drop_expired_rollups(most int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  part record;
  gone int8;
  total int8 := 0;
BEGIN
  FOR part IN SELECT * FROM (VALUES ('readings_minute', 731), ('readings_15min', 1827), ('readings_hourly', 1827),
    ('readings_daily', 1827)) AS lives(base, days) LOOP
    EXECUTE format('DELETE FROM ts.%1$I WHERE ctid = ANY(ARRAY(SELECT ctid FROM ts.%1$I WHERE bucket < $1 LIMIT $2))',
      part.base) USING now() - make_interval(days => part.days), most;
    GET DIAGNOSTICS gone = ROW_COUNT;
    total := total + gone;
  END LOOP;
  RETURN total;
END $$;
CREATE INDEX readings_minute_age ON ts.readings_minute USING brin (bucket);
CREATE INDEX readings_15min_age ON ts.readings_15min USING brin (bucket);
CREATE INDEX readings_hourly_age ON ts.readings_hourly USING brin (bucket);

REVOKE ALL ON FUNCTION ts.is_zone(text), ts.zone_at(uuid, timestamptz), ts.note_time_zone(), ts.note_stale_days(),
  ts.roll_up(int, timestamptz), ts.drop_expired_rollups(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.roll_up(int, timestamptz), ts.drop_expired_rollups(int) TO kinara_ingest;
GRANT INSERT ON ts.stale TO kinara_ingest;

-- The published names.
DO $$
DECLARE
  base text;
BEGIN
  FOREACH base IN ARRAY ARRAY['readings_minute', 'readings_15min', 'readings_hourly', 'readings_daily'] LOOP
    EXECUTE format($view$
      CREATE VIEW public.%1$I WITH (security_barrier) AS
        SELECT r.bucket, r.tenant_id, r.user_id, c.name AS reading_type, c.unit, r.mean AS avg_value, r.min AS min_value,
          r.max AS max_value, sqrt(r.m2 / nullif(r.count - 1, 0)) AS stddev_value, r.count
        FROM ts.%1$I r JOIN public.channels c ON c.type = r.type
        WHERE r.tenant_id = (select public.current_tenant())$view$, base);
    EXECUTE format('GRANT SELECT ON public.%I TO kinara_app', base);
  END LOOP;
END $$;

ALTER TABLE user_time_zones ENABLE ROW LEVEL SECURITY;
ALTER TABLE user_time_zones FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON user_time_zones TO kinara_owner USING (true) WITH CHECK (true);
CREATE POLICY tenant ON user_time_zones TO kinara_app USING (tenant_id = (select current_tenant()));
GRANT SELECT ON user_time_zones TO kinara_app;

-- As before, and what moves makes the aggregates of both wearers stale.
CREATE OR REPLACE FUNCTION ts.move(which uuid, most_days int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m public.moves;
  -- A frame's name may put it on the other side of a boundary than its time does, by as much as clocks go wrong.
  slack CONSTANT interval := interval '1 day';
  first timestamptz;
  after timestamptz;
  until timestamptz;
  moved int8;
  total int8 := 0;
BEGIN
  SELECT * INTO m FROM public.moves WHERE id = which FOR UPDATE;
  IF NOT FOUND THEN
    RETURN 0;
  END IF;
  UPDATE ts.events SET user_id = m.to_user WHERE tenant_id = m.tenant_id AND user_id = m.from_user
    AND (m.device_id IS NULL OR device_id = m.device_id)
    AND (m.from_time IS NULL OR time >= m.from_time) AND (m.to_time IS NULL OR time < m.to_time);
  GET DIAGNOSTICS total = ROW_COUNT;
  UPDATE public.event_keys SET user_id = m.to_user WHERE tenant_id = m.tenant_id AND user_id = m.from_user
    AND (m.device_id IS NULL OR device_id = m.device_id)
    AND (m.from_time IS NULL OR time >= m.from_time) AND (m.to_time IS NULL OR time < m.to_time);
  after := coalesce(m.from_time - CASE WHEN m.from_epoch IS NULL THEN interval '0' ELSE slack END, '-infinity');
  until := coalesce(m.to_time + CASE WHEN m.to_epoch IS NULL THEN interval '0' ELSE slack END, 'infinity');
  FOR i IN 1..most_days LOOP
    SELECT min(t) INTO first FROM (
      SELECT (SELECT r.time FROM ts.readings r WHERE r.tenant_id = m.tenant_id AND r.user_id = m.from_user
                AND r.type = c.type AND r.time >= after AND r.time < until
                AND (m.device_id IS NULL OR r.device_id = m.device_id) ORDER BY r.time LIMIT 1) AS t
      FROM public.channels c
      UNION ALL
      SELECT (SELECT w.time FROM ts.waveforms w WHERE w.tenant_id = m.tenant_id AND w.user_id = m.from_user
                AND w.type = c.type AND w.time >= after AND w.time < until
                AND (m.device_id IS NULL OR w.device_id = m.device_id) ORDER BY w.time LIMIT 1)
      FROM public.channels c) AS firsts;
    EXIT WHEN first IS NULL;
    after := first + interval '1 day';
    WITH gone AS (
      UPDATE ts.readings SET user_id = m.to_user WHERE tenant_id = m.tenant_id AND user_id = m.from_user
        AND time >= first AND time < least(after, until) AND (m.device_id IS NULL OR device_id = m.device_id)
        AND (m.from_time IS NULL OR ts.is_after(epoch, seq, time, m.from_epoch, m.from_seq, m.from_time))
        AND (m.to_time IS NULL OR NOT ts.is_after(epoch, seq, time, m.to_epoch, m.to_seq, m.to_time))
      RETURNING type, time), noted AS (
      INSERT INTO ts.stale (tenant_id, user_id, type, hour)
        SELECT DISTINCT m.tenant_id, wearer, type, date_bin('1 hour', time, 'epoch')
        FROM gone CROSS JOIN unnest(ARRAY[m.from_user, m.to_user]) wearer)
    SELECT count(*) INTO moved FROM gone;
    total := total + moved;
    UPDATE ts.waveforms SET user_id = m.to_user WHERE tenant_id = m.tenant_id AND user_id = m.from_user
      AND time >= first AND time < least(after, until) AND (m.device_id IS NULL OR device_id = m.device_id)
      AND (m.from_time IS NULL OR ts.is_after(epoch, seq, time, m.from_epoch, m.from_seq, m.from_time))
      AND (m.to_time IS NULL OR NOT ts.is_after(epoch, seq, time, m.to_epoch, m.to_seq, m.to_time));
    GET DIAGNOSTICS moved = ROW_COUNT;
    total := total + moved;
  END LOOP;
  RETURN total;
END $$;
RESET ROLE;
