-- What is asked of a wearer's readings looks into the days that have something of the wearer, and of a device's gaps into those of
-- a time: however many days there are, and however much else is in them.
SET ROLE kinara_owner;

-- The days (UTC) that have, or had, something of a wearer: readings, waveforms, events. All that are there have a row; a row may
-- have nothing any more. Append-only, so that no writer waits for another: two that write a day's first at once leave two rows.
CREATE TABLE ts.days (
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  day date NOT NULL
);
CREATE INDEX days_of ON ts.days (tenant_id, user_id, day);
CREATE INDEX days_age ON ts.days (day);

-- Writes down days that have no row yet.
CREATE FUNCTION ts.keep_days(clinics uuid[], wearers uuid[], of_days date[]) RETURNS void
  LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO ts.days (tenant_id, user_id, day)
      SELECT DISTINCT n.clinic, n.wearer, n.day FROM unnest(clinics, wearers, of_days) n(clinic, wearer, day)
      WHERE NOT EXISTS (
        SELECT FROM ts.days d WHERE d.tenant_id = n.clinic AND d.user_id = n.wearer AND d.day = n.day OFFSET 0) $$;

-- Of readings: whoever writes some notes their hours, older releases too.
CREATE FUNCTION ts.keep_days_of_readings() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ts.keep_days(array_agg(n.tenant_id), array_agg(n.user_id), array_agg((n.hour AT TIME ZONE 'UTC')::date))
    FROM noted n WHERE NOT n.days_only;
  RETURN NULL;
END $$;
-- Of events: each has a key.
CREATE FUNCTION ts.keep_days_of_events() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM ts.keep_days(array_agg(n.tenant_id), array_agg(n.user_id), array_agg((n.time AT TIME ZONE 'UTC')::date))
    FROM noted n;
  RETURN NULL;
END $$;
-- Of waveforms, a day of all wearers: their writer notes it, and a bridge of an older release that is running yet does not. (No
-- trigger: not every release of TimescaleDB shows one what was inserted.) From one wearer to the next by the index, however many
-- blocks each has. Gives how many wearers were there.
CREATE FUNCTION ts.keep_days_of_waveforms(of_day date) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  clinic uuid := '00000000-0000-0000-0000-000000000000';
  wearer uuid := clinic;
  ask CONSTANT text := format('SELECT w.tenant_id, w.user_id FROM ts.waveforms w WHERE (w.tenant_id, w.user_id) > ($1, $2) '
    'AND w.time >= %L::timestamptz AND w.time < %L::timestamptz ORDER BY w.tenant_id, w.user_id LIMIT 1',
    of_day::timestamp AT TIME ZONE 'UTC', (of_day + 1)::timestamp AT TIME ZONE 'UTC');
  there int8 := 0;
BEGIN
  LOOP
    EXECUTE ask INTO clinic, wearer USING clinic, wearer;
    EXIT WHEN clinic IS NULL;
    PERFORM ts.keep_days(ARRAY[clinic], ARRAY[wearer], ARRAY[of_day]);
    there := there + 1;
  END LOOP;
  RETURN there;
END $$;
-- In the order in which writers come to the two tables.
CREATE TRIGGER keep_days AFTER INSERT ON event_keys REFERENCING NEW TABLE AS noted
  FOR EACH STATEMENT EXECUTE FUNCTION ts.keep_days_of_events();
CREATE TRIGGER keep_days AFTER INSERT ON ts.stale REFERENCING NEW TABLE AS noted
  FOR EACH STATEMENT EXECUTE FUNCTION ts.keep_days_of_readings();

-- What was there before: a day of all wearers at a time, by a step beside. Gives 0 when all is known; until then days are looked
-- for in the readings themselves.
CREATE FUNCTION ts.fill_days() RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  come int8 := (SELECT w.epoch FROM ts.walks w WHERE w.walk = 'days');
  first date;
  last date;
  this date;
