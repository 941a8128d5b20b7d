-- Native partitions by UTC day, made ahead and on demand.
SET ROLE kinara_owner;
INSERT INTO ts.storage VALUES ('plain');
CREATE TABLE ts.readings (
  time timestamptz NOT NULL,
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  device_id uuid NOT NULL,
  type int2 NOT NULL,
  idx int2 NOT NULL,
  epoch int8 NOT NULL,
  seq int8 NOT NULL,
  value float8 NOT NULL,
  quality real NOT NULL DEFAULT 1.0
) PARTITION BY RANGE (time);
CREATE INDEX readings_user ON ts.readings (tenant_id, user_id, type, time DESC);

CREATE TABLE ts.events (
  time timestamptz NOT NULL,
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  device_id uuid NOT NULL,
  event_type varchar(50) NOT NULL,
  severity varchar(20),
  confidence real,
  data jsonb NOT NULL DEFAULT '{}',
  acknowledged_at timestamptz,
  key bytea NOT NULL
) PARTITION BY RANGE (time);
CREATE INDEX events_user ON ts.events (tenant_id, user_id, time DESC);

-- A block of samples: `data` holds little-endian int32, components in turns; a value is the integer times scale.
CREATE TABLE ts.waveforms (
  time timestamptz NOT NULL,
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  device_id uuid NOT NULL,
  type int2 NOT NULL,
  idx int2 NOT NULL,
  epoch int8 NOT NULL,
  seq int8 NOT NULL,
  interval_ms float8, -- NULL: irregular, see ticks
  ticks int8[],
  scale float8 NOT NULL,
  components int2 NOT NULL,
  data bytea NOT NULL,
  quality real NOT NULL DEFAULT 1.0
) PARTITION BY RANGE (time);
CREATE INDEX waveforms_user ON ts.waveforms (tenant_id, user_id, type, time DESC);

-- Makes the daily partitions that [from_time, to_time] needs. A table is made apart and then attached, which does not
-- stop other sessions' writes. To be called in a transaction of its own.
CREATE FUNCTION ts.ensure_partitions(from_time timestamptz, to_time timestamptz) RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  day date := (from_time AT TIME ZONE 'UTC')::date;
  last date := (to_time AT TIME ZONE 'UTC')::date;
  base text;
  part text;
  made int := 0;
BEGIN
  IF last - day > 1500 THEN
    RAISE EXCEPTION 'refusing to make partitions for % to %: more than 1500 days', day, last;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('kinara partitions', 0));
  WHILE day <= last LOOP
    FOREACH base IN ARRAY ARRAY['readings', 'events', 'waveforms'] LOOP
      part := base || '_' || to_char(day, 'YYYYMMDD');
      IF to_regclass(format('ts.%I', part)) IS NULL THEN
        EXECUTE format('CREATE TABLE ts.%I (LIKE ts.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part, base);
        EXECUTE format('ALTER TABLE ts.%I ATTACH PARTITION ts.%I FOR VALUES FROM (%L) TO (%L)', base, part,
          day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
        made := made + 1;
      END IF;
    END LOOP;
    day := day + 1;
  END LOOP;
  RETURN made;
END $$;

-- Drops the partitions that end before the retention line. Waveforms have a shorter life than the rest.
CREATE FUNCTION ts.drop_expired() RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  part record;
  dropped int := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('kinara partitions', 0));
  FOR part IN
    SELECT c.relname, p.relname AS base, to_date(right(c.relname, 8), 'YYYYMMDD') AS day
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
    WHERE p.relnamespace = 'ts'::regnamespace AND p.relkind = 'p'
  LOOP
    IF part.day < (now() AT TIME ZONE 'UTC')::date - (CASE part.base
      WHEN 'readings' THEN 731 WHEN 'events' THEN 1827 ELSE 31 END) THEN
      EXECUTE format('DROP TABLE ts.%I', part.relname);
      dropped := dropped + 1;
    END IF;
  END LOOP;
  RETURN dropped;
END $$;

-- Nothing to compress here; the programs call the same functions on both storages.
CREATE FUNCTION ts.compress_closed() RETURNS int LANGUAGE sql AS $$ SELECT 0 $$;
REVOKE ALL ON FUNCTION ts.ensure_partitions(timestamptz, timestamptz), ts.drop_expired(), ts.compress_closed() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.ensure_partitions(timestamptz, timestamptz), ts.drop_expired(), ts.compress_closed()
  TO kinara_ingest;
SELECT ts.ensure_partitions(now() - interval '2 days', now() + interval '7 days');
RESET ROLE;
