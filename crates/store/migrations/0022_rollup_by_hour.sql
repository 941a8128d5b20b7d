-- Housekeeping whose cost is that of what it is about, however much else there is; and what it derives is right where
-- clocks are not.
--
-- A join of a list of hours with a table that grows was planned as a scan of all of it, as soon as there were statistics.
-- So a list is gone through entry by entry (LATERAL, which OFFSET 0 keeps the planner from undoing), and where the table has
-- partitions the times are in the statement's text, so that no other partition is even planned.
SET ROLE kinara_owner;

CREATE INDEX stale_note ON ts.stale (tenant_id, user_id, type, hour, days_only);
CREATE INDEX stale_hrv_note ON ts.stale_hrv (user_id, tenant_id, hour);

-- Names of time zones that are another's by now (tzdata's file `backward`): a database's next version may know them no more.
CREATE TABLE ts.zone_links (
  alias text PRIMARY KEY, -- in lower case
  name text NOT NULL
);
INSERT INTO ts.zone_links VALUES
('africa/asmera', 'Africa/Asmara'), ('africa/timbuktu', 'Africa/Bamako'), ('america/argentina/comodrivadavia', 
'America/Argentina/Catamarca'), ('america/atka', 'America/Adak'), ('america/buenos_aires', 
'America/Argentina/Buenos_Aires'), ('america/catamarca', 'America/Argentina/Catamarca'), ('america/coral_harbour', 
'America/Atikokan'), ('america/cordoba', 'America/Argentina/Cordoba'), ('america/ensenada', 'America/Tijuana'), 
('america/fort_wayne', 'America/Indiana/Indianapolis'), ('america/godthab', 'America/Nuuk'), ('america/indianapolis', 
'America/Indiana/Indianapolis'), ('america/jujuy', 'America/Argentina/Jujuy'), ('america/knox_in', 'America/Indiana/Knox'), 
('america/louisville', 'America/Kentucky/Louisville'), ('america/mendoza', 'America/Argentina/Mendoza'), 
('america/montreal', 'America/Toronto'), ('america/nipigon', 'America/Toronto'), ('america/pangnirtung', 
'America/Iqaluit'), ('america/porto_acre', 'America/Rio_Branco'), ('america/rainy_river', 'America/Winnipeg'), 
('america/rosario', 'America/Argentina/Cordoba'), ('america/santa_isabel', 'America/Tijuana'), ('america/shiprock', 
'America/Denver'), ('america/thunder_bay', 'America/Toronto'), ('america/virgin', 'America/St_Thomas'), 
('america/yellowknife', 'America/Edmonton'), ('antarctica/south_pole', 'Antarctica/McMurdo'), ('asia/ashkhabad', 
'Asia/Ashgabat'), ('asia/calcutta', 'Asia/Kolkata'), ('asia/choibalsan', 'Asia/Ulaanbaatar'), ('asia/chongqing', 
'Asia/Shanghai'), ('asia/chungking', 'Asia/Shanghai'), ('asia/dacca', 'Asia/Dhaka'), ('asia/harbin', 'Asia/Shanghai'), 
('asia/istanbul', 'Europe/Istanbul'), ('asia/kashgar', 'Asia/Urumqi'), ('asia/katmandu', 'Asia/Kathmandu'), ('asia/macao', 
'Asia/Macau'), ('asia/rangoon', 'Asia/Yangon'), ('asia/saigon', 'Asia/Ho_Chi_Minh'), ('asia/tel_aviv', 'Asia/Jerusalem'), 
('asia/thimbu', 'Asia/Thimphu'), ('asia/ujung_pandang', 'Asia/Makassar'), ('asia/ulan_bator', 'Asia/Ulaanbaatar'), 
('atlantic/faeroe', 'Atlantic/Faroe'), ('atlantic/jan_mayen', 'Arctic/Longyearbyen'), ('australia/act', 
'Australia/Sydney'), ('australia/canberra', 'Australia/Sydney'), ('australia/currie', 'Australia/Hobart'), 
('australia/lhi', 'Australia/Lord_Howe'), ('australia/nsw', 'Australia/Sydney'), ('australia/north', 'Australia/Darwin'), 
('australia/queensland', 'Australia/Brisbane'), ('australia/south', 'Australia/Adelaide'), ('australia/tasmania', 
'Australia/Hobart'), ('australia/victoria', 'Australia/Melbourne'), ('australia/west', 'Australia/Perth'), 
('australia/yancowinna', 'Australia/Broken_Hill'), ('brazil/acre', 'America/Rio_Branco'), ('brazil/denoronha', 
'America/Noronha'), ('brazil/east', 'America/Sao_Paulo'), ('brazil/west', 'America/Manaus'), ('cet', 'Europe/Brussels'), 
('cst6cdt', 'America/Chicago'), ('canada/atlantic', 'America/Halifax'), ('canada/central', 'America/Winnipeg'), 
('canada/eastern', 'America/Toronto'), ('canada/mountain', 'America/Edmonton'), ('canada/newfoundland', 
'America/St_Johns'), ('canada/pacific', 'America/Vancouver'), ('canada/saskatchewan', 'America/Regina'), ('canada/yukon', 
'America/Whitehorse'), ('chile/continental', 'America/Santiago'), ('chile/easterisland', 'Pacific/Easter'), ('cuba', 
'America/Havana'), ('eet', 'Europe/Athens'), ('est', 'America/Panama'), ('est5edt', 'America/New_York'), ('egypt', 
'Africa/Cairo'), ('eire', 'Europe/Dublin'), ('etc/gmt+0', 'Etc/GMT'), ('etc/gmt-0', 'Etc/GMT'), ('etc/gmt0', 'Etc/GMT'), 
('etc/greenwich', 'Etc/GMT'), ('etc/uct', 'UTC'), ('etc/utc', 'UTC'), ('etc/universal', 'UTC'), ('etc/zulu', 'UTC'), 
('europe/belfast', 'Europe/London'), ('europe/kiev', 'Europe/Kyiv'), ('europe/nicosia', 'Asia/Nicosia'), 
('europe/tiraspol', 'Europe/Chisinau'), ('europe/uzhgorod', 'Europe/Kyiv'), ('europe/zaporozhye', 'Europe/Kyiv'), ('gb', 
'Europe/London'), ('gb-eire', 'Europe/London'), ('gmt+0', 'Etc/GMT'), ('gmt-0', 'Etc/GMT'), ('gmt0', 'Etc/GMT'), 
('greenwich', 'Etc/GMT'), ('hst', 'Pacific/Honolulu'), ('hongkong', 'Asia/Hong_Kong'), ('iceland', 'Atlantic/Reykjavik'), 
('iran', 'Asia/Tehran'), ('israel', 'Asia/Jerusalem'), ('jamaica', 'America/Jamaica'), ('japan', 'Asia/Tokyo'), 
('kwajalein', 'Pacific/Kwajalein'), ('libya', 'Africa/Tripoli'), ('met', 'Europe/Brussels'), ('mst', 'America/Phoenix'), 
('mst7mdt', 'America/Denver'), ('mexico/bajanorte', 'America/Tijuana'), ('mexico/bajasur', 'America/Mazatlan'), 
('mexico/general', 'America/Mexico_City'), ('nz', 'Pacific/Auckland'), ('nz-chat', 'Pacific/Chatham'), ('navajo', 
'America/Denver'), ('prc', 'Asia/Shanghai'), ('pst8pdt', 'America/Los_Angeles'), ('pacific/enderbury', 'Pacific/Kanton'), 
('pacific/johnston', 'Pacific/Honolulu'), ('pacific/ponape', 'Pacific/Pohnpei'), ('pacific/samoa', 'Pacific/Pago_Pago'), 
('pacific/truk', 'Pacific/Chuuk'), ('pacific/yap', 'Pacific/Chuuk'), ('poland', 'Europe/Warsaw'), ('portugal', 
'Europe/Lisbon'), ('roc', 'Asia/Taipei'), ('rok', 'Asia/Seoul'), ('singapore', 'Asia/Singapore'), ('turkey', 
'Europe/Istanbul'), ('uct', 'UTC'), ('us/alaska', 'America/Anchorage'), ('us/aleutian', 'America/Adak'), ('us/arizona', 
'America/Phoenix'), ('us/central', 'America/Chicago'), ('us/east-indiana', 'America/Indiana/Indianapolis'), ('us/eastern', 
'America/New_York'), ('us/hawaii', 'Pacific/Honolulu'), ('us/indiana-starke', 'America/Indiana/Knox'), ('us/michigan', 
'America/Detroit'), ('us/mountain', 'America/Denver'), ('us/pacific', 'America/Los_Angeles'), ('us/pacific-new', 
'America/Los_Angeles'), ('us/samoa', 'Pacific/Pago_Pago'), ('universal', 'UTC'), ('w-su', 'Europe/Moscow'), ('wet', 
'Europe/Lisbon'), ('zulu', 'UTC');