BEGIN
  IF EXISTS (SELECT FROM ts.walks w WHERE w.walk = 'days known') THEN
    RETURN 0;
  END IF;
  IF EXISTS (SELECT FROM ts.storage WHERE kind = 'timescale') THEN
    EXECUTE $sql$ SELECT min(range_start)::date, max(range_end)::date FROM timescaledb_information.chunks
      WHERE hypertable_schema = 'ts' $sql$ INTO first, last;
  ELSE
    SELECT min(to_date(right(c.relname, 8), 'YYYYMMDD')), max(to_date(right(c.relname, 8), 'YYYYMMDD')) INTO first, last
      FROM pg_class c WHERE c.relnamespace = 'ts'::regnamespace AND c.relkind = 'r'
        AND c.relname ~ '^(readings|events|waveforms)_[0-9]{8}$';
  END IF;
  this := coalesce('epoch'::date + come::int, first - 1) + 1;
  IF first IS NULL OR this > last THEN
    DELETE FROM ts.walks w WHERE w.walk = 'days';
    INSERT INTO ts.walks (walk, id) VALUES ('days known', '00000000-0000-0000-0000-000000000000');
    RETURN 0;
  END IF;
  EXECUTE (
    SELECT format('SELECT ts.keep_days(array_agg(tenant_id), array_agg(user_id), array_agg(%L::date)) FROM (%s) there', this,
      string_agg(format('SELECT DISTINCT tenant_id, user_id FROM ts.%I WHERE time >= %L::timestamptz AND time < %L::timestamptz',
        base, this::timestamp AT TIME ZONE 'UTC', (this + 1)::timestamp AT TIME ZONE 'UTC'), ' UNION '))
    FROM unnest(ARRAY['readings', 'waveforms', 'events']) base);
  INSERT INTO ts.walks AS w (walk, id, epoch) VALUES ('days', '00000000-0000-0000-0000-000000000000', this - 'epoch'::date)
    ON CONFLICT (walk) DO UPDATE SET epoch = excluded.epoch;
  RETURN 1;
END $$;

-- A wearer's first day that has something from a time on, or, where `back`, the last one before another: its beginning. NULL: none
-- has. The day may begin before `since`.
CREATE FUNCTION ts.day_within(clinic uuid, wearer uuid, since timestamptz, until timestamptz, back boolean) RETURNS timestamptz
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  low date := (since AT TIME ZONE 'UTC')::date;
  high date := (until AT TIME ZONE 'UTC')::date;
  at timestamptz;
BEGIN
  IF NOT EXISTS (SELECT FROM ts.walks w WHERE w.walk = 'days known') THEN
    EXECUTE format($sql$
      SELECT %1$s(t) FROM (
        SELECT (SELECT r.time FROM ts.readings r WHERE r.tenant_id = $1 AND r.user_id = $2 AND r.type = c.type
                  AND r.time >= $3 AND r.time < $4 ORDER BY r.time %2$s LIMIT 1) AS t FROM public.channels c
        UNION ALL
        SELECT (SELECT w.time FROM ts.waveforms w WHERE w.tenant_id = $1 AND w.user_id = $2 AND w.type = c.type
                  AND w.time >= $3 AND w.time < $4 ORDER BY w.time %2$s LIMIT 1) FROM public.channels c
        UNION ALL
        SELECT (SELECT e.time FROM ts.events e WHERE e.tenant_id = $1 AND e.user_id = $2
                  AND e.time >= $3 AND e.time < $4 ORDER BY e.time %2$s LIMIT 1)) found$sql$,
      CASE WHEN back THEN 'max' ELSE 'min' END, CASE WHEN back THEN 'DESC' ELSE 'ASC' END)
      INTO at USING clinic, wearer, since, until;
    RETURN date_bin('1 day', at, 'epoch');
  END IF;
  IF back THEN
    SELECT d.day::timestamp AT TIME ZONE 'UTC' INTO at FROM ts.days d
      WHERE d.tenant_id = clinic AND d.user_id = wearer AND d.day >= low AND d.day <= high
        AND d.day::timestamp AT TIME ZONE 'UTC' < until ORDER BY d.day DESC LIMIT 1;
  ELSE
    SELECT d.day::timestamp AT TIME ZONE 'UTC' INTO at FROM ts.days d
      WHERE d.tenant_id = clinic AND d.user_id = wearer AND d.day >= low AND d.day <= high
        AND d.day::timestamp AT TIME ZONE 'UTC' < until ORDER BY d.day LIMIT 1;
  END IF;
  RETURN at;
END $$;

-- Whether anything of a wearer is there, in a part of a day. With the times in the text, so that no other part is even planned.
CREATE FUNCTION ts.has_any(clinic uuid, wearer uuid, low timestamptz, high timestamptz) RETURNS boolean
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  base text;
  any_there boolean;
