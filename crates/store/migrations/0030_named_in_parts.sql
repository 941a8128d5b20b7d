-- Which frames of an epoch are in whose numbers are names (decision 36): in parts of 1,024 numbers, so that a write touches the
-- parts of its frames alone, however long its source has been sending. The ledger's row stays what is locked, and knows the
-- highest number. What older releases wrote into it is brought into parts by a step beside (crates/store/src/online.rs); until then
-- both count.
SET ROLE kinara_owner;

-- Rows are written under the lock of the ledger's row, and as its rows never deleted.
CREATE TABLE named_frames (
  hardware uuid NOT NULL,
  epoch int8 NOT NULL,
  part int4 NOT NULL, -- seq / 1024
  seqs int8multirange NOT NULL,
  PRIMARY KEY (hardware, epoch, part)
) WITH (fillfactor = 70);

-- As frame_times, of those frames of such an epoch whose ticks are UTC themselves: ref_ticks and ref_utc_us are 0.
CREATE TABLE named_frame_times (
  hardware uuid NOT NULL,
  epoch int8 NOT NULL,
  part int4 NOT NULL,
  rate_ppb int4 NOT NULL,
  uncertainty_us int8 NOT NULL,
  growth_ppb int8 NOT NULL,
  time_uncertain boolean NOT NULL,
  seqs int8multirange NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  PRIMARY KEY (hardware, epoch, part, rate_ppb, uncertainty_us, growth_ppb, time_uncertain)
) WITH (fillfactor = 70);
CREATE INDEX named_frame_times_age ON named_frame_times (created_at);

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['named_frames', 'named_frame_times'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY owner ON %I TO kinara_owner USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY ingest ON %I TO kinara_ingest USING (true) WITH CHECK (true)', t);
  END LOOP;
END $$;
GRANT SELECT, INSERT, UPDATE ON named_frames, named_frame_times TO kinara_ingest;

-- For readers: which frames are in, and how their times came about, whatever their numbers are. An epoch may have many rows.
CREATE VIEW frames_in AS
  SELECT hardware, epoch, seqs FROM ledger
  UNION ALL SELECT hardware, epoch, seqs FROM named_frames;
CREATE VIEW frame_fits AS
  SELECT hardware, epoch, seqs, ref_ticks, ref_utc_us, rate_ppb, uncertainty_us, growth_ppb, time_uncertain FROM frame_times
  UNION ALL
  SELECT hardware, epoch, seqs, 0, 0, rate_ppb, uncertainty_us, growth_ppb, time_uncertain FROM named_frame_times;
GRANT SELECT ON frames_in, frame_fits TO kinara_ingest;

-- A bridge of an older release looks into the ledger's row alone, and would write again what is in a part. It is refused.
CREATE FUNCTION ts.refuse_whole() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'frames whose numbers are names are kept in parts, and this program is of a release that does not know them'
    USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Stop this program, or install the release of the schema.';
END $$;
CREATE TRIGGER named_in_parts AFTER UPDATE OF seqs ON ledger FOR EACH ROW
  WHEN (NEW.named AND NOT OLD.seqs @> NEW.seqs) EXECUTE FUNCTION ts.refuse_whole();

-- A set of numbers, by part.
CREATE FUNCTION ts.parts_of(numbers int8multirange) RETURNS TABLE (part int4, seqs int8multirange)
  LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT p::int4, range_agg(r * int8range(p * 1024, (p + 1) * 1024))
    FROM unnest(numbers) r CROSS JOIN LATERAL generate_series(lower(r) / 1024, (upper(r) - 1) / 1024) p GROUP BY 1 $$;

-- Brings the lowest numbers that an epoch's row holds into parts: so many ranges, and so many parts, give or take what lies in
-- one. Gives how many there were; 0: the row holds none.
CREATE FUNCTION ts.part_epoch(of_hardware uuid, of_epoch int8, most int) RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  old record;
  below int8;
  slice int8multirange;
  parts int;
BEGIN
  SELECT l.seqs, l.updated_at INTO old FROM public.ledger l
    WHERE l.hardware = of_hardware AND l.epoch = of_epoch AND l.named FOR UPDATE;
  IF NOT FOUND OR isempty(old.seqs) THEN
    RETURN 0;
  END IF;
  SELECT least(lower(old.seqs) + most * 1024::int8, (SELECT lower(r) FROM unnest(old.seqs) r OFFSET most LIMIT 1)) INTO below;
  slice := old.seqs * int8multirange(int8range(0, (below / 1024 + 1) * 1024));
  INSERT INTO public.named_frames AS f (hardware, epoch, part, seqs)
    SELECT of_hardware, of_epoch, p.part, p.seqs FROM ts.parts_of(slice) p
    ON CONFLICT (hardware, epoch, part) DO UPDATE SET seqs = f.seqs + excluded.seqs;
  GET DIAGNOSTICS parts = ROW_COUNT;
  INSERT INTO public.named_frame_times AS f (hardware, epoch, part, rate_ppb, uncertainty_us, growth_ppb, time_uncertain, seqs,
      created_at, updated_at)
    SELECT of_hardware, of_epoch, p.part, t.rate_ppb, t.uncertainty_us, t.growth_ppb, t.time_uncertain, p.seqs, old.updated_at,
      old.updated_at
    FROM public.frame_times t CROSS JOIN LATERAL ts.parts_of(t.seqs * slice) p
    WHERE t.hardware = of_hardware AND t.epoch = of_epoch AND t.ref_ticks = 0 AND t.ref_utc_us = 0 AND t.seqs && slice
    ON CONFLICT (hardware, epoch, part, rate_ppb, uncertainty_us, growth_ppb, time_uncertain)
    DO UPDATE SET seqs = f.seqs + excluded.seqs, updated_at = greatest(f.updated_at, excluded.updated_at);
  DELETE FROM public.frame_times t WHERE t.hardware = of_hardware AND t.epoch = of_epoch
    AND t.ref_ticks = 0 AND t.ref_utc_us = 0 AND t.seqs <@ slice;
  UPDATE public.frame_times t SET seqs = t.seqs - slice WHERE t.hardware = of_hardware AND t.epoch = of_epoch
    AND t.ref_ticks = 0 AND t.ref_utc_us = 0 AND t.seqs && slice;
  UPDATE public.ledger l SET seqs = l.seqs - slice WHERE l.hardware = of_hardware AND l.epoch = of_epoch;
  RETURN parts + (SELECT count(*) FROM unnest(slice) r);
END $$;

-- Does so with a slice of the ledger's rows, in the order in which writers lock them. A long row takes many slices. Gives how many
-- rows it looked at.
CREATE FUNCTION ts.part_named(most int DEFAULT 20000) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  come ts.walks := (SELECT w FROM ts.walks w WHERE w.walk = 'named epochs');
  this record;
  left_over int := most;
  moved int;
  looked int8 := 0;
BEGIN
  FOR this IN
    -- A row that holds nothing whole is not locked: nor then those beside an epoch, which writers lock after it (0032).
    SELECT l.hardware, l.epoch, l.named AND NOT isempty(l.seqs) AS named FROM public.ledger l
    WHERE (l.hardware, l.epoch) > (coalesce(come.id, '00000000-0000-0000-0000-000000000000'), coalesce(come.epoch, 0))
    ORDER BY l.hardware, l.epoch LIMIT 1000
  LOOP
    looked := looked + 1;
    LOOP
      EXIT WHEN NOT this.named OR left_over <= 0;
      moved := ts.part_epoch(this.hardware, this.epoch, left_over);
      EXIT WHEN moved = 0;
      left_over := left_over - moved;
    END LOOP;
    -- Whether this row is done is seen the next time.
    EXIT WHEN left_over <= 0;
    come.id := this.hardware;
    come.epoch := this.epoch;
  END LOOP;
  IF looked = 0 THEN
    DELETE FROM ts.walks w WHERE w.walk = 'named epochs';
  ELSIF come.id IS NOT NULL THEN
    INSERT INTO ts.walks AS w (walk, id, epoch) VALUES ('named epochs', come.id, come.epoch)
      ON CONFLICT (walk) DO UPDATE SET id = excluded.id, epoch = excluded.epoch;
  END IF;
  RETURN looked;
END $$;

-- How the times of such frames came about, where nothing came into the part since then.
CREATE FUNCTION forget_named_frame_times(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
      DELETE FROM named_frame_times WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM named_frame_times WHERE created_at < before AND updated_at < before ORDER BY created_at LIMIT most))
      RETURNING 1)
    SELECT nullif(count(*), 0) FROM gone $$;

REVOKE ALL ON FUNCTION ts.refuse_whole(), ts.parts_of(int8multirange), ts.part_epoch(uuid, int8, int), ts.part_named(int),
  forget_named_frame_times(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_named_frame_times(timestamptz, int) TO kinara_ingest;
RESET ROLE;