CREATE FUNCTION ts.canonical_zone(given text) RETURNS text
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT l.name FROM ts.zone_links l WHERE l.alias = lower(given) AND ts.is_zone(l.name)), given) $$;

CREATE FUNCTION ts.name_zone() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  NEW.time_zone := ts.canonical_zone(NEW.time_zone);
  RETURN NEW;
END $$;

-- The rules are the same under both names: nobody's days are stale for it.
ALTER TABLE users DISABLE TRIGGER time_zone_changed;
ALTER TABLE user_time_zones DISABLE TRIGGER days_stale;
UPDATE users SET time_zone = ts.canonical_zone(time_zone) WHERE time_zone <> ts.canonical_zone(time_zone);
UPDATE tenants SET time_zone = ts.canonical_zone(time_zone) WHERE time_zone <> ts.canonical_zone(time_zone);
UPDATE user_time_zones SET time_zone = ts.canonical_zone(time_zone) WHERE time_zone <> ts.canonical_zone(time_zone);
ALTER TABLE users ENABLE TRIGGER time_zone_changed;
ALTER TABLE user_time_zones ENABLE TRIGGER days_stale;
CREATE TRIGGER time_zone_named BEFORE INSERT OR UPDATE OF time_zone ON users FOR EACH ROW EXECUTE FUNCTION ts.name_zone();
CREATE TRIGGER time_zone_named BEFORE INSERT OR UPDATE OF time_zone ON tenants FOR EACH ROW EXECUTE FUNCTION ts.name_zone();
CREATE TRIGGER time_zone_named BEFORE INSERT OR UPDATE OF time_zone ON user_time_zones FOR EACH ROW
  EXECUTE FUNCTION ts.name_zone();

