-- How long a chunk of readings is, and which firmware made them.
SET ROLE kinara_owner;

-- Chooses how long a chunk of readings is from here on: the longest of these at which what is not compressed (a chunk, and a
-- day for late data) fits in a quarter of the memory that the database has; by default of what it says it has for its cache.
-- How much that is comes from the last seven days. Gives the length where it is another one now; NULL: as it was, or
-- there are no chunks.
CREATE FUNCTION ts.fit_chunks(memory int8 DEFAULT NULL) RETURNS interval
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  -- A row with its index, as `bench query` measures it.
  row_bytes CONSTANT int8 := 250;
  midnight CONSTANT timestamptz := date_bin('1 day', now(), 'epoch');
  quarter CONSTANT float8 := coalesce(memory, pg_size_bytes(current_setting('effective_cache_size'))) / 4.0;
  a_day float8;
  fits interval;
BEGIN
  IF NOT EXISTS (SELECT FROM ts.storage WHERE kind = 'timescale') THEN
    RETURN NULL;
  END IF;
  SELECT sum(readings) * row_bytes / 7.0 INTO a_day FROM ts.written_hours
    WHERE hour >= midnight - interval '7 days' AND hour < midnight;
  IF a_day IS NULL OR a_day <= 0 THEN
    RETURN NULL;
  END IF;
  SELECT coalesce(max(length), '1 hour') INTO fits
    FROM unnest(ARRAY['7 days', '1 day', '12 hours', '6 hours', '3 hours', '1 hour']::interval[]) length
    WHERE a_day * (extract(epoch FROM length) / 86400 + 1) <= quarter;
  IF fits = (SELECT time_interval FROM timescaledb_information.dimensions
             WHERE hypertable_schema = 'ts' AND hypertable_name = 'readings') THEN
    RETURN NULL;
  END IF;
  PERFORM public.set_chunk_time_interval('ts.readings', fits);
  RETURN fits;
END $$;
REVOKE ALL ON FUNCTION ts.fit_chunks(int8) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.fit_chunks(int8) TO kinara_ingest;

-- Which firmware a device ran in an epoch: it changes with a restart only, and a restart begins another epoch. A reading has
-- its device and epoch.
CREATE TABLE device_firmware (
  device_id uuid NOT NULL REFERENCES devices ON DELETE CASCADE,
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  epoch int8 NOT NULL,
  firmware varchar(50) NOT NULL,
  told_at timestamptz NOT NULL,
  PRIMARY KEY (device_id, epoch)
);
ALTER TABLE device_firmware ENABLE ROW LEVEL SECURITY;
ALTER TABLE device_firmware FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON device_firmware TO kinara_owner USING (true) WITH CHECK (true);
CREATE POLICY ingest ON device_firmware TO kinara_ingest USING (true) WITH CHECK (true);
CREATE POLICY tenant ON device_firmware FOR SELECT TO kinara_app USING (tenant_id = (select current_tenant()));
GRANT SELECT ON device_firmware TO kinara_app;
GRANT SELECT, INSERT ON device_firmware TO kinara_ingest;
RESET ROLE;
