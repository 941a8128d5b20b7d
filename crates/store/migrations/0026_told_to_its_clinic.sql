-- What is found of a device is told to the clinic whose it was then, and counts nothing of another's; an alert is looked at whole.
SET ROLE kinara_owner;

-- Which of an epoch's numbers are frames of a clinic: `possible`, those that may be and are not certainly another's; `certain`,
-- those that can be no other's. By the frames that boundaries name, by the lowest frames stored for later assignments, and by what
-- is known of the epoch's time; `told_at`, where nothing is.
CREATE FUNCTION ts.numbers_of(which uuid, of_epoch int8, told_at timestamptz)
  RETURNS TABLE (clinic uuid, possible int8multirange, certain int8multirange)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH known AS (
      SELECT coalesce(least(f.first, l.highest_time), told_at) AS low, coalesce(l.highest_time, f.first, told_at) AS high
      FROM (SELECT min(to_timestamp(t.ref_utc_us / 1e6)) AS first FROM public.frame_times t
            WHERE t.hardware = which AND t.epoch = of_epoch AND t.ref_utc_us > 0) f
        LEFT JOIN public.ledger l ON l.hardware = which AND l.epoch = of_epoch),
    -- In one log boots are in order; two logs know nothing of each other.
    held AS (
      SELECT a.tenant_id, a.valid_from, a.valid_to, k.low, k.high, a.from_epoch, a.from_seq, a.to_epoch, a.to_seq,
        coalesce(a.from_epoch >> 32 = of_epoch >> 32, false) AS from_named,
        coalesce(a.to_epoch >> 32 = of_epoch >> 32, false) AS to_named,
        (SELECT min(n.first_seq) FROM public.device_assignments n WHERE n.hardware_id = which AND n.first_epoch = of_epoch
           AND n.valid_from > a.valid_from) AS next_first
      FROM public.device_assignments a CROSS JOIN known k WHERE a.hardware_id = which),
    ranges AS (
      SELECT h.tenant_id, range_agg(int8range(begins.seq, greatest(begins.seq, ends.seq))) AS seqs
      FROM held h
        CROSS JOIN LATERAL (SELECT CASE WHEN h.from_epoch = of_epoch THEN h.from_seq ELSE 0 END AS seq) begins
        -- A number has 32 bits.
        CROSS JOIN LATERAL (SELECT least(4294967296, h.next_first, CASE WHEN h.to_epoch = of_epoch THEN h.to_seq END) AS seq) ends
      WHERE NOT (h.from_named AND h.from_epoch & 4294967295 > of_epoch & 4294967295)
        AND NOT (h.to_named AND h.to_epoch & 4294967295 < of_epoch & 4294967295)
        AND (h.from_named OR h.high IS NULL OR h.high >= h.valid_from)
        AND (h.to_named OR h.low IS NULL OR h.valid_to IS NULL OR h.low < h.valid_to)
      GROUP BY 1),
    sure AS (
      SELECT r.tenant_id, r.seqs, r.seqs - coalesce((SELECT range_agg(o.seqs) FROM ranges o WHERE o.tenant_id <> r.tenant_id), '{}')
        AS certain FROM ranges r)
    SELECT s.tenant_id,
      s.seqs - coalesce((SELECT range_agg(o.certain) FROM sure o WHERE o.tenant_id <> s.tenant_id), '{}'), s.certain
    FROM sure s $$;