-- The zone that a name stands for here; UTC where this server knows none of that name.
CREATE FUNCTION ts.usable_zone(name text) RETURNS text
  LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN ts.is_zone(name) THEN name ELSE 'UTC' END $$;

CREATE OR REPLACE FUNCTION ts.zone_at(which uuid, at timestamptz) RETURNS text
  LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((SELECT ts.usable_zone(time_zone) FROM public.user_time_zones WHERE user_id = which AND from_time <= at
      ORDER BY from_time DESC LIMIT 1), 'UTC') $$;

-- Where a wearer's clock stood from when until when.
CREATE FUNCTION ts.zones_of(which uuid) RETURNS TABLE (from_time timestamptz, to_time timestamptz, zone text)
  LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT z.from_time, lead(z.from_time, 1, 'infinity') OVER (ORDER BY z.from_time), ts.usable_zone(z.time_zone)
    FROM public.user_time_zones z WHERE z.user_id = which $$;

-- Names that this server does not know. Days are made by UTC for them.
CREATE TABLE ts.unknown_zones (
  time_zone text PRIMARY KEY,
  since timestamptz NOT NULL DEFAULT now()
);

-- Looks whether every name is known. Days of one that is known again are made anew. Gives those that are not.
CREATE FUNCTION ts.check_zones() RETURNS TABLE (zone text, wearers int8)
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  again text[];
BEGIN
  WITH known AS (DELETE FROM ts.unknown_zones u WHERE ts.is_zone(u.time_zone) RETURNING u.time_zone)
  SELECT array_agg(time_zone) INTO again FROM known;
  IF again IS NOT NULL THEN
    UPDATE public.user_time_zones z SET time_zone = z.time_zone WHERE z.time_zone = ANY(again);
  END IF;
  INSERT INTO ts.unknown_zones (time_zone)
    SELECT n.time_zone FROM (SELECT DISTINCT z.time_zone FROM public.user_time_zones z) n WHERE NOT ts.is_zone(n.time_zone)
    ON CONFLICT DO NOTHING;
  RETURN QUERY SELECT u.time_zone, (SELECT count(DISTINCT z.user_id) FROM public.user_time_zones z
    WHERE z.time_zone = u.time_zone) FROM ts.unknown_zones u ORDER BY 1;
