-- Housekeeping that one clinic, one failure or one long reader does not stop, and an end for what grows.
-- What would take as long as a table is large is done by the steps that run beside (crates/store/src/online.rs). Of the tables that
-- writers lock one after another (ledger, gaps, quarantine), each of these migrations changes one alone: nobody waits in a circle.
SET ROLE kinara_owner;

-- How far somebody has come who goes through a table by its key, a slice at a time; no row: they are at its beginning.
CREATE TABLE ts.walks (
  walk text PRIMARY KEY,
  id uuid NOT NULL,
  epoch int8 NOT NULL DEFAULT 0
);
-- The next epochs of the ledger; none: this was the end, and the next time is the beginning again.
CREATE FUNCTION ts.next_epochs(this text, most int) RETURNS TABLE (hardware uuid, epoch int8)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  come ts.walks := (SELECT w FROM ts.walks w WHERE w.walk = this);
  since uuid := coalesce(come.id, '00000000-0000-0000-0000-000000000000');
BEGIN
  RETURN QUERY
    WITH slice AS MATERIALIZED (
      SELECT l.hardware, l.epoch FROM public.ledger l WHERE (l.hardware, l.epoch) > (since, coalesce(come.epoch, 0))
      ORDER BY l.hardware, l.epoch LIMIT most),
    passed AS (
      INSERT INTO ts.walks AS w (walk, id, epoch)
        SELECT this, s.hardware, s.epoch FROM slice s ORDER BY s.hardware DESC, s.epoch DESC LIMIT 1
        ON CONFLICT (walk) DO UPDATE SET id = excluded.id, epoch = excluded.epoch)
    SELECT s.hardware, s.epoch FROM slice s;
  IF NOT FOUND THEN
    DELETE FROM ts.walks w WHERE w.walk = this;
  END IF;
END $$;

-- How much is in quarantine for each clinic: noted append-only by whoever changes it, so that nobody waits, and added up
-- by the sweep. The nil id: of no clinic. What was there before this counts from when it is `counted`.
ALTER TABLE quarantine ADD COLUMN counted boolean NOT NULL DEFAULT false;
ALTER TABLE quarantine ALTER COLUMN counted SET DEFAULT true;
CREATE TABLE ts.quarantine_changes (
  tenant_id uuid NOT NULL,
  items int8 NOT NULL,
  bytes int8 NOT NULL
);
CREATE TABLE ts.quarantine_sizes (
  tenant_id uuid PRIMARY KEY,
  items int8 NOT NULL,
  bytes int8 NOT NULL
);
CREATE FUNCTION ts.note_quarantine() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO ts.quarantine_changes (tenant_id, items, bytes)
    SELECT coalesce(c.tenant_id, '00000000-0000-0000-0000-000000000000'),
      CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END,
      CASE TG_OP WHEN 'INSERT' THEN sum(octet_length(c.payload)) ELSE -sum(octet_length(c.payload)) END
    FROM changed c WHERE c.counted GROUP BY 1;
  RETURN NULL;
END $$;
CREATE TRIGGER counted_in AFTER INSERT ON quarantine REFERENCING NEW TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION ts.note_quarantine();
CREATE TRIGGER counted_out AFTER DELETE ON quarantine REFERENCING OLD TABLE AS changed
  FOR EACH STATEMENT EXECUTE FUNCTION ts.note_quarantine();
-- Counts a slice of what was there before; gives how many it looked at.
CREATE FUNCTION ts.count_quarantine() RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  nil CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
  at uuid := coalesce((SELECT w.id FROM ts.walks w WHERE w.walk = 'quarantine'), nil);
  looked int8;
BEGIN
  WITH slice AS MATERIALIZED (SELECT q.id FROM public.quarantine q WHERE q.id > at ORDER BY q.id LIMIT 5000),
  counted AS (
    UPDATE public.quarantine q SET counted = true FROM slice s WHERE q.id = s.id AND NOT q.counted
    RETURNING q.tenant_id, octet_length(q.payload) AS bytes),
  noted AS (
    INSERT INTO ts.quarantine_changes SELECT coalesce(c.tenant_id, nil), count(*), sum(c.bytes) FROM counted c GROUP BY 1),
  passed AS (
    INSERT INTO ts.walks (walk, id) SELECT 'quarantine', s.id FROM slice s ORDER BY s.id DESC LIMIT 1
      ON CONFLICT (walk) DO UPDATE SET id = excluded.id)
  SELECT count(*) INTO looked FROM slice;
  IF looked = 0 THEN
    DELETE FROM ts.walks w WHERE w.walk = 'quarantine';
  END IF;
  RETURN looked;