REVOKE ALL ON FUNCTION ts.numbers_of(uuid, int8, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.numbers_of(uuid, int8, timestamptz) TO kinara_ingest;

-- What was told before was not asked whose it is. Gateways tell it again.
DELETE FROM gateway_delivered;

-- As before, and each difference is of the clinic that it names, [{tenant, hardware, epoch, detail}]; of none: for whoever runs the
-- cloud.
CREATE OR REPLACE FUNCTION ts.alert_frames(told jsonb) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE public.alerts a SET withdrawn_at = now() WHERE a.kind = 'frames' AND a.withdrawn_at IS NULL
    AND NOT EXISTS (SELECT FROM jsonb_array_elements(told) t
      JOIN public.hardware h ON h.id = (t ->> 'hardware')::uuid
      WHERE a.subject = h.hardware_id || ' ' || (t ->> 'epoch') AND a.tenant_id IS NOT DISTINCT FROM (t ->> 'tenant')::uuid);
  INSERT INTO public.alerts AS a (tenant_id, kind, title, severity, from_time, to_time, subject, data)
    SELECT (t ->> 'tenant')::uuid, 'frames', 'The numbers of a wearable do not add up', 'critical', now(), now(),
      h.hardware_id || ' ' || (t ->> 'epoch'),
      jsonb_build_object('hardware_id', h.hardware_id, 'epoch', t ->> 'epoch') || (t -> 'detail')
    FROM jsonb_array_elements(told) t
    JOIN public.hardware h ON h.id = (t ->> 'hardware')::uuid
    ON CONFLICT (kind, subject, (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000')))
      WHERE kind IN ('rows', 'frames') AND withdrawn_at IS NULL
    DO UPDATE SET data = excluded.data, to_time = excluded.to_time;
END $$;

-- As before, and an alert that is touched is looked at whole.
CREATE OR REPLACE FUNCTION ts.take_alert_notes(tenant uuid, most int, raw_from timestamptz, join_s float8)
  RETURNS TABLE (rule uuid, wearer uuid, lasts_s float8, least_s float8, looked_from timestamptz[], looked_to timestamptz[],
    held timestamptz[], known uuid[], known_from timestamptz[], known_to timestamptz[])
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('kinara alerts ' || tenant, 0));
  RETURN QUERY
    WITH chosen AS (
      SELECT n.ctid, n.user_id, n.type, n.hour FROM ts.alert_notes n WHERE n.tenant_id = tenant LIMIT most),
    taken AS (
      DELETE FROM ts.alert_notes n USING chosen c WHERE n.ctid = c.ctid AND n.tenant_id = tenant
      RETURNING n.user_id, n.type, n.hour),
    asked AS (
      SELECT DISTINCT r.id, t.user_id, r.type, r.above, r.below, r.event_type, r.least_confidence, r.created_at,
        CASE WHEN r.type IS NULL THEN 0 ELSE 60 END::float8 AS lasts, coalesce(r.minutes * 60, 0)::float8 AS least,
        t.hour - reach.much AS from_time, t.hour + interval '1 hour' + reach.much AS to_time
      FROM taken t
      JOIN public.users u ON u.id = t.user_id AND u.tenant_id = tenant
      JOIN public.alert_rules r ON r.tenant_id = tenant AND r.ended_at IS NULL AND (r.user_id IS NULL OR r.user_id = t.user_id)
        AND (r.type = t.type OR (t.type IS NULL AND r.event_type IS NOT NULL))
      CROSS JOIN LATERAL (SELECT make_interval(secs => join_s + coalesce(r.minutes * 60, 0)) AS much) reach
      WHERE t.hour >= raw_from),
    -- An alert that a look touches is looked at from its beginning to its end: readings that are another's now may be anywhere
    -- in it. What is older than readings are kept says nothing, so such an alert is looked at where it was asked.
    looks AS (
      SELECT * FROM asked
      UNION
      SELECT k.id, k.user_id, k.type, k.above, k.below, k.event_type, k.least_confidence, k.created_at, k.lasts, k.least,
        a.from_time - reach.much, a.to_time + reach.much
      FROM asked k
      CROSS JOIN LATERAL (SELECT make_interval(secs => join_s + k.least) AS much) reach
      JOIN public.alerts a ON a.rule_id = k.id AND a.user_id = k.user_id AND a.withdrawn_at IS NULL
        AND a.from_time <= k.to_time AND a.to_time >= k.from_time AND a.from_time >= raw_from + reach.much),
    times AS (
      SELECT l.id, l.user_id, m.bucket AS at FROM looks l
        JOIN ts.readings_minute m ON m.tenant_id = tenant AND m.user_id = l.user_id AND m.type = l.type
          AND m.bucket >= l.from_time AND m.bucket < l.to_time AND m.bucket + interval '1 minute' > l.created_at
        WHERE m.mean > l.above OR m.mean < l.below
      UNION
      SELECT l.id, l.user_id, e.time FROM looks l
        JOIN ts.events e ON e.tenant_id = tenant AND e.user_id = l.user_id AND e.event_type = l.event_type
          AND e.time >= l.from_time AND e.time < l.to_time AND e.time > l.created_at
        WHERE l.least_confidence IS NULL OR e.confidence >= l.least_confidence),
    whole AS (
      SELECT l.id, l.user_id, min(l.lasts) AS lasts, min(l.least) AS least,
        range_agg(tstzrange(l.from_time, l.to_time)) AS spans
      FROM looks l GROUP BY 1, 2)
    SELECT w.id, w.user_id, w.lasts, w.least,
      (SELECT array_agg(lower(s) ORDER BY s) FROM unnest(w.spans) s),
      (SELECT array_agg(upper(s) ORDER BY s) FROM unnest(w.spans) s),
      (SELECT coalesce(array_agg(t.at ORDER BY t.at), '{}') FROM times t WHERE t.id = w.id AND t.user_id = w.user_id),
      k.ids, k.froms, k.tos
    FROM whole w
    CROSS JOIN LATERAL (
      SELECT coalesce(array_agg(a.id ORDER BY a.from_time, a.id), '{}') AS ids,
        coalesce(array_agg(a.from_time ORDER BY a.from_time, a.id), '{}') AS froms,
        coalesce(array_agg(a.to_time ORDER BY a.from_time, a.id), '{}') AS tos
      FROM public.alerts a WHERE a.rule_id = w.id AND a.user_id = w.user_id AND a.withdrawn_at IS NULL
        AND w.spans && tstzrange(a.from_time - make_interval(secs => join_s), a.to_time + make_interval(secs => join_s), '[]')
    ) k;
END $$;

-- As before, but a gap that is cut, or may be, counts nothing: the rest of it is of another time, and may be of another clinic.
CREATE OR REPLACE VIEW wearer_gaps WITH (security_barrier) AS
  SELECT g.id, a.tenant_id, a.user_id, a.device_id, g.reason,
    greatest(g.from_time, a.valid_from) AS from_time,
    least(g.to_time, a.valid_to) AS to_time,
    (SELECT w.id FROM gateways w WHERE w.id = g.gateway_id AND w.tenant_id = a.tenant_id) AS gateway_id,
    g.created_at,
    CASE WHEN (a.valid_to IS NULL OR g.to_time <= a.valid_to)
        AND CASE WHEN g.from_time IS NULL THEN NOT EXISTS (SELECT FROM device_assignments o
            WHERE o.hardware_id = g.hardware AND o.valid_from < a.valid_from)
          ELSE g.from_time >= a.valid_from END
      THEN (SELECT sum(upper(s) - lower(s)) FROM unnest(g.seqs) s)::int8 END AS frames
  FROM gaps g JOIN device_assignments a ON a.hardware_id = g.hardware
  WHERE a.tenant_id = (select current_tenant()) AND g.withdrawn_at IS NULL
    AND (g.from_time IS NOT NULL OR g.to_time IS NOT NULL OR a.valid_to IS NULL)
    AND tstzrange(a.valid_from, a.valid_to) &&
      tstzrange(least(g.from_time, g.to_time), greatest(g.from_time, g.to_time), '[]');
RESET ROLE;