END $$;

-- One roll-up of a clinic at a time: who comes second would make the same rows. Whoever changes a zone waits for the one
-- that goes on, which has read the former zone.
CREATE FUNCTION ts.roll_up_lock(clinic uuid) RETURNS int8 LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT hashtextextended('kinara roll-up ' || clinic, 0) $$;

CREATE OR REPLACE FUNCTION ts.note_stale_days() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  entry public.user_time_zones := coalesce(NEW, OLD);
BEGIN
  PERFORM pg_advisory_xact_lock(ts.roll_up_lock(entry.tenant_id));
  INSERT INTO ts.stale (tenant_id, user_id, type, hour, days_only)
    SELECT h.tenant_id, h.user_id, h.type, h.bucket, true FROM ts.readings_hourly h
    WHERE h.tenant_id = entry.tenant_id AND h.user_id = entry.user_id
      AND h.bucket >= entry.from_time - interval '1 hour'
      AND h.bucket < coalesce((SELECT min(z.from_time) FROM public.user_time_zones z
        WHERE z.user_id = entry.user_id AND z.from_time > entry.from_time), 'infinity');
  RETURN NULL;
END $$;

-- A wearer's local day is within these hours of UTC, wherever they are and travel to: UTC+14 is the first to begin it,
-- UTC-12 the last to end it.
CREATE FUNCTION ts.day_from(day date) RETURNS timestamptz LANGUAGE sql IMMUTABLE
  AS $$ SELECT day::timestamp AT TIME ZONE 'UTC' - interval '14 hours' $$;
CREATE FUNCTION ts.day_to(day date) RETURNS timestamptz LANGUAGE sql IMMUTABLE
  AS $$ SELECT day::timestamp AT TIME ZONE 'UTC' + interval '36 hours' $$;

-- A local day's first moment. Every zone of today is a multiple of a quarter of an hour away from UTC.
CREATE FUNCTION ts.day_begins(which uuid, day date) RETURNS timestamptz
  LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT min(q) FROM ts.zones_of(which) z
    CROSS JOIN LATERAL generate_series(ts.day_from(day), ts.day_to(day), interval '15 minutes') q
    WHERE q >= z.from_time AND q < z.to_time AND (q AT TIME ZONE z.zone)::date = day $$;

-- Makes a level of aggregates anew from the finer one, for these hours.
CREATE FUNCTION ts.coarsen(coarse text, fine text, width interval, hours ts.stale[]) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ts.forget_hours(coarse, hours);
  EXECUTE format($sql$
    INSERT INTO ts.%I (tenant_id, user_id, type, bucket, count, mean, m2, min, max)
      SELECT h.tenant_id, h.user_id, h.type, c.* FROM unnest($1) h
      CROSS JOIN LATERAL (
        SELECT wide, sum(count), min(together), sum(m2 + count * (mean - together) ^ 2), min(min), max(max)
        FROM (
          SELECT f.*, date_bin($2, f.bucket, 'epoch') AS wide, sum(f.count * f.mean) OVER w / sum(f.count) OVER w AS together
          FROM ts.%I f WHERE f.tenant_id = h.tenant_id AND f.user_id = h.user_id AND f.type = h.type
            AND f.bucket >= h.hour AND f.bucket < h.hour + interval '1 hour'
          WINDOW w AS (PARTITION BY date_bin($2, f.bucket, 'epoch'))) parts
        GROUP BY wide) c$sql$, coarse, fine) USING hours, width;
END $$;

-- Deletes what a level of aggregates has of these hours.
CREATE FUNCTION ts.forget_hours(level text, hours ts.stale[]) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  EXECUTE format($sql$
    DELETE FROM ts.%1$I WHERE ctid = ANY(ARRAY(
      SELECT old.ctid FROM unnest($1) h CROSS JOIN LATERAL (
        SELECT m.ctid FROM ts.%1$I m WHERE m.tenant_id = h.tenant_id AND m.user_id = h.user_id AND m.type = h.type
          AND m.bucket >= h.hour AND m.bucket < h.hour + interval '1 hour' OFFSET 0) old))$sql$, level) USING hours;
END $$;