BEGIN
  FOREACH base IN ARRAY ARRAY['readings', 'waveforms', 'events'] LOOP
    -- In the index's order: where many rows of a wearer are expected and none is there, the whole day would be read to find one.
    EXECUTE format('SELECT true FROM ts.%I r WHERE r.tenant_id = $1 AND r.user_id = $2 AND r.time >= %L::timestamptz '
      'AND r.time < %L::timestamptz ORDER BY %s LIMIT 1', base, low, high,
      CASE base WHEN 'events' THEN 'r.time DESC' ELSE 'r.type, r.time DESC' END) INTO any_there USING clinic, wearer;
    EXIT WHEN any_there;
  END LOOP;
  RETURN coalesce(any_there, false);
END $$;

-- By the index. Statistics of a day that has just begun make its table small, and it is read from end to end for each channel.
ALTER FUNCTION ts.newest_of(public.moves, timestamptz, timestamptz) SET enable_seqscan = off SET enable_bitmapscan = off;

-- As before, and asks the wearer's days alone.
CREATE OR REPLACE FUNCTION ts.stored_within(tenant uuid, wearer uuid, device uuid, since timestamptz, since_epoch int8,
    since_seq int8, until timestamptz, until_epoch int8, until_seq int8) RETURNS timestamptz
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m public.moves;
  -- A frame's name may put it on the other side of a boundary than its time does, by as much as clocks go wrong.
  low timestamptz := since - CASE WHEN since_epoch IS NULL THEN interval '0' ELSE interval '1 day' END;
  high timestamptz := coalesce(until + CASE WHEN until_epoch IS NULL THEN interval '0' ELSE interval '1 day' END, 'infinity');
  first timestamptz;
  event timestamptz;
  newest timestamptz;
BEGIN
  m.tenant_id := tenant; m.from_user := wearer; m.device_id := device;
  m.from_time := since; m.from_epoch := since_epoch; m.from_seq := since_seq;
  m.to_time := until; m.to_epoch := until_epoch; m.to_seq := until_seq;
  LOOP
    first := ts.day_within(tenant, wearer, low, high, true);
    EXIT WHEN first IS NULL;
    high := least(high, first + interval '1 day');
    newest := ts.newest_of(m, greatest(low, first), high);
    EXECUTE format('SELECT max(e.time) FROM ts.events e WHERE e.tenant_id = $1 AND e.user_id = $2 AND e.device_id = $3 '
      'AND e.time >= %L::timestamptz AND e.time < %L::timestamptz', greatest(since, first), least(until, high))
      INTO event USING tenant, wearer, device;
    newest := greatest(newest, event);
    EXIT WHEN newest IS NOT NULL;
    high := first;
  END LOOP;
  RETURN newest;
END $$;

