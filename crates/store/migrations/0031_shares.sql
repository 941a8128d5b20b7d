-- What one clinic's wearables and gateways say costs that clinic: intervals are looked up within a time and are looked at by rules
-- when they come late, open gaps have turns by wearable, and what gateways say of themselves has an end.
SET ROLE kinara_owner;

-- From when until when a channel of a device had another interval, of a time: what was said in it, and the last word before it. The
-- rest of what was ever said is not gone through. `of_clinic` has the device at `since`: nothing is believed from before it got it
-- from another one. Who asks is asked whose it is.
CREATE FUNCTION interval_spans(which uuid, of_clinic uuid, of_channel int2, since timestamptz, until timestamptz)
  RETURNS TABLE (from_time timestamptz, to_time timestamptz, interval_ms int4)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH got AS MATERIALIZED (
      SELECT coalesce(max(o.valid_to), '-infinity') AS at FROM device_assignments o
      WHERE o.hardware_id = which AND o.tenant_id <> of_clinic AND o.valid_to <= since)
    SELECT s.from_time, s.to_time, s.interval_ms
    FROM (
      SELECT w.channel, w.from_time, w.interval_ms, lead(w.from_time) OVER (ORDER BY w.from_time, w.channel) AS to_time
      FROM got CROSS JOIN (VALUES (0::int2), (of_channel)) c(channel)
      CROSS JOIN LATERAL (
        (SELECT i.channel, i.from_time, i.interval_ms FROM device_intervals i
         WHERE i.hardware = which AND i.channel = c.channel AND i.from_time BETWEEN got.at AND since
         ORDER BY i.from_time DESC LIMIT 1)
        UNION ALL
        SELECT i.channel, i.from_time, i.interval_ms FROM device_intervals i
        WHERE i.hardware = which AND i.channel = c.channel AND i.from_time > since AND i.from_time < until) w) s
    WHERE s.channel > 0 AND (s.to_time IS NULL OR s.to_time > since) $$;

-- The same of a clinic's wearer, for its pages.
CREATE FUNCTION wearer_interval_spans(wearer uuid, of_channel int2, since timestamptz, until timestamptz)
  RETURNS TABLE (from_time timestamptz, to_time timestamptz, interval_ms int4)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT greatest(a.valid_from, s.from_time), least(a.valid_to, s.to_time), s.interval_ms
    FROM device_assignments a
    CROSS JOIN LATERAL interval_spans(a.hardware_id, a.tenant_id, of_channel, greatest(a.valid_from, since),
      least(a.valid_to, until)) s
    WHERE a.tenant_id = (SELECT current_tenant()) AND a.user_id = wearer
      AND a.valid_from < until AND (a.valid_to IS NULL OR a.valid_to > since) $$;