-- Minutes from readings.
CREATE FUNCTION ts.roll_up_minutes(hours ts.stale[]) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  of record;
BEGIN
  PERFORM ts.forget_hours('readings_minute', hours);
  FOR of IN SELECT h.hour, array_agg(h) AS notes FROM unnest(hours) h GROUP BY 1 LOOP
    EXECUTE format($sql$
      INSERT INTO ts.readings_minute (tenant_id, user_id, type, bucket, count, mean, m2, min, max)
        SELECT h.tenant_id, h.user_id, h.type, m.* FROM unnest($1) h
        CROSS JOIN LATERAL (
          SELECT date_bin('1 minute', r.time, 'epoch'), count(*), avg(r.value), coalesce(var_pop(r.value) * count(*), 0),
            min(r.value), max(r.value)
          FROM ts.readings r WHERE r.tenant_id = h.tenant_id AND r.user_id = h.user_id AND r.type = h.type
            AND r.time >= %L::timestamptz AND r.time < %L::timestamptz AND r.quality > 0
          GROUP BY 1) m$sql$, of.hour, of.hour + interval '1 hour') USING of.notes;
  END LOOP;
END $$;

-- Local days from quarters of an hour.
CREATE FUNCTION ts.roll_up_days(days ts.stale_day[]) RETURNS void
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM ts.readings_daily WHERE ctid = ANY(ARRAY(
    SELECT old.ctid FROM unnest(days) d CROSS JOIN LATERAL (
      SELECT m.ctid FROM ts.readings_daily m
      WHERE m.tenant_id = d.tenant_id AND m.user_id = d.user_id AND m.type = d.type AND m.day = d.day OFFSET 0) old));
  INSERT INTO ts.readings_daily (tenant_id, user_id, type, day, bucket, count, mean, m2, min, max)
    SELECT d.tenant_id, d.user_id, d.type, d.day, ts.day_begins(d.user_id, d.day), c.* FROM unnest(days) d
    CROSS JOIN LATERAL (
      SELECT sum(count), min(together), sum(m2 + count * (mean - together) ^ 2), min(min), max(max)
      FROM (
        SELECT f.*, sum(f.count * f.mean) OVER () / sum(f.count) OVER () AS together
        FROM (
          SELECT q.* FROM ts.zones_of(d.user_id) z
          CROSS JOIN LATERAL (
            SELECT * FROM ts.readings_15min f
            WHERE f.tenant_id = d.tenant_id AND f.user_id = d.user_id AND f.type = d.type
              AND f.bucket >= greatest(ts.day_from(d.day), z.from_time)
              AND f.bucket < least(ts.day_to(d.day), z.to_time)
              AND (f.bucket AT TIME ZONE z.zone)::date = d.day OFFSET 0) q) f) parts
      HAVING count(*) > 0) c;
END $$;

-- Recomputes up to so many hours of a clinic, with all the notes there are of them; gives how many. NULL: of all clinics, one
-- after another. Readings before `raw_from` may be gone: what is there of that time stays. Nothing is done for a clinic of
-- which another session does it.
DROP FUNCTION ts.roll_up(int, timestamptz);
CREATE FUNCTION ts.roll_up(most int, raw_from timestamptz, clinic uuid DEFAULT NULL) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  notes ts.stale[];
  hours ts.stale[];
  days ts.stale_day[];
  one uuid;
  total int8 := 0;
  -- A wearer whose hours cannot be done in time is not the first one every time.
  beginning uuid := gen_random_uuid();