-- As before, a day at a time: its events, readings and waveforms. Each call ends after `most_days` days of which something moved,
-- five times as many that have something of the wearer, or a hundred times as many that have nothing any more. 0: a pass is at
-- its end, and this call moved nothing; -1: it moved nothing, and the pass goes on.
CREATE OR REPLACE FUNCTION ts.move(which uuid, most_days int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
  m public.moves;
  nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
  slack CONSTANT interval := interval '1 day';
  clinic uuid;
  since timestamptz;
  first timestamptz;
  after timestamptz;
  until timestamptz;
  low timestamptz;
  high timestamptz;
  moved int8;
  rows int8;
  total int8 := 0;
  days int := 0;
  looked int := 0;
  passed int := 0;
BEGIN
  SELECT * INTO m FROM public.moves WHERE id = which FOR UPDATE;
  IF NOT FOUND THEN
    RETURN 0;
  END IF;
  PERFORM set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true);
  clinic := coalesce(m.to_tenant, m.tenant_id);
  since := coalesce(m.from_time - CASE WHEN m.from_epoch IS NULL THEN interval '0' ELSE slack END, '-infinity');
  until := coalesce(m.to_time + CASE WHEN m.to_epoch IS NULL THEN interval '0' ELSE slack END, 'infinity');
  after := greatest(since, m.reached);
  LOOP
    -- The wearer's next day, with whichever device.
    first := ts.day_within(m.tenant_id, m.from_user, after, until, false);
    after := first;
    EXIT WHEN first IS NULL OR days >= most_days OR looked >= 5 * most_days OR passed >= 100 * most_days;
    after := first + interval '1 day';
    low := greatest(first, since);
    high := least(after, until);
    IF NOT ts.has_any(m.tenant_id, m.from_user, low, high) THEN
      passed := passed + 1;
      CONTINUE;
    END IF;
    looked := looked + 1;
    EXECUTE format($sql$
      UPDATE ts.events SET user_id = $1, tenant_id = $2, device_id = coalesce($3, device_id)
      WHERE tenant_id = $4 AND user_id = $5 AND ($6 IS NULL OR device_id = $6)
        AND time >= %L::timestamptz AND time < %L::timestamptz$sql$, greatest(low, m.from_time), least(high, m.to_time))
      USING m.to_user, clinic, m.to_device, m.tenant_id, m.from_user, m.device_id;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved > 0 THEN
      -- With the events and not before: whoever judges them is told by their keys.
      EXECUTE format($sql$
        UPDATE public.event_keys SET user_id = $1, tenant_id = $2, device_id = coalesce($3, device_id)
        WHERE tenant_id = $4 AND user_id = $5 AND ($6 IS NULL OR device_id = $6)
          AND time >= %L::timestamptz AND time < %L::timestamptz$sql$, greatest(low, m.from_time), least(high, m.to_time))
        USING m.to_user, clinic, m.to_device, m.tenant_id, m.from_user, m.device_id;
    END IF;
    IF ts.newest_of(m, low, high) IS NOT NULL THEN
      EXECUTE format($sql$
        WITH gone AS (
          UPDATE ts.readings SET user_id = $1.to_user, tenant_id = $2, device_id = coalesce($1.to_device, device_id)
          WHERE tenant_id = $1.tenant_id AND user_id = $1.from_user
            AND time >= %1$L::timestamptz AND time < %2$L::timestamptz AND ($1.device_id IS NULL OR device_id = $1.device_id)
            AND ($1.from_time IS NULL OR ts.is_after(epoch, seq, time, $1.from_epoch, $1.from_seq, $1.from_time))
            AND ($1.to_time IS NULL OR NOT ts.is_after(epoch, seq, time, $1.to_epoch, $1.to_seq, $1.to_time))
          RETURNING type, time),
        hours AS (SELECT type, date_bin('1 hour', time, 'epoch') AS hour, count(*) AS n FROM gone GROUP BY 1, 2),
        noted AS (
          INSERT INTO ts.stale (tenant_id, user_id, type, hour)
            SELECT whose.tenant, whose.wearer, type, hour
            FROM hours CROSS JOIN (VALUES ($1.tenant_id, $1.from_user), ($2, $1.to_user)) AS whose (tenant, wearer)
            WHERE whose.wearer <> $3),
        counted AS (
          INSERT INTO ts.written (tenant_id, hour, readings)
            SELECT whose.tenant, hour, whose.sign * sum(n)
            FROM hours CROSS JOIN (VALUES ($1.tenant_id, -1), ($2, 1)) AS whose (tenant, sign)
            WHERE $2 <> $1.tenant_id GROUP BY 1, 2, whose.sign)
        SELECT count(*) FROM gone$sql$, low, high) INTO rows USING m, clinic, nobody;
      moved := moved + rows;
      EXECUTE format($sql$
        UPDATE ts.waveforms SET user_id = $1.to_user, tenant_id = $2, device_id = coalesce($1.to_device, device_id)
        WHERE tenant_id = $1.tenant_id AND user_id = $1.from_user
          AND time >= %1$L::timestamptz AND time < %2$L::timestamptz AND ($1.device_id IS NULL OR device_id = $1.device_id)
          AND ($1.from_time IS NULL OR ts.is_after(epoch, seq, time, $1.from_epoch, $1.from_seq, $1.from_time))
          AND ($1.to_time IS NULL OR NOT ts.is_after(epoch, seq, time, $1.to_epoch, $1.to_seq, $1.to_time))$sql$, low, high)
        USING m, clinic;
      GET DIAGNOSTICS rows = ROW_COUNT;
      moved := moved + rows;
    END IF;
    IF moved > 0 THEN
      -- Whatever rows there are: an erasure may be deleting them.
      INSERT INTO ts.days (tenant_id, user_id, day) VALUES (clinic, m.to_user, (first AT TIME ZONE 'UTC')::date);
      days := days + 1;
    END IF;
    total := total + moved;
  END LOOP;
  -- Keys whose events are there no more.
  IF first IS NULL THEN
    UPDATE public.event_keys SET user_id = m.to_user, tenant_id = clinic, device_id = coalesce(m.to_device, device_id)
      WHERE tenant_id = m.tenant_id AND user_id = m.from_user AND (m.device_id IS NULL OR device_id = m.device_id)
      AND (m.from_time IS NULL OR time >= m.from_time) AND (m.to_time IS NULL OR time < m.to_time)
      -- One that came on a day that this pass had gone by goes with its event: who looks at alerts then finds both.
      AND NOT EXISTS (
        SELECT FROM ts.events e WHERE e.tenant_id = m.tenant_id AND e.user_id = m.from_user AND e.time = event_keys.time
          AND (m.device_id IS NULL OR e.device_id = m.device_id) OFFSET 0);
  END IF;
  UPDATE public.moves SET reached = after WHERE id = which;
  RETURN CASE WHEN total = 0 AND after IS NOT NULL THEN -1 ELSE total END;
