-- Whose the frames of an epoch are (decision 38): a clinic that had a device before may have used numbers that the device's frames
-- have under the next clinic. The ledger's row says which clinic's frame came first, and beside it lies which numbers came from
-- others.
SET ROLE kinara_owner;

-- The clinic of the first frame that was stored; 0: none was yet; NULL: a release wrote here that did not know.
ALTER TABLE ledger ADD COLUMN tenant uuid;
ALTER TABLE ledger ALTER COLUMN tenant SET DEFAULT '00000000-0000-0000-0000-000000000000';

-- What other clinics have in an epoch. Written under the lock of the ledger's row, but for `alias`, and as its rows never deleted.
CREATE TABLE ledger_claims (
  hardware uuid NOT NULL,
  epoch int8 NOT NULL,
  tenant_id uuid NOT NULL,
  seqs int8multirange NOT NULL DEFAULT '{}', -- of the row's frames, those that are this clinic's
  stretches bytea NOT NULL DEFAULT '',       -- as the ledger's, of these
  alias int8,                                -- the epoch under which the ledger has this clinic's frames whose numbers another clinic has
  PRIMARY KEY (hardware, epoch, tenant_id)
) WITH (fillfactor = 70);
ALTER TABLE ledger_claims ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger_claims FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON ledger_claims TO kinara_owner USING (true) WITH CHECK (true);
CREATE POLICY ingest ON ledger_claims TO kinara_ingest USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON ledger_claims TO kinara_ingest;

-- How many of each frame's samples are stored, with this time, number and value, under whoever had the device then, in whichever
-- clinic: what moves is in one place or the other. The writers may not read a reading; they are told whether one is there that they
-- have at hand. With the day in the text, so that the planner knows one partition.
CREATE FUNCTION ts.found(which uuid, of_epoch int8, probes int4[], seqs int8[], types int2[], places int2[], times timestamptz[],
    vals float8[], waves bytea[]) RETURNS TABLE (probe int4, there int8)
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  -- A frame's name may put it on the other side of a boundary than its time does, by as much as clocks go wrong.
  slack CONSTANT interval := interval '1 day';
  nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
  clinics uuid[];
  wearers uuid[];
  part record;
BEGIN
  WITH span AS (SELECT min(t) - slack AS low, max(t) + slack AS high FROM unnest(times) t),
  held AS (
    -- The last of them: whoever makes a thousand assignments within a day makes nobody else's look longer.
    SELECT DISTINCT n.tenant_id, n.user_id FROM (
      SELECT a.tenant_id, a.user_id FROM public.device_assignments a CROSS JOIN span s
      WHERE a.hardware_id = which AND a.valid_from < s.high AND (a.valid_to IS NULL OR a.valid_to > s.low)
      ORDER BY a.valid_from DESC LIMIT 50) n),
  whose AS (
    SELECT h.tenant_id, p.id FROM held h CROSS JOIN LATERAL ts.same_person(h.tenant_id, h.user_id) p(id)
    UNION SELECT a.tenant_id, nobody FROM public.device_assignments a WHERE a.hardware_id = which
    UNION SELECT m.tenant_id, m.from_user FROM public.moves m WHERE m.settled_at IS NULL AND m.device_id IN (
      SELECT a.device_id FROM public.device_assignments a WHERE a.hardware_id = which))
  SELECT array_agg(w.tenant_id), array_agg(w.id) INTO clinics, wearers FROM whose w;
  FOR part IN
    SELECT DISTINCT CASE WHEN p.wave IS NULL THEN 'readings' ELSE 'waveforms' END AS base, date_bin('1 day', p.at, 'epoch') AS day
    FROM unnest(times, waves) p(at, wave)
  LOOP
    RETURN QUERY EXECUTE format($sql$
      SELECT p.probe, count(*)
      FROM unnest($1::int4[], $2::int8[], $3::int2[], $4::int2[], $5::timestamptz[], $6::float8[], $7::bytea[])
        p(probe, seq, type, place, at, value, wave)
      WHERE p.at >= %2$L::timestamptz AND p.at < %3$L::timestamptz AND (p.wave IS NULL) = %4$L AND EXISTS (
        SELECT FROM unnest($8::uuid[], $9::uuid[]) w(clinic, wearer)
        CROSS JOIN LATERAL (
          SELECT FROM ts.%1$I r WHERE r.tenant_id = w.clinic AND r.user_id = w.wearer AND r.type = p.type AND r.time = p.at
            AND r.time >= %2$L::timestamptz AND r.time < %3$L::timestamptz AND r.epoch = $10 AND r.seq = p.seq
            AND r.idx = p.place AND %5$s OFFSET 0) r)
      GROUP BY 1$sql$, part.base, part.day, part.day + interval '1 day', part.base = 'readings',
      CASE part.base WHEN 'readings' THEN 'r.value = p.value' ELSE 'r.data = p.wave' END)
      USING probes, seqs, types, places, times, vals, waves, clinics, wearers, of_epoch;
  END LOOP;
