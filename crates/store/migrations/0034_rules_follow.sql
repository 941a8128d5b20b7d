-- Alerts follow what they are about: into another clinic, and to the wearer whom somebody turned out to be.
SET ROLE kinara_owner;

-- As before (0031), but an event that moves into another clinic is looked at in both (0019), each of which may have a rule or none.
CREATE OR REPLACE FUNCTION ts.note_event() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  at timestamptz := date_bin('1 hour', NEW.time, 'epoch');
  mark text := concat_ws(' ', NEW.tenant_id, NEW.user_id, NEW.kind, extract(epoch FROM at));
  whose record;
  queued text;
BEGIN
  IF TG_OP = 'INSERT' AND current_setting('kinara.noted', true) = mark THEN
    RETURN NULL;
  END IF;
  FOR whose IN
    SELECT NEW.tenant_id AS clinic, NEW.user_id AS wearer, at AS hour
    UNION SELECT OLD.tenant_id, OLD.user_id, date_bin('1 hour', OLD.time, 'epoch') WHERE TG_OP = 'UPDATE'
    ORDER BY 1, 2
  LOOP
    CONTINUE WHEN NOT EXISTS (SELECT FROM public.alert_rules r WHERE r.tenant_id = whose.clinic AND r.event_type = NEW.kind
      AND r.ended_at IS NULL);
    INSERT INTO ts.alert_notes (tenant_id, user_id, hour) VALUES (whose.clinic, whose.wearer, whose.hour);
    IF TG_OP = 'INSERT' THEN
      PERFORM set_config('kinara.noted', mark, true);
    END IF;
    -- The last two of them: a thousand events that move from one clinic to another queue two jobs.
    queued := coalesce(current_setting('kinara.queued', true), '');
    IF strpos(queued, whose.clinic::text) = 0 THEN
      PERFORM jobs.of_clinic('evaluate_alerts', whose.clinic);
      PERFORM set_config('kinara.queued', right(queued, 36) || whose.clinic, true);
    END IF;
  END LOOP;
  RETURN NULL;
END $$;

-- As before (0026), and a rule of somebody who was merged is one of whoever they turned out to be: what was measured is theirs now.
-- A wearer is merged into one who is not merged themselves.
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
      JOIN public.alert_rules r ON r.tenant_id = tenant AND r.ended_at IS NULL
        AND (r.user_id IS NULL OR r.user_id IN (u.id, u.merged_into)
          OR EXISTS (SELECT FROM public.users w WHERE w.id = r.user_id AND w.merged_into IN (u.id, u.merged_into)))
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

-- Whose event was dealt with stood with its kind and time in the log's target, which stays when somebody is erased. It belongs into the
-- detail, which goes.
UPDATE audit_log l SET target = 'event:' || split_part(l.target, ':', 2),
    detail = CASE WHEN EXISTS (SELECT FROM tombstones t WHERE t.tenant_id = l.tenant_id AND t.user_id::text = split_part(l.target, ':', 2))
      THEN jsonb_build_object('erased', true)
      ELSE l.detail || jsonb_build_object('event_type', split_part(l.target, ':', 3),
        'time', substr(l.target, length('event:::') + length(split_part(l.target, ':', 2) || split_part(l.target, ':', 3)) + 1)) END
    || jsonb_build_object('user_id', split_part(l.target, ':', 2))
  WHERE l.action = 'event.acknowledge' AND l.target LIKE 'event:%:%:%';
RESET ROLE;