END $$;

-- Adds up, and gives the clinics that have more in quarantine than they may, with how much more.
CREATE FUNCTION ts.quarantine_excess(most_items int8, most_bytes int8)
  RETURNS TABLE (clinic uuid, items int8, bytes int8)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF pg_try_advisory_xact_lock(hashtextextended('kinara quarantine', 0)) THEN
    WITH gone AS (DELETE FROM ts.quarantine_changes RETURNING quarantine_changes.*)
    INSERT INTO ts.quarantine_sizes AS s (tenant_id, items, bytes)
      SELECT g.tenant_id, sum(g.items), sum(g.bytes) FROM gone g GROUP BY 1
      ON CONFLICT (tenant_id) DO UPDATE SET items = s.items + excluded.items, bytes = s.bytes + excluded.bytes;
  END IF;
  RETURN QUERY SELECT s.tenant_id, greatest(s.items - most_items, 0), greatest(s.bytes - most_bytes, 0)
    FROM ts.quarantine_sizes s WHERE s.items > most_items OR s.bytes > most_bytes ORDER BY 1;
END $$;

-- Partitions that end before the retention line, the oldest first. Waveforms have a shorter life than the rest.
CREATE FUNCTION ts.expired_partitions() RETURNS TABLE (base text, part text, pending boolean)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT b.base, c.relname::text, i.inhdetachpending
    FROM pg_class c
    CROSS JOIN LATERAL (SELECT split_part(c.relname, '_', 1)) b(base)
    LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE c.relnamespace = 'ts'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^(readings|events|waveforms)_[0-9]{8}$'
      AND to_date(right(c.relname, 8), 'YYYYMMDD') < (now() AT TIME ZONE 'UTC')::date - CASE b.base
        WHEN 'readings' THEN 731 WHEN 'events' THEN 1827 ELSE 31 END
    ORDER BY right(c.relname, 8), 1 $$;

-- Drops one of them that nobody uses, where this is all that the program may do: a reader that goes on is not waited for longer
-- than a writer would notice. One a call, whoever waits behind it, and by lot: one that is read for hours keeps no other from going.
-- Whoever may own tables detaches them concurrently first (crates/store/src/partitions.rs).
CREATE OR REPLACE FUNCTION ts.drop_expired() RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
  expired text;
  dropped int;
BEGIN
  IF EXISTS (SELECT FROM ts.storage WHERE kind = 'timescale') THEN
    SELECT count(*) INTO dropped FROM (
      SELECT public.drop_chunks('ts.readings', older_than => now() - interval '731 days')
      UNION ALL SELECT public.drop_chunks('ts.events', older_than => now() - interval '1827 days')
      UNION ALL SELECT public.drop_chunks('ts.waveforms', older_than => now() - interval '31 days')) chunks;
    RETURN dropped;
  END IF;
  IF NOT pg_try_advisory_xact_lock(hashtextextended('kinara partitions', 0)) THEN
    RETURN 0;
  END IF;
  SELECT e.part INTO expired FROM ts.expired_partitions() e WHERE NOT coalesce(e.pending, false) ORDER BY random() LIMIT 1;
  IF expired IS NULL THEN
    RETURN 0;
  END IF;
  EXECUTE format('DROP TABLE ts.%I', expired);
  RETURN 1;
EXCEPTION WHEN lock_not_available THEN
  RETURN 0; -- The next time.
END $$;

