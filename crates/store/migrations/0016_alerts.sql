-- Alerts: what somebody has to look at. A clinic's own rules raise them about its wearers, the nightly comparison about what
-- does not add up.
--
-- Whatever may change what a rule says (an event, minutes that were rolled up) notes the wearer and the hour in its own
-- transaction and queues one job for the clinic. The job is given the times at which a rule's condition held around these
-- hours, and puts back the alerts that these make: what alerts there are does not depend on the order in which data came.
SET ROLE kinara_owner;

-- Made and ended, never changed: an alert names its rule. Either of an event, or of the means of so many minutes one after another.
CREATE TABLE alert_rules (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  name varchar(100) NOT NULL,
  severity varchar(20) NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
  user_id uuid REFERENCES users ON DELETE CASCADE, -- of this wearer alone; NULL: of all
  event_type varchar(50),
  least_confidence real CHECK (least_confidence BETWEEN 0 AND 1),
  type int2 REFERENCES channels,
  above float8,
  below float8,
  minutes int2 CHECK (minutes BETWEEN 1 AND 720),
  -- What it held before is not looked at.
  created_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz,
  CHECK (CASE WHEN event_type IS NULL
    THEN type IS NOT NULL AND minutes IS NOT NULL AND least_confidence IS NULL AND num_nonnulls(above, below) = 1
    ELSE num_nonnulls(type, minutes, above, below) = 0 END)
);
CREATE INDEX alert_rules_tenant ON alert_rules (tenant_id);