BEGIN
  IF clinic IS NULL THEN
    FOR one IN SELECT ts.stale_clinics() LOOP
      total := total + ts.roll_up((most - total)::int, raw_from, one);
      EXIT WHEN total >= most;
    END LOOP;
    RETURN total;
  END IF;
  IF NOT pg_try_advisory_xact_lock(ts.roll_up_lock(clinic)) THEN
    RETURN 0;
  END IF;
  -- A writer that has not committed yet leaves its note for the next time; a note that is seen here comes with its rows.
  WITH taken AS (
    DELETE FROM ts.stale WHERE ctid = ANY(ARRAY(
      WITH chosen AS (
        SELECT * FROM (
          (SELECT DISTINCT s.* FROM ts.stale s WHERE s.tenant_id = clinic AND s.user_id >= beginning
           ORDER BY s.tenant_id, s.user_id, s.type, s.hour, s.days_only LIMIT most)
          UNION ALL
          (SELECT DISTINCT s.* FROM ts.stale s WHERE s.tenant_id = clinic AND s.user_id < beginning
           ORDER BY s.tenant_id, s.user_id, s.type, s.hour, s.days_only LIMIT most)) turn
        LIMIT most)
      SELECT n.ctid FROM chosen c CROSS JOIN LATERAL (
        SELECT s.ctid FROM ts.stale s WHERE s.tenant_id = c.tenant_id AND s.user_id = c.user_id AND s.type = c.type
          AND s.hour = c.hour AND s.days_only = c.days_only OFFSET 0) n))
    RETURNING stale)
  SELECT array_agg(DISTINCT taken.stale) INTO notes FROM taken;
  IF notes IS NULL THEN
    RETURN 0;
  END IF;
  SELECT array_agg(n) INTO hours FROM unnest(notes) n WHERE NOT n.days_only AND n.hour >= raw_from;
  IF hours IS NOT NULL THEN
    PERFORM ts.roll_up_minutes(hours);
    PERFORM ts.coarsen('readings_15min', 'readings_minute', '15 minutes', hours);
    PERFORM ts.coarsen('readings_hourly', 'readings_15min', '1 hour', hours);
  END IF;
  -- Dates by the zone that holds; where that changed, the days beside them, which were the others: from UTC-12 to UTC+14 the
  -- date changes by two.
  SELECT array_agg(DISTINCT (s.tenant_id, s.user_id, s.type, (q AT TIME ZONE z.zone)::date + shift)::ts.stale_day) INTO days
    FROM (SELECT n.user_id FROM unnest(notes) n GROUP BY 1) w
    CROSS JOIN LATERAL ts.zones_of(w.user_id) z
    JOIN unnest(notes) s ON s.user_id = w.user_id
    CROSS JOIN LATERAL generate_series(s.hour, s.hour + interval '45 minutes', interval '15 minutes') q
    CROSS JOIN LATERAL generate_series(CASE WHEN s.days_only THEN -2 ELSE 0 END, CASE WHEN s.days_only THEN 2 ELSE 0 END) shift
    WHERE q >= z.from_time AND q < z.to_time;
  IF days IS NOT NULL THEN
    PERFORM ts.roll_up_days(days);
  END IF;
  RETURN cardinality(notes);
END $$;

-- Clinics that have notes, in order.
CREATE FUNCTION ts.stale_clinics() RETURNS SETOF uuid
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE clinics AS (
      (SELECT tenant_id FROM ts.stale ORDER BY tenant_id LIMIT 1)
      UNION ALL
      SELECT (SELECT s.tenant_id FROM ts.stale s WHERE s.tenant_id > c.tenant_id ORDER BY s.tenant_id LIMIT 1)
      FROM clinics c WHERE c.tenant_id IS NOT NULL)
    SELECT tenant_id FROM clinics WHERE tenant_id IS NOT NULL $$;

-- Notes are passed on with the roll-up; jobs for them are queued by a statement of its own (ts.queue_looks), since whoever
-- queues the same job, an event's writer for one, would wait until the roll-up ends.
CREATE OR REPLACE FUNCTION ts.pass_on_to_rules() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO ts.alert_notes (tenant_id, user_id, type, hour)
    SELECT DISTINCT g.tenant_id, g.user_id, g.type, g.hour FROM gone g WHERE NOT g.days_only
      AND EXISTS (SELECT FROM public.alert_rules r WHERE r.tenant_id = g.tenant_id AND r.type = g.type
        AND r.ended_at IS NULL);
  RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION ts.pass_on_to_inference() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO ts.inference_notes (tenant_id, user_id, hour)
    SELECT DISTINCT g.tenant_id, g.user_id, g.hour FROM gone g WHERE NOT g.days_only AND g.type IN (1, 2, 3, 5, 7)
      AND EXISTS (SELECT FROM public.device_assignments a
        JOIN public.ledger l ON l.hardware = a.hardware_id AND l.named
        WHERE a.tenant_id = g.tenant_id AND a.user_id = g.user_id);
  RETURN NULL;
END $$;

-- Queues a clinic's jobs for what was passed on to rules and to inference; gives how many.
CREATE FUNCTION ts.queue_looks(clinic uuid) RETURNS int
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  queued int := 0;
BEGIN
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