-- Compresses one chunk that ended a day ago or earlier (the delay for late data): one that never was, or one that got late
-- rows since (status & 8). `passed`: so many of the oldest are left out, since they failed. Gives how many were compressed.
DROP FUNCTION ts.compress_closed();
CREATE FUNCTION ts.compress_closed(passed int DEFAULT 0) RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  chunk regclass;
BEGIN
  IF NOT EXISTS (SELECT FROM ts.storage WHERE kind = 'timescale') THEN
    RETURN 0;
  END IF;
  EXECUTE $sql$
    SELECT format('%I.%I', i.chunk_schema, i.chunk_name)::regclass
    FROM timescaledb_information.chunks i
    JOIN _timescaledb_catalog.chunk c ON c.schema_name = i.chunk_schema AND c.table_name = i.chunk_name
    WHERE i.hypertable_schema = 'ts' AND i.hypertable_name IN ('readings', 'waveforms')
      AND (NOT i.is_compressed OR c.status & 8 <> 0) AND i.range_end < now() - interval '1 day'
    ORDER BY i.range_end, i.chunk_name OFFSET $1 LIMIT 1$sql$ INTO chunk USING passed;
  IF chunk IS NULL THEN
    RETURN 0;
  END IF;
  PERFORM public.compress_chunk(chunk, if_not_compressed => true);
  RETURN 1;
END $$;

-- As before, in the order of an index.
CREATE OR REPLACE FUNCTION ts.drop_expired_rollups(most int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  part record;
  gone int8;
  total int8 := 0;
BEGIN
  FOR part IN SELECT * FROM (VALUES ('readings_minute', 731), ('readings_15min', 1827), ('readings_hourly', 1827),
    ('readings_daily', 1827)) AS lives(base, days) LOOP
    EXECUTE format('DELETE FROM ts.%1$I WHERE ctid = ANY(ARRAY(
      SELECT ctid FROM ts.%1$I WHERE bucket < $1 ORDER BY bucket LIMIT $2))', part.base)
      USING now() - make_interval(days => part.days), most;
    GET DIAGNOSTICS gone = ROW_COUNT;
    total := total + gone;
  END LOOP;
  RETURN total;
END $$;
CREATE OR REPLACE FUNCTION ts.drop_expired_hrv(most int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  gone int8;
BEGIN
  DELETE FROM ts.hrv WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM ts.hrv WHERE bucket < now() - interval '1827 days' ORDER BY bucket LIMIT most));
  GET DIAGNOSTICS gone = ROW_COUNT;
  RETURN gone;
END $$;

-- What grows and has an end. Each call deletes a slice and gives how many rows went; NULL: there is nothing more.

-- The audit log, after so long as an operator says; never what is younger than a year, whoever asks.
CREATE FUNCTION forget_audit(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
      DELETE FROM audit_log WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM audit_log WHERE at < least(before, now() - interval '365 days') ORDER BY at LIMIT most))
      RETURNING 1)
    SELECT nullif(count(*), 0) FROM gone $$;
-- Alerts that are over: withdrawn, or acknowledged, and as old.
CREATE FUNCTION forget_alerts(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
      DELETE FROM alerts WHERE ctid = ANY(ARRAY(SELECT ctid FROM alerts WHERE raised_at < before
        AND (withdrawn_at IS NOT NULL OR acknowledged_at IS NOT NULL OR kind IN ('event', 'reading'))
        ORDER BY raised_at LIMIT most))
      RETURNING 1)
    SELECT nullif(count(*), 0) FROM gone $$;
-- Gaps: those that were withdrawn, for which nothing asks, and those in force that are older than all that is derived.
CREATE FUNCTION forget_gaps(withdrawn_before timestamptz, before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
      DELETE FROM gaps WHERE ctid = ANY(ARRAY(
        (SELECT g.ctid FROM gaps g WHERE g.withdrawn_at < withdrawn_before ORDER BY g.withdrawn_at LIMIT most)
        UNION ALL
        (SELECT g.ctid FROM gaps g WHERE g.withdrawn_at IS NULL AND g.updated_at < before
         ORDER BY g.updated_at LIMIT most)))
      RETURNING 1)
    SELECT nullif(count(*), 0) FROM gone $$;