END $$;

-- As before, a day at a time, and the days themselves last: not before a writer that had begun before the tombstone is done for
-- certain, which had found a day's row and wrote none.
CREATE OR REPLACE FUNCTION ts.erase(tenant uuid, wearer uuid, most_days int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
  stone public.tombstones;
  first timestamptz;
  after timestamptz := '-infinity';
  gone int8;
  there int8;
  total int8 := 0;
  days int := 0;
  base text;
BEGIN
  SELECT * INTO stone FROM public.tombstones t WHERE t.tenant_id = tenant AND t.user_id = wearer;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no tombstone for this wearer' USING ERRCODE = '55000';
  END IF;
  -- What is compressed is decompressed for it.
  PERFORM set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true);
  WHILE days < most_days LOOP
    first := ts.day_within(tenant, wearer, after, 'infinity', false);
    EXIT WHEN first IS NULL;
    after := first + interval '1 day';
    CONTINUE WHEN NOT ts.has_any(tenant, wearer, first, after);
    EXECUTE format($sql$
      WITH rows AS (
        DELETE FROM ts.readings r WHERE r.tenant_id = $1 AND r.user_id = $2 AND r.time >= %1$L::timestamptz
          AND r.time < %2$L::timestamptz
        RETURNING r.time),
      noted AS (
        INSERT INTO ts.written (tenant_id, hour, readings)
          SELECT $1, date_bin('1 hour', time, 'epoch'), -count(*) FROM rows GROUP BY 2)
      SELECT count(*) FROM rows$sql$, first, after) INTO gone USING tenant, wearer;
    FOREACH base IN ARRAY ARRAY['waveforms', 'events'] LOOP
      EXECUTE format('DELETE FROM ts.%I w WHERE w.tenant_id = $1 AND w.user_id = $2 AND w.time >= %L::timestamptz '
        'AND w.time < %L::timestamptz', base, first, after) USING tenant, wearer;
      GET DIAGNOSTICS there = ROW_COUNT;
      gone := gone + there;
    END LOOP;
    total := total + gone;
    days := days + (gone > 0)::int;
  END LOOP;
  IF total > 0 THEN
    RETURN total;
  END IF;

  -- Notes come last but one: what is taken from ts.stale is passed on to the others.
  FOREACH base IN ARRAY ARRAY['ts.readings_minute', 'ts.readings_15min', 'ts.readings_hourly', 'ts.readings_daily',
    'ts.hrv', 'public.event_keys', 'public.alerts', 'public.consents', 'ts.stale', 'ts.stale_hrv', 'ts.alert_notes',
    'ts.inference_notes'] LOOP
    EXECUTE format('DELETE FROM %s WHERE tenant_id = $1 AND user_id = $2', base) USING tenant, wearer;
    GET DIAGNOSTICS gone = ROW_COUNT;
    total := total + gone;
  END LOOP;
  -- What said whether they wore it.
  DELETE FROM public.wear w USING public.device_assignments a WHERE a.tenant_id = tenant AND a.user_id = wearer
    AND w.hardware = a.hardware_id AND w.at >= a.valid_from AND (a.valid_to IS NULL OR w.at < a.valid_to);
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  UPDATE public.devices SET user_id = NULL, worn = NULL WHERE tenant_id = tenant AND user_id = wearer;
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  -- That something was decided stays, and by whom; about whom goes. A box that is not theirs may have named them, too. Whom a
  -- message in the log names is in its column.
  UPDATE public.decisions SET user_id = NULL, detail = '{}', payload = '' WHERE user_id = wearer;
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  DELETE FROM public.quarantine WHERE what = 'decision' AND position(uuid_send(wearer) IN payload) > 0;
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  DELETE FROM public.moves WHERE settled_at IS NOT NULL AND (from_user = wearer OR to_user = wearer)
    AND tenant IN (tenant_id, to_tenant);
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  -- The log keeps who did what when, and about whom by their number here alone.
  UPDATE public.audit_log SET detail = jsonb_strip_nulls(jsonb_build_object('erased', true, 'user_id', detail -> 'user_id'))
    WHERE ctid = ANY(ARRAY(
      SELECT l.ctid FROM public.audit_log l WHERE l.tenant_id = tenant AND l.detail ->> 'user_id' = wearer::text
      UNION ALL
      SELECT l.ctid FROM public.audit_log l WHERE l.tenant_id = tenant AND l.target = ANY(array_append(
        ARRAY(SELECT 'alert_rule:' || r.id FROM public.alert_rules r WHERE r.tenant_id = tenant AND r.user_id = wearer), 'user:' || wearer))))
    AND NOT detail ? 'erased';
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  -- At once, since one refers to the other.
  DELETE FROM public.users WHERE tenant_id = tenant AND id IN (SELECT ts.same_person(tenant, wearer));
  GET DIAGNOSTICS gone = ROW_COUNT;
  total := total + gone;
  -- It was found to be gone in a night before this one.
  IF total = 0 AND stone.settled_at < now() - interval '10 minutes' THEN
    DELETE FROM ts.days d WHERE d.tenant_id = tenant AND d.user_id = wearer AND NOT ts.has_any(tenant, wearer,
      d.day::timestamp AT TIME ZONE 'UTC', (d.day + 1)::timestamp AT TIME ZONE 'UTC');
  END IF;
  RETURN total;