-- Clinics that have something to be looked at.
CREATE FUNCTION ts.clinics_to_look_at() RETURNS SETOF uuid
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.id FROM public.tenants t WHERE EXISTS (SELECT FROM ts.alert_notes n WHERE n.tenant_id = t.id)
      OR EXISTS (SELECT FROM ts.inference_notes n WHERE n.tenant_id = t.id) ORDER BY 1 $$;

-- Takes up to so many hours with their intervals, in order, device by device: two wearables' beats are not one heart's
-- rhythm. None while another bridge does. Hours before `raw_from` are forgotten.
DROP FUNCTION ts.take_hrv(int, timestamptz);
CREATE FUNCTION ts.take_hrv(most int, raw_from timestamptz)
  RETURNS TABLE (tenant_id uuid, user_id uuid, hour timestamptz, device_id uuid, times timestamptz[], intervals float8[])
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  note record;
  -- By lot, as above.
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
    RETURN QUERY EXECUTE format($sql$
      SELECT $1, $2, %1$L::timestamptz, r.device_id, array_agg(r.time ORDER BY r.time, r.epoch, r.seq, r.idx),
        array_agg(r.value ORDER BY r.time, r.epoch, r.seq, r.idx)
      FROM ts.readings r WHERE r.tenant_id = $1 AND r.user_id = $2 AND r.type = 2
        AND r.time >= %1$L::timestamptz AND r.time < %2$L::timestamptz AND r.quality > 0
      GROUP BY r.device_id ORDER BY r.device_id$sql$, note.hour, note.hour + interval '1 hour')
      USING note.tenant_id, note.user_id;
    IF NOT FOUND THEN
      -- What was made of them has to go.
      RETURN QUERY SELECT note.tenant_id, note.user_id, note.hour, NULL::uuid, '{}'::timestamptz[], '{}'::float8[];
    END IF;
  END LOOP;
END $$;

