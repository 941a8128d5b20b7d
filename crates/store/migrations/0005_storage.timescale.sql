-- TimescaleDB (community licence): hypertables, compressed once closed and past the late-data delay. The extension
-- itself is made by the runner, which also found out that it is there and licensed for this.
SET ROLE kinara_owner;
INSERT INTO ts.storage VALUES ('timescale');
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
);
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
);
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
);
CREATE INDEX waveforms_user ON ts.waveforms (tenant_id, user_id, type, time DESC);
SELECT create_hypertable('ts.readings', 'time', chunk_time_interval => interval '1 day', create_default_indexes => false);
SELECT create_hypertable('ts.events', 'time', chunk_time_interval => interval '30 days', create_default_indexes => false);
SELECT create_hypertable('ts.waveforms', 'time', chunk_time_interval => interval '1 day', create_default_indexes => false);
ALTER TABLE ts.readings SET (timescaledb.compress,
  timescaledb.compress_segmentby = 'tenant_id, user_id, type', timescaledb.compress_orderby = 'time DESC');
ALTER TABLE ts.waveforms SET (timescaledb.compress,
  timescaledb.compress_segmentby = 'tenant_id, user_id, type', timescaledb.compress_orderby = 'time DESC');

-- No background policies: they demand an owner that can log in, and kinara_owner must not. The bridge's job calls these
-- functions instead, the same ones on both storages. Chunks are made by the extension.
CREATE FUNCTION ts.ensure_partitions(from_time timestamptz, to_time timestamptz) RETURNS int
  LANGUAGE sql AS $$ SELECT 0 $$;

CREATE FUNCTION ts.drop_expired() RETURNS int
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT count(*)::int FROM (
    SELECT public.drop_chunks('ts.readings', older_than => now() - interval '731 days')
    UNION ALL SELECT public.drop_chunks('ts.events', older_than => now() - interval '1827 days')
    UNION ALL SELECT public.drop_chunks('ts.waveforms', older_than => now() - interval '31 days')
  ) AS dropped
$$;

-- Compresses the chunks that ended a day ago or earlier: the delay for late data. One chunk a call, so that no
-- transaction holds its lock for long; gives how many were compressed.
CREATE FUNCTION ts.compress_closed() RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  chunk regclass;
BEGIN
  SELECT format('%I.%I', chunk_schema, chunk_name)::regclass INTO chunk
  FROM timescaledb_information.chunks
  WHERE hypertable_schema = 'ts' AND hypertable_name IN ('readings', 'waveforms')
    AND NOT is_compressed AND range_end < now() - interval '1 day'
  ORDER BY range_end LIMIT 1;
  IF chunk IS NULL THEN
    RETURN 0;
  END IF;
  PERFORM public.compress_chunk(chunk, if_not_compressed => true);
  RETURN 1;
END $$;
REVOKE ALL ON FUNCTION ts.ensure_partitions(timestamptz, timestamptz), ts.drop_expired(), ts.compress_closed() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.ensure_partitions(timestamptz, timestamptz), ts.drop_expired(), ts.compress_closed()
  TO kinara_ingest;
RESET ROLE;