END $$;
REVOKE ALL ON FUNCTION ts.found(uuid, int8, int4[], int8[], int2[], int2[], timestamptz[], float8[], bytea[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.found(uuid, int8, int4[], int8[], int2[], int2[], timestamptz[], float8[], bytea[]) TO kinara_ingest;

-- As before (0022), and rows beside an epoch make a device no source over HTTP.
CREATE OR REPLACE FUNCTION ts.pass_on_to_inference() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO ts.inference_notes (tenant_id, user_id, hour)
    SELECT DISTINCT g.tenant_id, g.user_id, g.hour FROM gone g WHERE NOT g.days_only AND g.type IN (1, 2, 3, 5, 7)
      AND EXISTS (SELECT FROM public.device_assignments a
        JOIN public.ledger l ON l.hardware = a.hardware_id AND l.named
        WHERE a.tenant_id = g.tenant_id AND a.user_id = g.user_id AND NOT EXISTS (
          SELECT FROM public.ledger_claims c WHERE c.hardware = l.hardware AND c.alias = l.epoch));
  RETURN NULL;
END $$;

-- TimescaleDB, as before, and: a chunk goes by itself, by lot as on plain storage. Somebody who reads one keeps no other from going.
CREATE OR REPLACE FUNCTION ts.drop_expired() RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
  expired text;
  chunk record;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended('kinara partitions', 0)) THEN
    RETURN 0;
  END IF;
  IF EXISTS (SELECT FROM ts.storage WHERE kind = 'timescale') THEN
    SELECT i.hypertable_name AS base, i.range_start, i.range_end INTO chunk
      FROM (VALUES ('readings', 731), ('events', 1827), ('waveforms', 31)) AS lives(base, days)
      JOIN timescaledb_information.chunks i ON i.hypertable_schema = 'ts' AND i.hypertable_name = lives.base
        AND i.range_end <= now() - make_interval(days => lives.days)
      ORDER BY random() LIMIT 1;
    IF NOT FOUND THEN
      RETURN 0;
    END IF;
    PERFORM public.drop_chunks(format('ts.%I', chunk.base)::regclass, older_than => chunk.range_end, newer_than => chunk.range_start);
    RETURN 1;
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

-- As before, and it holds nobody up: it waits two seconds for whoever writes into the chunk (a vacuum of the server's own gives way after
-- one), and for no reader; where somebody reads on, the rows that are compressed now are deleted, and not cut off. (An older extension
-- does not know the word, and cuts.)
CREATE OR REPLACE FUNCTION ts.compress_closed(passed int DEFAULT 0) RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
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
  PERFORM set_config(s.name, 'truncate_or_delete', true) FROM pg_settings s
    WHERE s.name = 'timescaledb.compress_truncate_behaviour';
  PERFORM public.compress_chunk(chunk, if_not_compressed => true);
  RETURN 1;
END $$;

-- A plan that is made for any wearer and any day knows none, and all of a chunk is decompressed for it, everybody's.
ALTER FUNCTION ts.move(uuid, int) SET plan_cache_mode = force_custom_plan;
ALTER FUNCTION ts.erase(uuid, uuid, int) SET plan_cache_mode = force_custom_plan;
RESET ROLE;