-- What clinics' wearers' days give, as before, but from every quarter and minute of the local day, however long it is.
CREATE OR REPLACE VIEW wearer_days WITH (security_barrier) AS
  SELECT d.tenant_id, d.user_id, d.day, d.bucket,
    (SELECT min(q.mean)
     FROM (SELECT z.from_time, lead(z.from_time, 1, 'infinity') OVER (ORDER BY z.from_time) AS to_time,
             CASE WHEN ts.is_zone(z.time_zone) THEN z.time_zone ELSE 'UTC' END AS zone
           FROM user_time_zones z WHERE z.user_id = d.user_id) z
     CROSS JOIN LATERAL (
       SELECT q.mean FROM ts.readings_15min q WHERE q.tenant_id = d.tenant_id AND q.user_id = d.user_id AND q.type = 1
         AND q.bucket >= greatest(z.from_time, d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours')
         AND q.bucket < least(z.to_time, d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours')
         AND (q.bucket AT TIME ZONE z.zone)::date = d.day AND q.count >= 300 OFFSET 0) q) AS resting_heart_rate,
    (SELECT count(*)
     FROM (SELECT z.from_time, lead(z.from_time, 1, 'infinity') OVER (ORDER BY z.from_time) AS to_time,
             CASE WHEN ts.is_zone(z.time_zone) THEN z.time_zone ELSE 'UTC' END AS zone
           FROM user_time_zones z WHERE z.user_id = d.user_id) z
     CROSS JOIN LATERAL (
       SELECT FROM ts.readings_minute m WHERE m.tenant_id = d.tenant_id AND m.user_id = d.user_id AND m.type = 1
         AND m.bucket >= greatest(z.from_time, d.day::timestamp AT TIME ZONE 'UTC' - interval '14 hours')
         AND m.bucket < least(z.to_time, d.day::timestamp AT TIME ZONE 'UTC' + interval '36 hours')
         AND (m.bucket AT TIME ZONE z.zone)::date = d.day OFFSET 0) m) AS worn_minutes
  FROM ts.readings_daily d WHERE d.type = 1 AND d.tenant_id = (select current_tenant());

-- The newest good reading of each wearer and type of the last seven days: neither one that a body cannot have (quality 0)
-- nor one from the future. Among the newest rows, and where none of those is good, in the last minute that has one:
-- what a wearable tells for days from a table is not gone through.
CREATE FUNCTION ts.last_minute(tenant uuid, wearer uuid, channel int2, since timestamptz, until timestamptz) RETURNS timestamptz
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT m.bucket FROM ts.readings_minute m WHERE m.tenant_id = tenant AND m.user_id = wearer AND m.type = channel
      AND m.bucket > since AND m.bucket <= until ORDER BY m.bucket DESC LIMIT 1 $$;
CREATE FUNCTION ts.latest_sql(since text, until text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT format($sql$
    SELECT u.tenant_id, u.id AS user_id, r.device_id, c.name AS reading_type, c.unit, r.time, r.value, r.quality,
      r.epoch, r.seq, r.idx
    FROM public.users u
    CROSS JOIN public.channels c
    CROSS JOIN LATERAL (
      (SELECT s.* FROM (
         SELECT n.* FROM ts.readings n
         WHERE n.tenant_id = (select public.current_tenant()) AND n.user_id = u.id AND n.type = c.type
           AND n.time > %1$s AND n.time <= %2$s
         ORDER BY n.time DESC LIMIT 1000) s
       WHERE s.quality > 0 LIMIT 1)
      UNION ALL
      (SELECT s.* FROM ts.last_minute((select public.current_tenant()), u.id, c.type, %1$s, %2$s) m(bucket)
       CROSS JOIN LATERAL (
         SELECT n.* FROM ts.readings n
         WHERE n.tenant_id = (select public.current_tenant()) AND n.user_id = u.id AND n.type = c.type
           AND n.time >= m.bucket AND n.time < m.bucket + interval '1 minute'
           AND n.time > %1$s AND n.time <= %2$s AND n.quality > 0
         ORDER BY n.time DESC LIMIT 1) s)
      ORDER BY 1 DESC LIMIT 1) r
    WHERE u.tenant_id = (select public.current_tenant())$sql$, since, until) $$;
DO $$ BEGIN
  EXECUTE 'CREATE OR REPLACE VIEW public.latest_readings WITH (security_barrier) AS'
    || ts.latest_sql('(now() - interval ''7 days'')', '(now() + interval ''1 minute'')');
END $$;
-- The same of one wearer, or of all (NULL), as pages ask: with the times in the statement's text, so that the days of two
-- years are not planned for the sake of seven.
CREATE FUNCTION latest_of(which uuid) RETURNS SETOF latest_readings
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  RETURN QUERY EXECUTE format('SELECT * FROM (%s) l WHERE $1 IS NULL OR l.user_id = $1',
    ts.latest_sql(format('%L::timestamptz', now() - interval '7 days'), format('%L::timestamptz', now() + interval '1 minute')))
    USING which;
END $$;

-- As before, and with the hours in the statement's text; the ledger says what came over HTTP (ledger.named, 0024_bounds.sql).
CREATE OR REPLACE FUNCTION ts.take_inference_notes(tenant uuid, most int, raw_from timestamptz, margin interval, around interval)
  RETURNS TABLE (device varchar, hour timestamptz, types int2[], times timestamptz[], vals float8[],
    producers varchar[], onsets timestamptz[])
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  of record;
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

REVOKE ALL ON FUNCTION latest_of(uuid), ts.latest_sql(text, text),
  ts.last_minute(uuid, uuid, int2, timestamptz, timestamptz), ts.canonical_zone(text), ts.name_zone(), ts.usable_zone(text), ts.zones_of(uuid), ts.check_zones(),
  ts.roll_up_lock(uuid), ts.day_from(date), ts.day_to(date), ts.day_begins(uuid, date), ts.coarsen(text, text, interval, ts.stale[]),
  ts.forget_hours(text, ts.stale[]), ts.roll_up_minutes(ts.stale[]), ts.roll_up_days(ts.stale_day[]),
  ts.roll_up(int, timestamptz, uuid), ts.stale_clinics(), ts.queue_looks(uuid), ts.clinics_to_look_at(),
  ts.take_hrv(int, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.check_zones(), ts.roll_up(int, timestamptz, uuid), ts.stale_clinics(), ts.queue_looks(uuid),
  ts.clinics_to_look_at(), ts.take_hrv(int, timestamptz) TO kinara_ingest;
-- Who reads a view needs the right to what it calls.
GRANT EXECUTE ON FUNCTION ts.is_zone(text), ts.last_minute(uuid, uuid, int2, timestamptz, timestamptz) TO kinara_app;
GRANT EXECUTE ON FUNCTION latest_of(uuid) TO kinara_app;
RESET ROLE;