END $$;

-- Who was erased and has a day's row yet.
CREATE FUNCTION ts.erased_with_days() RETURNS TABLE (tenant_id uuid, user_id uuid)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.tenant_id, t.user_id FROM public.tombstones t
    WHERE EXISTS (SELECT FROM ts.days d WHERE d.tenant_id = t.tenant_id AND d.user_id = t.user_id) $$;

-- Days that are older than all that has days, a while longer than events are kept.
CREATE FUNCTION forget_days(before timestamptz, most int) RETURNS int8
  LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH gone AS (
      DELETE FROM ts.days WHERE ctid = ANY(ARRAY(
        SELECT d.ctid FROM ts.days d WHERE d.day < (before AT TIME ZONE 'UTC')::date ORDER BY d.day LIMIT most))
      RETURNING 1)
    SELECT nullif(count(*), 0) FROM gone $$;

-- As before, and of a device those that touch the period alone, by an index of their times (gaps_times).
CREATE OR REPLACE FUNCTION gaps_within(wearer uuid, since timestamptz, until timestamptz, most int8)
  RETURNS TABLE (id uuid, user_id uuid, device_id uuid, reason text, from_time timestamptz, to_time timestamptz, frames int8)
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- Planned for these values: a plan for any would read all of a device's.
  RETURN QUERY EXECUTE $sql$
    SELECT w.id, w.user_id, w.device_id, w.reason, w.from_time, w.to_time, w.frames
    FROM public.wearer_gaps w
    WHERE w.id = ANY(ARRAY(
        SELECT g.id
        FROM (SELECT DISTINCT a.hardware_id FROM public.device_assignments a
              WHERE a.tenant_id = (SELECT public.current_tenant()) AND ($1 IS NULL OR a.user_id = $1)
                AND a.valid_from <= $3 AND (a.valid_to IS NULL OR a.valid_to >= $2)) h
        CROSS JOIN LATERAL (
          SELECT g.id FROM public.gaps g WHERE g.hardware = h.hardware_id AND g.withdrawn_at IS NULL
            AND tstzrange(CASE WHEN g.from_time > g.to_time THEN g.to_time ELSE g.from_time END,
              CASE WHEN g.from_time > g.to_time THEN g.from_time ELSE g.to_time END, '[]') && tstzrange($2, $3, '[]') OFFSET 0) g))
      AND ($1 IS NULL OR w.user_id = $1)
      AND (w.from_time IS NULL OR w.from_time <= $3) AND (w.to_time IS NULL OR w.to_time >= $2)
    ORDER BY w.from_time DESC NULLS FIRST, w.id LIMIT $4$sql$ USING wearer, since, until, most;