REVOKE ALL ON FUNCTION interval_spans(uuid, uuid, int2, timestamptz, timestamptz),
  wearer_interval_spans(uuid, int2, timestamptz, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION interval_spans(uuid, uuid, int2, timestamptz, timestamptz) TO kinara_ingest;
GRANT EXECUTE ON FUNCTION wearer_interval_spans(uuid, int2, timestamptz, timestamptz) TO kinara_app;

-- As before, and of each day only the intervals of that day, and none from before the clinic got the device from another one.
CREATE OR REPLACE VIEW wearer_days WITH (security_barrier) AS
  SELECT d.tenant_id, d.user_id, d.day, d.bucket,
    (WITH spans AS MATERIALIZED (
       SELECT greatest(a.valid_from, w.from_time) AS from_time,
         least(coalesce(a.valid_to, 'infinity'), coalesce(w.to_time, 'infinity')) AS to_time, w.interval_ms
       FROM device_assignments a
       CROSS JOIN LATERAL (
         SELECT coalesce(max(o.valid_to), '-infinity') AS at FROM device_assignments o
         WHERE o.hardware_id = a.hardware_id AND o.tenant_id <> a.tenant_id AND o.valid_to <= a.valid_from) got
       CROSS JOIN LATERAL (
         SELECT i.channel, i.from_time, i.interval_ms, lead(i.from_time) OVER (ORDER BY i.from_time, i.channel) AS to_time
         FROM (VALUES (0::int2), (1::int2)) c(channel)
         CROSS JOIN LATERAL (
           (SELECT n.channel, n.from_time, n.interval_ms FROM device_intervals n
            WHERE n.hardware = a.hardware_id AND n.channel = c.channel AND n.from_time >= got.at
              AND n.from_time <= d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours' ORDER BY n.from_time DESC LIMIT 1)
           UNION ALL
           SELECT n.channel, n.from_time, n.interval_ms FROM device_intervals n
           WHERE n.hardware = a.hardware_id AND n.channel = c.channel AND n.from_time >= got.at
             AND n.from_time > d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours'
             AND n.from_time < d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours') i) w
       WHERE a.tenant_id = d.tenant_id AND a.user_id = d.user_id AND w.channel > 0
         AND a.valid_from < d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours'
         AND (a.valid_to IS NULL OR a.valid_to > d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours'))
     SELECT min(q.mean)
     FROM (SELECT z.from_time, lead(z.from_time, 1, 'infinity') OVER (ORDER BY z.from_time) AS to_time,
             CASE WHEN ts.is_zone(z.time_zone) THEN z.time_zone ELSE 'UTC' END AS zone
           FROM user_time_zones z WHERE z.user_id = d.user_id) z
     CROSS JOIN LATERAL (
       SELECT q.bucket, q.mean, q.count FROM ts.readings_15min q
       WHERE q.tenant_id = d.tenant_id AND q.user_id = d.user_id AND q.type = 1
         AND q.bucket >= greatest(z.from_time, d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours')
         AND q.bucket < least(z.to_time, d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours')
         AND (q.bucket AT TIME ZONE z.zone)::date = d.day OFFSET 0) q
     WHERE q.count * coalesce((SELECT max(s.interval_ms) FROM spans s
         WHERE q.bucket >= s.from_time AND q.bucket < s.to_time), 1000)::int8 >= 300000) AS resting_heart_rate,
    (WITH spans AS MATERIALIZED (
       SELECT greatest(a.valid_from, w.from_time) AS from_time,
         least(coalesce(a.valid_to, 'infinity'), coalesce(w.to_time, 'infinity')) AS to_time, w.interval_ms
       FROM device_assignments a
       CROSS JOIN LATERAL (
         SELECT coalesce(max(o.valid_to), '-infinity') AS at FROM device_assignments o
         WHERE o.hardware_id = a.hardware_id AND o.tenant_id <> a.tenant_id AND o.valid_to <= a.valid_from) got
       CROSS JOIN LATERAL (
         SELECT i.channel, i.from_time, i.interval_ms, lead(i.from_time) OVER (ORDER BY i.from_time, i.channel) AS to_time
         FROM (VALUES (0::int2), (1::int2)) c(channel)
         CROSS JOIN LATERAL (
           (SELECT n.channel, n.from_time, n.interval_ms FROM device_intervals n
            WHERE n.hardware = a.hardware_id AND n.channel = c.channel AND n.from_time >= got.at
              AND n.from_time <= d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours' ORDER BY n.from_time DESC LIMIT 1)
           UNION ALL
           SELECT n.channel, n.from_time, n.interval_ms FROM device_intervals n
           WHERE n.hardware = a.hardware_id AND n.channel = c.channel AND n.from_time >= got.at
             AND n.from_time > d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours'
             AND n.from_time < d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours') i) w
       WHERE a.tenant_id = d.tenant_id AND a.user_id = d.user_id AND w.channel > 0
         AND a.valid_from < d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours'
         AND (a.valid_to IS NULL OR a.valid_to > d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours'))
     SELECT coalesce(sum(greatest(60000, (SELECT max(s.interval_ms) FROM spans s
         WHERE m.bucket >= s.from_time AND m.bucket < s.to_time))) / 60000, 0)::int8
     FROM (SELECT z.from_time, lead(z.from_time, 1, 'infinity') OVER (ORDER BY z.from_time) AS to_time,
             CASE WHEN ts.is_zone(z.time_zone) THEN z.time_zone ELSE 'UTC' END AS zone
           FROM user_time_zones z WHERE z.user_id = d.user_id) z
     CROSS JOIN LATERAL (
       SELECT m.bucket FROM ts.readings_minute m WHERE m.tenant_id = d.tenant_id AND m.user_id = d.user_id AND m.type = 1
         AND m.bucket >= greatest(z.from_time, d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours')
         AND m.bucket < least(z.to_time, d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours')
         AND (m.bucket AT TIME ZONE z.zone)::date = d.day OFFSET 0) m) AS worn_minutes
  FROM ts.readings_daily d WHERE d.type = 1 AND d.tenant_id = (select current_tenant());

-- Times of which a rule has to look again, since the interval that was in force then became known later. By hardware, as what was
-- said: an assignment says whose it is. The roll-up makes notes of them for rules, so many hours of a clinic at a time.
CREATE TABLE ts.interval_looks (
  id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES public.tenants ON DELETE CASCADE,
  hardware uuid NOT NULL,
  channel int2 NOT NULL,
  from_time timestamptz NOT NULL,
  to_time timestamptz NOT NULL
);
CREATE INDEX interval_looks_tenant ON ts.interval_looks (tenant_id, id);

-- Notes what words change (channel 0: a boot, with the interval 0) that are in the table already: until the next word of the
-- channel or the next boot, where another interval was in force before, of channels that the clinic which had the device then has
-- a rule about. A word is that clinic's alone, and so is what was in force before it. A row for each channel of a device, however
-- many words there are.
CREATE FUNCTION ts.note_intervals(which uuid[], channels int2[], since timestamptz[], intervals int4[]) RETURNS void
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    -- When each clinic got the device from another one: each assignment is looked at once.
    WITH held AS MATERIALIZED (
      SELECT t.id, max(CASE WHEN t.came THEN t.at END) OVER (PARTITION BY t.hardware_id ORDER BY t.valid_from) AS got
      FROM (SELECT a.id, a.hardware_id, a.valid_from, lag(a.valid_to) OVER turns AS at, lag(a.tenant_id) OVER turns <> a.tenant_id AS came
        FROM public.device_assignments a WHERE a.hardware_id = ANY(which)
        WINDOW turns AS (PARTITION BY a.hardware_id ORDER BY a.valid_from, a.valid_to)) t),
    said AS MATERIALIZED (
      SELECT u.*, o.tenant_id AS clinic, o.id FROM unnest(which, channels, since, intervals) u(hardware, channel, since, interval_ms)
      CROSS JOIN LATERAL (SELECT a.tenant_id, a.id FROM public.device_assignments a
        WHERE a.hardware_id = u.hardware AND tstzrange(a.valid_from, a.valid_to) @> u.since OFFSET 0) o),
    ruled AS MATERIALIZED (
      SELECT DISTINCT r.tenant_id, r.type FROM public.alert_rules r
      WHERE r.tenant_id IN (SELECT s.clinic FROM said s) AND r.type IS NOT NULL AND r.ended_at IS NULL),
    changed AS (
      SELECT s.clinic, s.hardware, r.type, s.since, coalesce(behind.at, 'infinity') AS until
      FROM said s JOIN held h ON h.id = s.id JOIN ruled r ON r.tenant_id = s.clinic AND s.channel IN (0, r.type)
      CROSS JOIN LATERAL (
        SELECT coalesce((
          SELECT w.interval_ms FROM (VALUES (0::int2), (r.type)) c(channel)
          CROSS JOIN LATERAL (SELECT i.from_time, i.channel, i.interval_ms FROM public.device_intervals i
            WHERE i.hardware = s.hardware AND i.channel = c.channel AND i.from_time < s.since
              AND i.from_time >= coalesce(h.got, '-infinity')
            ORDER BY i.from_time DESC LIMIT 1) w
          ORDER BY w.from_time DESC, w.channel DESC LIMIT 1), 0) AS interval_ms) before
      CROSS JOIN LATERAL (
        SELECT min(w.from_time) AS at FROM (VALUES (0::int2), (r.type)) c(channel)
        CROSS JOIN LATERAL (SELECT i.from_time FROM public.device_intervals i
          WHERE i.hardware = s.hardware AND i.channel = c.channel AND i.from_time > s.since
          ORDER BY i.from_time LIMIT 1) w) behind
      WHERE before.interval_ms <> s.interval_ms)
    INSERT INTO ts.interval_looks (tenant_id, hardware, channel, from_time, to_time)
      SELECT c.clinic, c.hardware, c.type, min(c.since), max(c.until) FROM changed c GROUP BY 1, 2, 3 $$;

-- Makes notes for a clinic's rules of the hours that have readings, at most so many; gives how many.
CREATE FUNCTION ts.spread_looks(clinic uuid, most int) RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  look ts.interval_looks;
  spread int := 0;
  done int;
  reached timestamptz;
BEGIN
  -- One for each channel of a device, however many transactions wrote some. Writers only add: none waits for this.
  WITH several AS MATERIALIZED (
    SELECT l.hardware, l.channel FROM ts.interval_looks l WHERE l.tenant_id = clinic GROUP BY 1, 2 HAVING count(*) > 1),
  taken AS (
    DELETE FROM ts.interval_looks WHERE id = ANY(ARRAY(
      SELECT l.id FROM ts.interval_looks l JOIN several s ON s.hardware = l.hardware AND s.channel = l.channel
      WHERE l.tenant_id = clinic FOR UPDATE OF l SKIP LOCKED))
    RETURNING hardware, channel, from_time, to_time)
  INSERT INTO ts.interval_looks (tenant_id, hardware, channel, from_time, to_time)
    SELECT clinic, t.hardware, t.channel, min(t.from_time), max(t.to_time) FROM taken t GROUP BY t.hardware, t.channel;
  FOR look IN SELECT * FROM ts.interval_looks l WHERE l.tenant_id = clinic ORDER BY l.id LIMIT most FOR UPDATE SKIP LOCKED LOOP
    WITH hours AS (
      SELECT a.user_id, h.bucket FROM public.device_assignments a
      CROSS JOIN LATERAL (
        SELECT h.bucket FROM ts.readings_hourly h
        WHERE h.tenant_id = clinic AND h.user_id = a.user_id AND h.type = look.channel
          AND h.bucket > greatest(a.valid_from, look.from_time) - interval '1 hour'
          AND h.bucket < least(a.valid_to, look.to_time)
        ORDER BY h.bucket LIMIT most - spread) h
      WHERE a.tenant_id = clinic AND a.hardware_id = look.hardware
        AND tstzrange(a.valid_from, a.valid_to) && tstzrange(look.from_time, look.to_time)
      ORDER BY h.bucket LIMIT most - spread),
    noted AS (
      INSERT INTO ts.alert_notes (tenant_id, user_id, type, hour) SELECT clinic, h.user_id, look.channel, h.bucket FROM hours h
      RETURNING hour)
    SELECT count(*), max(n.hour) INTO done, reached FROM noted n;
    spread := spread + done;
    IF spread >= most THEN
      -- That hour once more: another wearer may have had the device in it.
      UPDATE ts.interval_looks SET from_time = greatest(from_time, reached) WHERE id = look.id;
      RETURN spread;
    END IF;
    DELETE FROM ts.interval_looks WHERE id = look.id;
  END LOOP;
  RETURN spread;
END $$;

-- As before, and what became known of intervals.
CREATE OR REPLACE FUNCTION ts.queue_looks(clinic uuid) RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  queued int := 0;
BEGIN
  PERFORM ts.spread_looks(clinic, 1000);
  IF EXISTS (SELECT FROM ts.alert_notes n WHERE n.tenant_id = clinic) THEN
    PERFORM jobs.of_clinic('evaluate_alerts', clinic);
    queued := queued + 1;
  END IF;
  IF EXISTS (SELECT FROM ts.inference_notes n WHERE n.tenant_id = clinic) THEN
    PERFORM jobs.of_clinic('infer', clinic);
    queued := queued + 1;
  END IF;
  RETURN queued;
END $$;
CREATE OR REPLACE FUNCTION ts.clinics_to_look_at() RETURNS SETOF uuid
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.id FROM public.tenants t WHERE EXISTS (SELECT FROM ts.alert_notes n WHERE n.tenant_id = t.id)
      OR EXISTS (SELECT FROM ts.inference_notes n WHERE n.tenant_id = t.id)
      OR EXISTS (SELECT FROM ts.interval_looks l WHERE l.tenant_id = t.id) ORDER BY 1 $$;

-- As before, but a thousand events of one hour in one transaction are noted once, and their clinic's job is queued once.
CREATE OR REPLACE FUNCTION ts.note_event() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  at timestamptz := date_bin('1 hour', NEW.time, 'epoch');
  mark text := concat_ws(' ', NEW.tenant_id, NEW.user_id, NEW.kind, extract(epoch FROM at));
BEGIN
  IF TG_OP = 'INSERT' AND current_setting('kinara.noted', true) = mark THEN
    RETURN NULL;
  END IF;
  IF NOT EXISTS (SELECT FROM public.alert_rules r WHERE r.tenant_id = NEW.tenant_id AND r.event_type = NEW.kind
      AND r.ended_at IS NULL) THEN
    RETURN NULL;
  END IF;
  INSERT INTO ts.alert_notes (tenant_id, user_id, hour) VALUES (NEW.tenant_id, NEW.user_id, at);
  IF TG_OP = 'UPDATE' THEN
    INSERT INTO ts.alert_notes (tenant_id, user_id, hour) VALUES
      (OLD.tenant_id, OLD.user_id, date_bin('1 hour', OLD.time, 'epoch'));
  ELSE
    PERFORM set_config('kinara.noted', mark, true);
  END IF;
  IF current_setting('kinara.queued', true) IS DISTINCT FROM NEW.tenant_id::text THEN
    PERFORM jobs.of_clinic('evaluate_alerts', NEW.tenant_id);
    PERFORM set_config('kinara.queued', NEW.tenant_id::text, true);
  END IF;
  RETURN NULL;
END $$;

-- Words about intervals that are older than what is told of days, but for the one that was in force then. In the order of time: a
-- boot goes after all that it ended. So many are looked at; NULL: there are no more.
CREATE FUNCTION forget_intervals(before timestamptz, most int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  come ts.walks := (SELECT w FROM ts.walks w WHERE w.walk = 'intervals');
  since timestamptz := coalesce('epoch'::timestamptz + come.epoch * interval '1 microsecond', '-infinity');
  nil uuid := '00000000-0000-0000-0000-000000000000';
  looked int8;
  gone int8;
BEGIN
  WITH slice AS MATERIALIZED (
    SELECT i.ctid AS at, i.hardware, i.channel, i.from_time FROM device_intervals i
    WHERE (i.from_time, i.hardware) > (since, coalesce(come.id, nil)) AND i.from_time < before
    ORDER BY i.from_time, i.hardware FETCH FIRST most ROWS WITH TIES),
  passed AS (
    INSERT INTO ts.walks AS w (walk, id, epoch)
      SELECT 'intervals', s.hardware, extract(epoch FROM s.from_time) * 1000000 FROM slice s
      ORDER BY s.from_time DESC, s.hardware DESC LIMIT 1
      ON CONFLICT (walk) DO UPDATE SET id = excluded.id, epoch = excluded.epoch),
  deleted AS (
    DELETE FROM device_intervals WHERE ctid = ANY(ARRAY(
      SELECT s.at FROM slice s WHERE EXISTS (SELECT FROM (VALUES (0::int2), (s.channel)) c(channel)
        CROSS JOIN LATERAL (SELECT FROM device_intervals n WHERE n.hardware = s.hardware AND n.channel = c.channel
          AND n.from_time > s.from_time AND n.from_time <= before LIMIT 1) n)))
    RETURNING 1)
  SELECT (SELECT count(*) FROM slice), (SELECT count(*) FROM deleted) INTO looked, gone;
  IF looked = 0 THEN
    DELETE FROM ts.walks w WHERE w.walk = 'intervals';
    RETURN NULL;
  END IF;
  RETURN gone;
END $$;

-- What was said of being worn in epochs whose readings are gone: so many epochs are looked at.
CREATE FUNCTION forget_wear(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH looked AS MATERIALIZED (SELECT e.hardware, e.epoch FROM ts.next_epochs('wear', most) e),
    gone AS (
      DELETE FROM wear WHERE ctid = ANY(ARRAY(
        SELECT w.ctid FROM looked e
          CROSS JOIN LATERAL (
            SELECT FROM ledger l WHERE l.hardware = e.hardware AND l.epoch = e.epoch AND l.updated_at < before OFFSET 0) old
          CROSS JOIN LATERAL (
            SELECT t.ctid FROM wear t WHERE t.hardware = e.hardware AND t.epoch = e.epoch OFFSET 0) w))
      RETURNING 1)
    SELECT CASE WHEN EXISTS (SELECT FROM looked) THEN (SELECT count(*) FROM gone) END $$;

-- Gaps of a clinic's wearers (of one, or of all: NULL) that touch a time, the newest first: devices are asked for those that ended
-- since, and not for all that they ever had.
CREATE FUNCTION gaps_within(wearer uuid, since timestamptz, until timestamptz, most int8)
  RETURNS TABLE (id uuid, user_id uuid, device_id uuid, reason text, from_time timestamptz, to_time timestamptz, frames int8)
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- Planned for these values: a plan for any would read all of a device's.
  RETURN QUERY EXECUTE $sql$
    SELECT w.id, w.user_id, w.device_id, w.reason, w.from_time, w.to_time, w.frames
    FROM public.wearer_gaps w
    WHERE w.id = ANY(ARRAY(
        SELECT t.id
        FROM (SELECT DISTINCT a.hardware_id FROM public.device_assignments a
              WHERE a.tenant_id = (SELECT public.current_tenant()) AND ($1 IS NULL OR a.user_id = $1)
                AND a.valid_from <= $3 AND (a.valid_to IS NULL OR a.valid_to >= $2)) h
        CROSS JOIN LATERAL (
          SELECT g.id FROM public.gaps g WHERE g.hardware = h.hardware_id AND g.withdrawn_at IS NULL AND g.to_time >= $2
            AND (g.from_time IS NULL OR g.from_time <= $3)
          UNION ALL
          SELECT g.id FROM public.gaps g WHERE g.hardware = h.hardware_id AND g.withdrawn_at IS NULL AND g.to_time IS NULL
            AND (g.from_time IS NULL OR g.from_time <= $3)) t))
      AND ($1 IS NULL OR w.user_id = $1)
      AND (w.from_time IS NULL OR w.from_time <= $3) AND (w.to_time IS NULL OR w.to_time >= $2)
    ORDER BY w.from_time DESC NULLS FIRST, w.id LIMIT $4$sql$ USING wearer, since, until, most;
END $$;

-- The newest events of a clinic in a period. A view hands its rows on without their order: all of the period's would be read.
CREATE FUNCTION newest_events(since timestamptz, until timestamptz, most int8)
  RETURNS TABLE ("time" timestamptz, user_id uuid, device_id uuid, event_type varchar, severity varchar, confidence real,
    data jsonb, acknowledged_at timestamptz)
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY EXECUTE format($sql$
    SELECT e.time, e.user_id, e.device_id, e.event_type, e.severity, e.confidence, e.data, e.acknowledged_at
    FROM ts.events e
    WHERE e.tenant_id = $1 AND e.user_id <> '00000000-0000-0000-0000-000000000000'
      AND e.time >= %L::timestamptz AND e.time <= %L::timestamptz
    ORDER BY e.time DESC LIMIT $2$sql$, since, until) USING public.current_tenant(), most;
END $$;
REVOKE ALL ON FUNCTION gaps_within(uuid, timestamptz, timestamptz, int8),
  newest_events(timestamptz, timestamptz, int8) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gaps_within(uuid, timestamptz, timestamptz, int8),
  newest_events(timestamptz, timestamptz, int8) TO kinara_app;

-- Which events are in. One that is older than readings are kept is refused for its age, before anybody asks whether it is in.
CREATE FUNCTION forget_event_keys(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
      DELETE FROM event_keys WHERE ctid = ANY(ARRAY(
        SELECT k.ctid FROM event_keys k WHERE k.time < before ORDER BY k.time LIMIT most))
      RETURNING 1)
    SELECT nullif(count(*), 0) FROM gone $$;
-- Moves that were carried out. One stays while another is open that may have to take on what it brought: that one has not made a
-- whole pass since (upkeep.rs, SETTLE).
CREATE FUNCTION forget_moves(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
      DELETE FROM moves WHERE ctid = ANY(ARRAY(
        SELECT m.ctid FROM moves m WHERE m.settled_at < before AND NOT EXISTS (
          SELECT FROM moves o WHERE o.settled_at IS NULL AND o.from_user = m.to_user AND o.pass_at <= m.settled_at)
        ORDER BY m.settled_at LIMIT most))
      RETURNING 1)
    SELECT nullif(count(*), 0) FROM gone $$;
-- Introductions and revocations that were carried out, or whose time was over.
CREATE FUNCTION forget_asked(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH introduced AS (
      DELETE FROM introductions WHERE ctid = ANY(ARRAY(
        SELECT i.ctid FROM introductions i WHERE i.settled_at < before ORDER BY i.settled_at LIMIT most))
      RETURNING 1),
    revoked AS (
      DELETE FROM revocations WHERE ctid = ANY(ARRAY(
        SELECT r.ctid FROM revocations r WHERE r.settled_at < before ORDER BY r.settled_at LIMIT most))
      RETURNING 1)
    SELECT nullif((SELECT count(*) FROM introduced) + (SELECT count(*) FROM revoked), 0) $$;
REVOKE ALL ON FUNCTION forget_event_keys(timestamptz, int), forget_moves(timestamptz, int),
  forget_asked(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_event_keys(timestamptz, int), forget_moves(timestamptz, int),
  forget_asked(timestamptz, int) TO kinara_ingest;

-- What gateways say of themselves: the newest is kept. A gateway that draws a life, or an epoch, for each of its words fills no
-- table.
CREATE FUNCTION ts.thin_lives(which uuid, most int) RETURNS void
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM public.gateway_buffers b WHERE b.gateway_id = which AND b.buffer = ANY(ARRAY(
      SELECT o.buffer FROM public.gateway_buffers o WHERE o.gateway_id = which
      ORDER BY o.first_seen_at DESC, o.buffer OFFSET most)) $$;
CREATE FUNCTION ts.thin_delivered(which uuid, of_hardware uuid[], most int) RETURNS void
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM public.gateway_delivered d USING (SELECT DISTINCT h FROM unnest(of_hardware) h) t
    WHERE d.gateway_id = which AND d.hardware = t.h AND d.epoch = ANY(ARRAY(
      SELECT o.epoch FROM public.gateway_delivered o WHERE o.gateway_id = which AND o.hardware = t.h
      ORDER BY o.told_at DESC, o.epoch OFFSET most)) $$;
CREATE FUNCTION ts.thin_firmware(of_devices uuid[], most int) RETURNS void
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM public.device_firmware f USING (SELECT DISTINCT d FROM unnest(of_devices) d) t
    WHERE f.device_id = t.d AND f.epoch = ANY(ARRAY(
      SELECT o.epoch FROM public.device_firmware o WHERE o.device_id = t.d
      ORDER BY o.told_at DESC, o.epoch DESC OFFSET most)) $$;

-- Open gaps that stood still, some of each wearable, wearable after wearable from where it was left: however many one of them has,
-- the next one's turn comes. Of one wearable's, those that were not looked at for longest.
CREATE FUNCTION ts.gaps_to_look_at(before timestamptz, most int, apiece int) RETURNS TABLE (id uuid, hardware uuid)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  nil uuid := '00000000-0000-0000-0000-000000000000';
  since uuid := coalesce((SELECT w.id FROM ts.walks w WHERE w.walk = 'late gaps'), nil);
  ids uuid[];
  whose uuid[];
BEGIN
  LOOP
    WITH RECURSIVE wearables AS (
      (SELECT g.hardware FROM public.gaps g WHERE g.reason = 'late' AND g.withdrawn_at IS NULL AND g.hardware > since
       ORDER BY g.hardware LIMIT 1)
      UNION ALL
      SELECT (SELECT g.hardware FROM public.gaps g WHERE g.reason = 'late' AND g.withdrawn_at IS NULL
        AND g.hardware > w.hardware ORDER BY g.hardware LIMIT 1)
      FROM wearables w WHERE w.hardware IS NOT NULL),
    found AS (
      SELECT l.id, w.hardware FROM wearables w
      CROSS JOIN LATERAL (
        SELECT g.id FROM public.gaps g WHERE g.hardware = w.hardware AND g.reason = 'late' AND g.withdrawn_at IS NULL
          AND g.updated_at < before ORDER BY coalesce(g.looked_at, g.created_at) LIMIT apiece) l
      WHERE w.hardware IS NOT NULL LIMIT most)
    SELECT array_agg(f.id), array_agg(f.hardware) INTO ids, whose FROM found f;
    EXIT WHEN ids IS NOT NULL OR since = nil;
    since := nil;
  END LOOP;
  IF cardinality(ids) = most THEN
    INSERT INTO ts.walks AS w (walk, id) VALUES ('late gaps', whose[most]) ON CONFLICT (walk) DO UPDATE SET id = excluded.id;
  ELSE
    DELETE FROM ts.walks w WHERE w.walk = 'late gaps';
  END IF;
  RETURN QUERY SELECT * FROM unnest(ids, whose);
END $$;

-- As before, but a device's hour with more intervals than a heart has (five a second) says nothing: they would all be in memory at
-- once. Other devices of the wearer are heard all the same.
CREATE OR REPLACE FUNCTION ts.take_hrv(most int, raw_from timestamptz)
  RETURNS TABLE (tenant_id uuid, user_id uuid, hour timestamptz, device_id uuid, times timestamptz[], intervals float8[])
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  note record;
  believed CONSTANT int := 20000;
  -- Of all devices together so many are looked at.
  most_of_all CONSTANT int := 10 * believed;
  there int8;
  devices uuid[];
  -- By lot, so that one wearer's hours keep no others from being done.
  beginning uuid := gen_random_uuid();
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended('kinara hrv', 0)) THEN
    RETURN;
  END IF;
  FOR note IN
    WITH taken AS (
      DELETE FROM ts.stale_hrv WHERE ctid = ANY(ARRAY(
        WITH chosen AS (
          SELECT * FROM (
            (SELECT DISTINCT s.* FROM ts.stale_hrv s WHERE s.user_id >= beginning
             ORDER BY s.user_id, s.tenant_id, s.hour LIMIT most)
            UNION ALL
            (SELECT DISTINCT s.* FROM ts.stale_hrv s WHERE s.user_id < beginning
             ORDER BY s.user_id, s.tenant_id, s.hour LIMIT most)) turn
          LIMIT most)
        SELECT n.ctid FROM chosen c CROSS JOIN LATERAL (
          SELECT s.ctid FROM ts.stale_hrv s WHERE s.tenant_id = c.tenant_id AND s.user_id = c.user_id AND s.hour = c.hour
          OFFSET 0) n))
      RETURNING stale_hrv)
    SELECT DISTINCT (t.stale_hrv).* FROM taken t
  LOOP
    CONTINUE WHEN note.hour < raw_from;
    EXECUTE format($sql$
      SELECT sum(d.there), array_agg(d.device_id) FILTER (WHERE d.good <= $4)
      FROM (
        SELECT those.device_id, count(*) AS there, count(*) FILTER (WHERE those.quality > 0) AS good
        FROM (
          SELECT r.device_id, r.quality FROM ts.readings r WHERE r.tenant_id = $1 AND r.user_id = $2 AND r.type = 2
            AND r.time >= %1$L::timestamptz AND r.time < %2$L::timestamptz LIMIT $3) those
        GROUP BY 1) d$sql$, note.hour, note.hour + interval '1 hour')
      INTO there, devices USING note.tenant_id, note.user_id, most_of_all + 1, believed;
    IF there <= most_of_all THEN
      RETURN QUERY EXECUTE format($sql$
        SELECT $1, $2, %1$L::timestamptz, r.device_id, array_agg(r.time ORDER BY r.time, r.epoch, r.seq, r.idx),
          array_agg(r.value ORDER BY r.time, r.epoch, r.seq, r.idx)
        FROM ts.readings r WHERE r.tenant_id = $1 AND r.user_id = $2 AND r.type = 2
          AND r.time >= %1$L::timestamptz AND r.time < %2$L::timestamptz AND r.quality > 0 AND r.device_id = ANY($3)
        GROUP BY r.device_id ORDER BY r.device_id$sql$, note.hour, note.hour + interval '1 hour')
        USING note.tenant_id, note.user_id, devices;
      CONTINUE WHEN FOUND;
    END IF;
    -- What was made of them has to go.
    RETURN QUERY SELECT note.tenant_id, note.user_id, note.hour, NULL::uuid, '{}'::timestamptz[], '{}'::float8[];
  END LOOP;
END $$;

-- As before, and an hour with more samples than three times what wearables measure at full rate says nothing.
CREATE OR REPLACE FUNCTION ts.take_inference_notes(tenant uuid, most int, raw_from timestamptz, margin interval, around interval)
  RETURNS TABLE (device varchar, hour timestamptz, types int2[], times timestamptz[], vals float8[],
    producers varchar[], onsets timestamptz[])
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  of record;
  believed CONSTANT int := 100000;
  there int8;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('kinara inference ' || tenant, 0));
  FOR of IN
    WITH chosen AS (SELECT n.ctid FROM ts.inference_notes n WHERE n.tenant_id = tenant LIMIT most),
    taken AS (
      DELETE FROM ts.inference_notes n USING chosen c WHERE n.ctid = c.ctid AND n.tenant_id = tenant
      RETURNING n.user_id, n.hour)
    SELECT DISTINCT t.user_id, t.hour AS since, d.id, d.hardware_id, a.hardware_id AS hardware
    FROM taken t
    JOIN public.device_assignments a ON a.tenant_id = tenant AND a.user_id = t.user_id
    JOIN public.devices d ON d.id = a.device_id AND d.hardware_id IS NOT NULL
    WHERE t.hour >= raw_from ORDER BY 4, 2
  LOOP
    EXECUTE format($sql$
      SELECT count(*) FROM (
        SELECT FROM ts.readings r WHERE r.tenant_id = $1 AND r.user_id = $2 AND r.type IN (1, 2, 3, 5, 7)
          AND r.time >= %1$L::timestamptz AND r.time < %2$L::timestamptz AND r.device_id = $3 LIMIT $4) those$sql$,
      of.since - margin, of.since + interval '1 hour' + margin)
      INTO there USING tenant, of.user_id, of.id, believed + 1;
    CONTINUE WHEN there > believed;
    RETURN QUERY EXECUTE format($sql$
      SELECT $1::varchar, %1$L::timestamptz, s.types, s.times, s.vals, e.producers, e.onsets
      FROM (
        SELECT array_agg(r.type ORDER BY r.time, r.type, r.idx) AS types,
          array_agg(r.time ORDER BY r.time, r.type, r.idx) AS times,
          array_agg(r.value ORDER BY r.time, r.type, r.idx) AS vals
        FROM ts.readings r WHERE r.tenant_id = $2 AND r.user_id = $3 AND r.type IN (1, 2, 3, 5, 7)
          AND r.time >= %2$L::timestamptz AND r.time < %3$L::timestamptz AND r.device_id = $4 AND r.quality > 0
          AND EXISTS (SELECT FROM public.ledger l WHERE l.hardware = $5 AND l.epoch = r.epoch AND l.named)) s
      CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(k.producer ORDER BY k.time), '{}') AS producers,
          coalesce(array_agg(k.time ORDER BY k.time), '{}') AS onsets
        FROM public.event_keys k WHERE k.hardware = $5 AND k.epoch = 0
          AND k.time >= %4$L::timestamptz AND k.time < %5$L::timestamptz) e
      WHERE s.types IS NOT NULL$sql$, of.since, of.since - margin, of.since + interval '1 hour' + margin,
      of.since - around, of.since + interval '1 hour' + around)
      USING of.hardware_id, tenant, of.user_id, of.id, of.hardware;
  END LOOP;
END $$;

-- As before, and each assignment is looked at once, however often the device was given on.
CREATE OR REPLACE FUNCTION ts.numbers_of(which uuid, of_epoch int8, told_at timestamptz)
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
        min(a.first_seq) FILTER (WHERE a.first_epoch = of_epoch)
          OVER (ORDER BY a.valid_from DESC GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS next_first
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

REVOKE ALL ON FUNCTION ts.note_intervals(uuid[], int2[], timestamptz[], int4[]), ts.spread_looks(uuid, int),
  forget_intervals(timestamptz, int), forget_wear(timestamptz, int), ts.thin_lives(uuid, int),
  ts.thin_delivered(uuid, uuid[], int), ts.thin_firmware(uuid[], int), ts.gaps_to_look_at(timestamptz, int, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.note_intervals(uuid[], int2[], timestamptz[], int4[]),
  forget_intervals(timestamptz, int), forget_wear(timestamptz, int), ts.thin_lives(uuid, int),
  ts.thin_delivered(uuid, uuid[], int), ts.thin_firmware(uuid[], int), ts.gaps_to_look_at(timestamptz, int, int) TO kinara_ingest;
RESET ROLE;
