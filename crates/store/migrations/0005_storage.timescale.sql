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
-- Age is measured from a chunk's end: one day of delay for late data.
SELECT add_compression_policy('ts.readings', interval '1 day');
SELECT add_compression_policy('ts.waveforms', interval '1 day');
SELECT add_retention_policy('ts.readings', interval '731 days');
SELECT add_retention_policy('ts.events', interval '1827 days');
SELECT add_retention_policy('ts.waveforms', interval '31 days');

-- Chunks and retention are the extension's business here; the programs call the same two functions everywhere.
CREATE FUNCTION ts.ensure_partitions(from_time timestamptz, to_time timestamptz) RETURNS int
  LANGUAGE sql AS $$ SELECT 0 $$;
CREATE FUNCTION ts.drop_expired() RETURNS int LANGUAGE sql AS $$ SELECT 0 $$;
REVOKE ALL ON FUNCTION ts.ensure_partitions(timestamptz, timestamptz), ts.drop_expired() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.ensure_partitions(timestamptz, timestamptz), ts.drop_expired() TO kinara_ingest;
RESET ROLE;
