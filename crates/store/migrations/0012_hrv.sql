-- Heart rate variability of five-minute windows, computed from RR intervals by the bridge (crates/hrv).
--
-- The roll-up passes on which hours' intervals changed. The bridge reads no readings: it is given the intervals of these hours
-- alone, and puts back what it made of them, in one transaction.
SET ROLE kinara_owner;

CREATE TABLE ts.stale_hrv (
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  hour timestamptz NOT NULL
);

CREATE TABLE ts.hrv (
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  bucket timestamptz NOT NULL,
  intervals int4 NOT NULL,
  corrected int4 NOT NULL,
  covered_ms float8 NOT NULL,
  mean_nn_ms float8 NOT NULL,
  sdnn_ms float8 NOT NULL,
  rmssd_ms float8 NOT NULL,
  pnn50 float8 NOT NULL,
  lf_ms2 float8,
  hf_ms2 float8,
  PRIMARY KEY (tenant_id, user_id, bucket)
);
CREATE INDEX hrv_age ON ts.hrv USING brin (bucket);

-- What is noted of minutes is noted here as well where it is intervals (channel 2).
CREATE FUNCTION ts.pass_on() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO ts.stale_hrv (tenant_id, user_id, hour)
    SELECT DISTINCT tenant_id, user_id, hour FROM gone WHERE type = 2 AND NOT days_only;
  RETURN NULL;
END $$;
CREATE TRIGGER pass_on AFTER DELETE ON ts.stale REFERENCING OLD TABLE AS gone
  FOR EACH STATEMENT EXECUTE FUNCTION ts.pass_on();

-- Takes up to so many hours with their intervals, in order; none while another bridge does. Hours before `raw_from` are
-- forgotten.
CREATE FUNCTION ts.take_hrv(most int, raw_from timestamptz)
  RETURNS TABLE (tenant_id uuid, user_id uuid, hour timestamptz, times timestamptz[], intervals float8[])
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended('kinara hrv', 0)) THEN
    RETURN;
  END IF;
  RETURN QUERY
    WITH chosen AS (SELECT s.tenant_id, s.user_id, s.hour FROM ts.stale_hrv s LIMIT most),
    taken AS (
      DELETE FROM ts.stale_hrv s USING (SELECT DISTINCT * FROM chosen) c
      WHERE s.tenant_id = c.tenant_id AND s.user_id = c.user_id AND s.hour = c.hour
      RETURNING s.tenant_id, s.user_id, s.hour),
    hours AS (SELECT DISTINCT t.tenant_id, t.user_id, t.hour FROM taken t WHERE t.hour >= raw_from)
    SELECT h.tenant_id, h.user_id, h.hour,
      coalesce(array_agg(r.time ORDER BY r.time, r.epoch, r.seq, r.idx) FILTER (WHERE r.time IS NOT NULL), '{}'),
      coalesce(array_agg(r.value ORDER BY r.time, r.epoch, r.seq, r.idx) FILTER (WHERE r.time IS NOT NULL), '{}')
    FROM hours h LEFT JOIN ts.readings r ON r.tenant_id = h.tenant_id AND r.user_id = h.user_id AND r.type = 2
      AND r.time >= h.hour AND r.time < h.hour + interval '1 hour' AND r.quality > 0
    GROUP BY 1, 2, 3;
END $$;

-- Replaces an hour's windows.
CREATE FUNCTION ts.put_hrv(tenant uuid, wearer uuid, of_hour timestamptz, buckets timestamptz[], counts int4[],
  corrections int4[], covered float8[], means float8[], sdnns float8[], rmssds float8[], pnn50s float8[], lfs float8[],
  hfs float8[]) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM ts.hrv h WHERE h.tenant_id = tenant AND h.user_id = wearer
    AND h.bucket >= of_hour AND h.bucket < of_hour + interval '1 hour';
  INSERT INTO ts.hrv SELECT tenant, wearer, w.* FROM unnest(buckets, counts, corrections, covered, means, sdnns, rmssds,
    pnn50s, lfs, hfs) w;
END $$;

CREATE FUNCTION ts.drop_expired_hrv(most int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  gone int8;
BEGIN
  DELETE FROM ts.hrv WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM ts.hrv WHERE bucket < now() - interval '1827 days' LIMIT most));
  GET DIAGNOSTICS gone = ROW_COUNT;
  RETURN gone;
END $$;

REVOKE ALL ON FUNCTION ts.pass_on(), ts.take_hrv(int, timestamptz), ts.put_hrv(uuid, uuid, timestamptz, timestamptz[], int4[],
  int4[], float8[], float8[], float8[], float8[], float8[], float8[], float8[]), ts.drop_expired_hrv(int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.take_hrv(int, timestamptz), ts.put_hrv(uuid, uuid, timestamptz, timestamptz[], int4[], int4[],
  float8[], float8[], float8[], float8[], float8[], float8[], float8[]), ts.drop_expired_hrv(int) TO kinara_ingest;

CREATE VIEW hrv WITH (security_barrier) AS
  SELECT bucket, tenant_id, user_id, intervals, corrected, covered_ms, mean_nn_ms, sdnn_ms, rmssd_ms, pnn50, lf_ms2, hf_ms2
  FROM ts.hrv WHERE tenant_id = (select current_tenant());
GRANT SELECT ON hrv TO kinara_app;
RESET ROLE;