-- How frames' times came about, of epochs whose readings are gone: so many epochs are looked at.
CREATE FUNCTION forget_frame_times(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH looked AS MATERIALIZED (SELECT e.hardware, e.epoch FROM ts.next_epochs('frame times', most) e),
    gone AS (
      DELETE FROM frame_times WHERE ctid = ANY(ARRAY(
        SELECT f.ctid FROM looked e
          CROSS JOIN LATERAL (
            SELECT FROM ledger l WHERE l.hardware = e.hardware AND l.epoch = e.epoch AND l.updated_at < before OFFSET 0) old
          CROSS JOIN LATERAL (
            SELECT t.ctid FROM frame_times t WHERE t.hardware = e.hardware AND t.epoch = e.epoch OFFSET 0) f))
      RETURNING 1)
    SELECT CASE WHEN EXISTS (SELECT FROM looked) THEN (SELECT count(*) FROM gone) END $$;
-- Requests that were never written: their jobs are dead, and nobody revived them for so long.
CREATE FUNCTION forget_dead_requests(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
      DELETE FROM ingest_requests WHERE id = ANY(ARRAY(
        SELECT id FROM ingest_requests WHERE finished_at IS NULL AND received_at < before ORDER BY received_at LIMIT most))
      RETURNING 1)
    SELECT nullif(count(*), 0) FROM gone $$;

-- Frames whose time is not known stay out of everything that is derived: their readings have quality 0. From here on they are
-- written so; what was written before is noted here (ts.note_epochs, 0024_bounds.sql) and put right a slice at a time.
CREATE TABLE ts.unmarked (
  hardware uuid NOT NULL,
  epoch int8 NOT NULL,
  PRIMARY KEY (hardware, epoch)
);
CREATE FUNCTION ts.mark_uncertain() RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  one ts.unmarked;
  from_time timestamptz;
  to_time timestamptz;
BEGIN
  SELECT * INTO one FROM ts.unmarked LIMIT 1 FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN 0;
  END IF;
  -- The epoch's times lie around its fits, by as much as they are uncertain: any numbers, of which those of this century count.
  SELECT to_timestamp(least(greatest(min(f.ref_utc_us::numeric - f.uncertainty_us) / 1e6, 0), 4e9)) - interval '31 days',
    to_timestamp(least(greatest(max(f.ref_utc_us::numeric + f.uncertainty_us) / 1e6, 0), 4e9)) + interval '31 days'
    INTO from_time, to_time
    FROM public.frame_times f WHERE f.hardware = one.hardware AND f.epoch = one.epoch AND f.time_uncertain;
  PERFORM set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true);
  EXECUTE format($sql$
    WITH marked AS (
      UPDATE ts.readings r SET quality = 0
      FROM (SELECT DISTINCT a.tenant_id, a.user_id, a.device_id FROM public.device_assignments a WHERE a.hardware_id = $1) a
      WHERE r.tenant_id = a.tenant_id AND r.user_id = a.user_id AND r.device_id = a.device_id AND r.epoch = $2
        AND r.time >= %L::timestamptz AND r.time < %L::timestamptz AND r.quality > 0
        AND EXISTS (SELECT FROM public.frame_times f WHERE f.hardware = $1 AND f.epoch = $2 AND f.time_uncertain
          AND f.seqs @> r.seq)
      RETURNING r.tenant_id, r.user_id, r.type, r.time)
    INSERT INTO ts.stale (tenant_id, user_id, type, hour)
      SELECT DISTINCT tenant_id, user_id, type, date_bin('1 hour', time, 'epoch') FROM marked$sql$, from_time, to_time)
    USING one.hardware, one.epoch;
  DELETE FROM ts.unmarked u WHERE u.hardware = one.hardware AND u.epoch = one.epoch;
  RETURN 1;
END $$;

REVOKE ALL ON FUNCTION ts.next_epochs(text, int), ts.count_quarantine(), ts.note_quarantine(), ts.quarantine_excess(int8, int8), ts.expired_partitions(), ts.drop_expired(),
  ts.compress_closed(int), forget_audit(timestamptz, int), forget_alerts(timestamptz, int),
  forget_gaps(timestamptz, timestamptz, int), forget_frame_times(timestamptz, int), forget_dead_requests(timestamptz, int),
  ts.mark_uncertain() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.quarantine_excess(int8, int8), ts.drop_expired(), ts.compress_closed(int),
  forget_audit(timestamptz, int), forget_alerts(timestamptz, int), forget_gaps(timestamptz, timestamptz, int),
  forget_frame_times(timestamptz, int), forget_dead_requests(timestamptz, int) TO kinara_ingest;
RESET ROLE;