CREATE TABLE alerts (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid REFERENCES tenants ON DELETE CASCADE, -- NULL: of no clinic, for whoever runs the cloud
  kind varchar(20) NOT NULL CHECK (kind IN ('event', 'reading', 'rows', 'frames')),
  rule_id uuid REFERENCES alert_rules ON DELETE SET NULL,
  user_id uuid REFERENCES users ON DELETE CASCADE,
  title varchar(200) NOT NULL,
  severity varchar(20) NOT NULL,
  -- From the first to the last time at which it held.
  from_time timestamptz NOT NULL,
  to_time timestamptz NOT NULL,
  subject varchar(300) NOT NULL DEFAULT '', -- what 'rows' and 'frames' are about: there is one open alert of each
  data jsonb NOT NULL DEFAULT '{}',
  raised_at timestamptz NOT NULL DEFAULT now(),
  -- It does not hold any more: its readings are another's, what was missing is there.
  withdrawn_at timestamptz,
  acknowledged_at timestamptz,
  acknowledged_by uuid,
  CHECK (to_time >= from_time)
);
CREATE INDEX alerts_tenant ON alerts (tenant_id, raised_at);
CREATE INDEX alerts_rule ON alerts (rule_id, user_id, from_time);
CREATE INDEX alerts_user ON alerts (user_id);
CREATE UNIQUE INDEX alerts_once ON alerts (kind, subject, (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000')))
  WHERE kind IN ('rows', 'frames') AND withdrawn_at IS NULL;

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['alert_rules', 'alerts'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY owner ON %I TO kinara_owner USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY tenant ON %I TO kinara_app USING (tenant_id = (select current_tenant()))
      WITH CHECK (tenant_id = (select current_tenant()))', t);
  END LOOP;
END $$;
CREATE POLICY ingest ON alerts TO kinara_ingest USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE (ended_at) ON alert_rules TO kinara_app;
GRANT SELECT, UPDATE (acknowledged_at, acknowledged_by) ON alerts TO kinara_app;
GRANT SELECT, INSERT, UPDATE ON alerts TO kinara_ingest;

-- Which hours of whom have to be looked at. type NULL: their events.
CREATE TABLE ts.alert_notes (
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  type int2,
  hour timestamptz NOT NULL
);
CREATE INDEX alert_notes_tenant ON ts.alert_notes (tenant_id);
RESET ROLE;

-- One job of a kind for a clinic, however much there is to look at, in a queue apart from its requests. Only triggers call it.
SET ROLE kinara_jobs;
CREATE FUNCTION jobs.of_clinic(task text, tenant uuid) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM jobs.add_job(task, json_build_object('tenant', tenant), queue_name => task || ':' || tenant,
    job_key => task || ':' || tenant);
END $$;
REVOKE ALL ON FUNCTION jobs.of_clinic(text, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION jobs.of_clinic(text, uuid) TO kinara_owner;
RESET ROLE;
SET ROLE kinara_owner;

-- Minutes were rolled up anew.
CREATE FUNCTION ts.pass_on_to_rules() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  clinic uuid;
BEGIN
  FOR clinic IN
    WITH noted AS (
      INSERT INTO ts.alert_notes (tenant_id, user_id, type, hour)
        SELECT DISTINCT g.tenant_id, g.user_id, g.type, g.hour FROM gone g WHERE NOT g.days_only
          AND EXISTS (SELECT FROM public.alert_rules r WHERE r.tenant_id = g.tenant_id AND r.type = g.type
            AND r.ended_at IS NULL)
        RETURNING tenant_id)
    SELECT DISTINCT tenant_id FROM noted ORDER BY 1
  LOOP
    PERFORM jobs.of_clinic('evaluate_alerts', clinic);
  END LOOP;
  RETURN NULL;
END $$;
CREATE TRIGGER pass_on_to_rules AFTER DELETE ON ts.stale REFERENCING OLD TABLE AS gone
  FOR EACH STATEMENT EXECUTE FUNCTION ts.pass_on_to_rules();

-- An event came, or is another wearer's now.
CREATE FUNCTION ts.note_event() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM public.alert_rules r WHERE r.tenant_id = NEW.tenant_id AND r.event_type = NEW.kind
      AND r.ended_at IS NULL) THEN
    RETURN NULL;
  END IF;
  INSERT INTO ts.alert_notes (tenant_id, user_id, hour) VALUES
    (NEW.tenant_id, NEW.user_id, date_bin('1 hour', NEW.time, 'epoch'));
  IF TG_OP = 'UPDATE' THEN
    INSERT INTO ts.alert_notes (tenant_id, user_id, hour) VALUES
      (OLD.tenant_id, OLD.user_id, date_bin('1 hour', OLD.time, 'epoch'));
  END IF;
  PERFORM jobs.of_clinic('evaluate_alerts', NEW.tenant_id);
  RETURN NULL;
END $$;
-- At the end of the transaction: two writers of the same events wait for each other at the keys alone.
CREATE CONSTRAINT TRIGGER note_event AFTER INSERT OR UPDATE OF user_id ON event_keys DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION ts.note_event();

-- Takes up to so many notes of a clinic, and gives for each rule and wearer: the spans that were looked at, the times in
-- them at which the condition held, in order (a minute's beginning; an event's onset), and the alerts that there are. What
-- is before `raw_from` is forgotten: its readings may be gone. `join_s`: what is no farther apart is one alert.
CREATE FUNCTION ts.take_alert_notes(tenant uuid, most int, raw_from timestamptz, join_s float8)
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
    looks AS (
      SELECT DISTINCT r.id, t.user_id, r.type, r.above, r.below, r.event_type, r.least_confidence, r.created_at,
        CASE WHEN r.type IS NULL THEN 0 ELSE 60 END::float8 AS lasts, coalesce(r.minutes * 60, 0)::float8 AS least,
        t.hour - reach.much AS from_time, t.hour + interval '1 hour' + reach.much AS to_time
      FROM taken t
      JOIN public.users u ON u.id = t.user_id AND u.tenant_id = tenant
      JOIN public.alert_rules r ON r.tenant_id = tenant AND r.ended_at IS NULL AND (r.user_id IS NULL OR r.user_id = t.user_id)
        AND (r.type = t.type OR (t.type IS NULL AND r.event_type IS NOT NULL))
      CROSS JOIN LATERAL (SELECT make_interval(secs => join_s + coalesce(r.minutes * 60, 0)) AS much) reach
      WHERE t.hour >= raw_from),
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

CREATE FUNCTION ts.alert_notes_left(tenant uuid) RETURNS boolean
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM ts.alert_notes n WHERE n.tenant_id = tenant) $$;

-- Puts one: raised where `alert` is NULL, otherwise longer than it was.
CREATE FUNCTION ts.put_alert(alert uuid, rule uuid, wearer uuid, first timestamptz, last timestamptz) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF alert IS NOT NULL THEN
    UPDATE public.alerts SET from_time = first, to_time = last WHERE id = alert;
    RETURN;
  END IF;
  INSERT INTO public.alerts (tenant_id, kind, rule_id, user_id, title, severity, from_time, to_time, data)
    SELECT r.tenant_id, CASE WHEN r.type IS NULL THEN 'event' ELSE 'reading' END, r.id, wearer, r.name, r.severity, first,
      last, jsonb_strip_nulls(jsonb_build_object('event_type', r.event_type, 'least_confidence', r.least_confidence,
        'reading_type', c.name, 'unit', c.unit, 'above', r.above, 'below', r.below, 'minutes', r.minutes))
    FROM public.alert_rules r JOIN public.users u ON u.id = wearer AND u.tenant_id = r.tenant_id
      LEFT JOIN public.channels c ON c.type = r.type
    WHERE r.id = rule;
END $$;

-- What the nightly comparison found of readings: one alert for each clinic, as long as there is a difference.
CREATE FUNCTION ts.alert_differences() RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  open int8;
BEGIN
  UPDATE public.alerts a SET withdrawn_at = now() WHERE a.kind = 'rows' AND a.withdrawn_at IS NULL
    AND NOT EXISTS (SELECT FROM public.differences d WHERE d.tenant_id = a.tenant_id);
  INSERT INTO public.alerts AS a (tenant_id, kind, title, severity, from_time, to_time, data)
    SELECT tenant_id, 'rows', 'There are not as many readings as were written', 'critical', min(hour),
      max(hour) + interval '1 hour',
      jsonb_build_object('hours', count(*), 'written', sum(written), 'present', sum(present))
    FROM public.differences GROUP BY 1
    ON CONFLICT (kind, subject, (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000')))
      WHERE kind IN ('rows', 'frames') AND withdrawn_at IS NULL
    DO UPDATE SET from_time = excluded.from_time, to_time = excluded.to_time, data = excluded.data;
  SELECT count(*) INTO open FROM public.alerts WHERE kind = 'rows' AND withdrawn_at IS NULL;
  RETURN open;
END $$;

-- The same of what wearables numbered: one alert for each device and epoch in `told`, [{hardware, epoch, detail}]; those about
-- others are over.
CREATE FUNCTION ts.alert_frames(told jsonb) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE public.alerts a SET withdrawn_at = now() WHERE a.kind = 'frames' AND a.withdrawn_at IS NULL
    AND NOT EXISTS (SELECT FROM jsonb_array_elements(told) t
      JOIN public.hardware h ON h.id = (t ->> 'hardware')::uuid
      WHERE a.subject = h.hardware_id || ' ' || (t ->> 'epoch'));
  INSERT INTO public.alerts AS a (tenant_id, kind, title, severity, from_time, to_time, subject, data)
    SELECT whose.tenant_id, 'frames', 'The numbers of a wearable do not add up', 'critical', now(), now(),
      h.hardware_id || ' ' || (t ->> 'epoch'),
      jsonb_build_object('hardware_id', h.hardware_id, 'epoch', t ->> 'epoch') || (t -> 'detail')
    FROM jsonb_array_elements(told) t
    JOIN public.hardware h ON h.id = (t ->> 'hardware')::uuid
    LEFT JOIN LATERAL (SELECT s.tenant_id FROM public.device_assignments s WHERE s.hardware_id = h.id
      ORDER BY s.valid_from DESC LIMIT 1) whose ON true
    ON CONFLICT (kind, subject, (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000')))
      WHERE kind IN ('rows', 'frames') AND withdrawn_at IS NULL
    DO UPDATE SET data = excluded.data, to_time = excluded.to_time;
END $$;

-- What a gateway says that the bridge has acknowledged of an epoch. It is deleted there: what is nowhere here is lost.
CREATE TABLE gateway_delivered (
  gateway_id uuid NOT NULL REFERENCES gateways ON DELETE CASCADE,
  hardware uuid NOT NULL REFERENCES hardware,
  epoch int8 NOT NULL,
  seqs int8multirange NOT NULL,
  told_at timestamptz NOT NULL,
  PRIMARY KEY (gateway_id, hardware, epoch)
);
ALTER TABLE gateway_delivered ENABLE ROW LEVEL SECURITY;
ALTER TABLE gateway_delivered FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON gateway_delivered TO kinara_owner USING (true) WITH CHECK (true);
CREATE POLICY ingest ON gateway_delivered TO kinara_ingest USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON gateway_delivered TO kinara_ingest;

REVOKE ALL ON FUNCTION ts.pass_on_to_rules(), ts.note_event(),
  ts.take_alert_notes(uuid, int, timestamptz, float8), ts.alert_notes_left(uuid), ts.put_alert(uuid, uuid, uuid, timestamptz, timestamptz),
  ts.alert_differences(), ts.alert_frames(jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.take_alert_notes(uuid, int, timestamptz, float8), ts.alert_notes_left(uuid),
  ts.put_alert(uuid, uuid, uuid, timestamptz, timestamptz), ts.alert_differences(), ts.alert_frames(jsonb) TO kinara_ingest;
RESET ROLE;