END $$;

-- Nobody asks it, and it shows what was said before a clinic got the device from another one.
DROP VIEW wearer_intervals;

-- As before, and of devices that the wearer had then. No index knows devices: a wearer's other devices are gone through, up to so
-- many samples of all together. An hour with more says nothing.
CREATE OR REPLACE FUNCTION ts.take_inference_notes(tenant uuid, most int, raw_from timestamptz, margin interval, around interval)
  RETURNS TABLE (device varchar, hour timestamptz, types int2[], times timestamptz[], vals float8[],
    producers varchar[], onsets timestamptz[])
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  of record;
  believed CONSTANT int := 100000;
  most_of_all CONSTANT int := 5 * believed;
  -- A frame's name may put it on the other side of a boundary than its time does, by as much as clocks go wrong.
  slack CONSTANT interval := interval '1 day';
  there int8;
  good int8;
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
      AND a.valid_from < t.hour + interval '1 hour' + margin + slack
      AND (a.valid_to IS NULL OR a.valid_to > t.hour - margin - slack)
    JOIN public.devices d ON d.id = a.device_id AND d.hardware_id IS NOT NULL
    WHERE t.hour >= raw_from ORDER BY 4, 2
  LOOP
    EXECUTE format($sql$
      SELECT count(*), count(*) FILTER (WHERE those.device_id = $3) FROM (
        SELECT r.device_id FROM ts.readings r WHERE r.tenant_id = $1 AND r.user_id = $2 AND r.type IN (1, 2, 3, 5, 7)
          AND r.time >= %1$L::timestamptz AND r.time < %2$L::timestamptz LIMIT $4) those$sql$,
      of.since - margin, of.since + interval '1 hour' + margin)
      INTO there, good USING tenant, of.user_id, of.id, most_of_all + 1;
    CONTINUE WHEN there > most_of_all OR good > believed;
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

-- As before, and what lies beside an epoch (0032) tells when it was as well: a clinic whose numbers another one used has them there.
CREATE OR REPLACE FUNCTION ts.numbers_of(which uuid, of_epoch int8, told_at timestamptz)
  RETURNS TABLE (clinic uuid, possible int8multirange, certain int8multirange)
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    -- Each of them is looked up once: without OFFSET it would be for each place that names it.
    WITH own AS (
      SELECT (SELECT min(to_timestamp(t.ref_utc_us / 1e6)) FROM public.frame_times t
          WHERE t.hardware = which AND t.epoch = of_epoch AND t.ref_utc_us > 0) AS first,
        (SELECT l.highest_time FROM public.ledger l WHERE l.hardware = which AND l.epoch = of_epoch) AS highest OFFSET 0),
    -- A clinic that has something beside had the device then, so that the last moment of it tells enough.
    beside AS (
      SELECT (SELECT l.highest_time FROM public.ledger l WHERE l.hardware = which AND l.epoch = c.alias) AS highest
      FROM (SELECT DISTINCT c.alias FROM public.ledger_claims c
        WHERE c.hardware = which AND c.epoch = of_epoch AND c.alias IS NOT NULL) c OFFSET 0),
    known AS (
      SELECT coalesce(least(o.first, o.highest, b.low), told_at) AS low,
        coalesce(greatest(coalesce(o.highest, o.first), b.high), told_at) AS high
      FROM own o CROSS JOIN (SELECT min(highest) AS low, max(highest) AS high FROM beside) b),
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

REVOKE ALL ON FUNCTION ts.keep_days(uuid[], uuid[], date[]), ts.keep_days_of_readings(), ts.keep_days_of_events(),
  ts.keep_days_of_waveforms(date), ts.erased_with_days(),
  ts.fill_days(), ts.day_within(uuid, uuid, timestamptz, timestamptz, boolean), ts.has_any(uuid, uuid, timestamptz, timestamptz),
  forget_days(timestamptz, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.keep_days(uuid[], uuid[], date[]), ts.keep_days_of_waveforms(date), ts.erased_with_days(),
  forget_days(timestamptz, int) TO kinara_ingest;
RESET ROLE;
