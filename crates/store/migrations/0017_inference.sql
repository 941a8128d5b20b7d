-- What no gateway looked at, because it came over HTTP, is looked at here: hours whose signals changed. What came over HTTP is
-- known by its epochs' fit, whose ticks are ms of UTC (decision 21). The bridge reads no readings: it is given the signals of these hours alone, and writes the events that
-- it finds in them by the ordinary write.
SET ROLE kinara_owner;

CREATE TABLE ts.inference_notes (
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  hour timestamptz NOT NULL
);
CREATE INDEX inference_notes_tenant ON ts.inference_notes (tenant_id);
CREATE INDEX frame_times_of_utc ON frame_times (hardware, epoch) WHERE ref_ticks = 0 AND ref_utc_us = 0;

-- The channels that windows are made of (crates/inference): heart rate, RR intervals, skin temperature, EDA, activity.
CREATE FUNCTION ts.pass_on_to_inference() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  clinic uuid;
BEGIN
  FOR clinic IN
    WITH noted AS (
      INSERT INTO ts.inference_notes (tenant_id, user_id, hour)
        SELECT DISTINCT g.tenant_id, g.user_id, g.hour FROM gone g WHERE NOT g.days_only AND g.type IN (1, 2, 3, 5, 7)
          AND EXISTS (SELECT FROM public.device_assignments a
            JOIN public.frame_times f ON f.hardware = a.hardware_id AND f.ref_ticks = 0 AND f.ref_utc_us = 0
            WHERE a.tenant_id = g.tenant_id AND a.user_id = g.user_id)
        RETURNING tenant_id)
    SELECT DISTINCT tenant_id FROM noted ORDER BY 1
  LOOP
    PERFORM jobs.of_clinic('infer', clinic);
  END LOOP;
  RETURN NULL;
END $$;
CREATE TRIGGER pass_on_to_inference AFTER DELETE ON ts.stale REFERENCING OLD TABLE AS gone
  FOR EACH STATEMENT EXECUTE FUNCTION ts.pass_on_to_inference();

-- Takes up to so many notes of a clinic. Of each device: the signals from `margin` before the hour until as long after it, in
-- order, and which onsets each producer has reported within `around` of it, in ms since 1970 (epoch 0: what comes over HTTP
-- has ticks of UTC). What is before `raw_from` is forgotten.
CREATE FUNCTION ts.take_inference_notes(tenant uuid, most int, raw_from timestamptz, margin interval, around interval)
  RETURNS TABLE (device varchar, hour timestamptz, types int2[], times timestamptz[], vals float8[],
    producers varchar[], onsets timestamptz[])
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('kinara inference ' || tenant, 0));
  RETURN QUERY
    WITH chosen AS (SELECT n.ctid FROM ts.inference_notes n WHERE n.tenant_id = tenant LIMIT most),
    taken AS (
      DELETE FROM ts.inference_notes n USING chosen c WHERE n.ctid = c.ctid AND n.tenant_id = tenant
      RETURNING n.user_id, n.hour),
    hours AS (
      SELECT DISTINCT t.user_id, t.hour AS since, d.id, d.hardware_id, a.hardware_id AS hardware
      FROM taken t
      JOIN public.device_assignments a ON a.tenant_id = tenant AND a.user_id = t.user_id
      JOIN public.devices d ON d.id = a.device_id AND d.hardware_id IS NOT NULL
      WHERE t.hour >= raw_from)
    SELECT h.hardware_id, h.since, s.types, s.times, s.vals, e.producers, e.onsets
    FROM hours h
    CROSS JOIN LATERAL (
      SELECT array_agg(r.type ORDER BY r.time, r.type, r.idx) AS types,
        array_agg(r.time ORDER BY r.time, r.type, r.idx) AS times,
        array_agg(r.value ORDER BY r.time, r.type, r.idx) AS vals
      FROM ts.readings r WHERE r.tenant_id = tenant AND r.user_id = h.user_id AND r.type IN (1, 2, 3, 5, 7)
        AND r.time >= h.since - margin AND r.time < h.since + interval '1 hour' + margin
        AND r.device_id = h.id AND r.quality > 0
        AND EXISTS (SELECT FROM public.frame_times f WHERE f.hardware = h.hardware AND f.epoch = r.epoch
          AND f.ref_ticks = 0 AND f.ref_utc_us = 0)) s
    CROSS JOIN LATERAL (
      SELECT coalesce(array_agg(k.producer ORDER BY k.time), '{}') AS producers,
        coalesce(array_agg(k.time ORDER BY k.time), '{}') AS onsets
      FROM public.event_keys k WHERE k.hardware = h.hardware AND k.epoch = 0
        AND k.time >= h.since - around AND k.time < h.since + interval '1 hour' + around) e
    WHERE s.types IS NOT NULL
    ORDER BY 1, 2;
END $$;

CREATE FUNCTION ts.inference_notes_left(tenant uuid) RETURNS boolean
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM ts.inference_notes n WHERE n.tenant_id = tenant) $$;

REVOKE ALL ON FUNCTION ts.pass_on_to_inference(), ts.take_inference_notes(uuid, int, timestamptz, interval, interval),
  ts.inference_notes_left(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.take_inference_notes(uuid, int, timestamptz, interval, interval),
  ts.inference_notes_left(uuid) TO kinara_ingest;
RESET ROLE;
