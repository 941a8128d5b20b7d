-- Boundaries that are told late, for whichever clinic: what is stored beyond them moves, to another wearer or to nobody.
--
-- Nobody's readings (wearer 0) are those that a wearer's device made after it was taken back. They stay in the clinic and are
-- shown to no page; an assignment that is told later takes them along.
SET ROLE kinara_owner;

-- Into another clinic by an operator's word alone: the clinics' own people name neither column.
ALTER TABLE moves
  ADD COLUMN to_tenant uuid REFERENCES tenants ON DELETE CASCADE,
  ADD COLUMN to_device uuid,
  ADD COLUMN failed text, -- why the last attempt did nothing
  ADD COLUMN reached timestamptz, -- what is older was looked through by the pass that goes on; NULL: the next one begins
  ADD COLUMN pass_at timestamptz, -- when that pass began
  ADD CHECK ((to_tenant IS NULL) = (to_device IS NULL)),
  ADD CHECK (to_tenant IS NULL OR device_id IS NOT NULL);
REVOKE SELECT, INSERT ON moves FROM kinara_app;
GRANT SELECT (id, tenant_id, from_user, to_user, device_id, from_time, to_time, from_epoch, from_seq, to_epoch, to_seq, asked_at,
    tried_at, settled_at),
  INSERT (id, tenant_id, from_user, to_user, device_id, from_time, to_time, from_epoch, from_seq, to_epoch, to_seq, asked_at)
  ON moves TO kinara_app;
GRANT UPDATE (failed, reached, pass_at) ON moves TO kinara_ingest;
-- A device that another clinic has now: the former one's boxes are to be taken off it.
GRANT INSERT (id, tenant_id, bond_id, hardware_id, gateway_id, adapter, asked_at, expires_at) ON revocations TO kinara_ingest;

-- The newest of the readings and waveforms that a move is about, in a part of its time; NULL: there is none. No index knows
-- devices: a wearer's readings of another device are gone through, so it is asked day by day, with the day in the text.
CREATE FUNCTION ts.newest_of(m moves, low timestamptz, high timestamptz) RETURNS timestamptz
  LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  newest timestamptz;
BEGIN
  EXECUTE (SELECT format('SELECT max(newest) FROM (%s) found', string_agg(format($sql$
      SELECT (SELECT r.time FROM ts.%1$I r WHERE r.tenant_id = $1 AND r.user_id = $2 AND r.type = c.type
          AND r.time >= %2$L::timestamptz AND r.time < %3$L::timestamptz AND ($3 IS NULL OR r.device_id = $3)
          AND ($4 IS NULL OR ts.is_after(r.epoch, r.seq, r.time, $5, $6, $4))
          AND ($7 IS NULL OR NOT ts.is_after(r.epoch, r.seq, r.time, $8, $9, $7))
        ORDER BY r.time DESC LIMIT 1) AS newest FROM public.channels c$sql$, base, low, high), ' UNION ALL '))
      FROM unnest(ARRAY['readings', 'waveforms']) base)
    INTO newest USING m.tenant_id, m.from_user, m.device_id, m.from_time, m.from_epoch, m.from_seq,
      m.to_time, m.to_epoch, m.to_seq;
  RETURN newest;
END $$;
REVOKE ALL ON FUNCTION ts.newest_of(moves, timestamptz, timestamptz) FROM PUBLIC;

-- The newest of a wearer's readings, waveforms and events of a device that lies in an interval; NULL: none does.
CREATE FUNCTION ts.stored_within(tenant uuid, wearer uuid, device uuid, since timestamptz, since_epoch int8, since_seq int8,
    until timestamptz, until_epoch int8, until_seq int8) RETURNS timestamptz
  LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m public.moves;
  -- A frame's name may put it on the other side of a boundary than its time does, by as much as clocks go wrong.
  low timestamptz := since - CASE WHEN since_epoch IS NULL THEN interval '0' ELSE interval '1 day' END;
  high timestamptz := coalesce(until + CASE WHEN until_epoch IS NULL THEN interval '0' ELSE interval '1 day' END, 'infinity');
  newest timestamptz;
BEGIN
  m.tenant_id := tenant; m.from_user := wearer; m.device_id := device;
  m.from_time := since; m.from_epoch := since_epoch; m.from_seq := since_seq;
  m.to_time := until; m.to_epoch := until_epoch; m.to_seq := until_seq;
  -- From the wearer's newest on, of whichever device, back.
  SELECT max(t) + interval '1 microsecond' INTO high FROM (
    SELECT (SELECT r.time FROM ts.readings r WHERE r.tenant_id = tenant AND r.user_id = wearer AND r.type = c.type
        AND r.time >= low AND r.time < high ORDER BY r.time DESC LIMIT 1) AS t FROM public.channels c
    UNION ALL
    SELECT (SELECT w.time FROM ts.waveforms w WHERE w.tenant_id = tenant AND w.user_id = wearer AND w.type = c.type
        AND w.time >= low AND w.time < high ORDER BY w.time DESC LIMIT 1) FROM public.channels c) lasts;
  WHILE newest IS NULL AND high > low LOOP
    newest := ts.newest_of(m, greatest(low, high - interval '1 day'), high);
    high := high - interval '1 day';
  END LOOP;
  RETURN greatest(newest, (SELECT e.time FROM ts.events e WHERE e.tenant_id = tenant AND e.user_id = wearer
    AND e.device_id = device AND e.time >= since AND e.time < coalesce(until, 'infinity') ORDER BY e.time DESC LIMIT 1));
END $$;
REVOKE ALL ON FUNCTION ts.stored_within(uuid, uuid, uuid, timestamptz, int8, int8, timestamptz, int8, int8) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.stored_within(uuid, uuid, uuid, timestamptz, int8, int8, timestamptz, int8, int8) TO kinara_ingest;

-- As before, and: into another clinic where the move says so; what is compressed is decompressed for it, however much; nobody has
-- no aggregates; and a pass through a wearer's days may take several calls: each ends after `most_days` days of which something
-- moved, or five times as many that were looked through. 0: a pass is at its end, and this call moved nothing; -1: it moved
-- nothing, and the pass goes on.
CREATE OR REPLACE FUNCTION ts.move(which uuid, most_days int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m public.moves;
  nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
  slack CONSTANT interval := interval '1 day';
  clinic uuid;
  first timestamptz;
  after timestamptz;
  until timestamptz;
  moved int8;
  waves int8;
  total int8 := 0;
  days int := 0;
  looked int := 0;
BEGIN
  SELECT * INTO m FROM public.moves WHERE id = which FOR UPDATE;
  IF NOT FOUND THEN
    RETURN 0;
  END IF;
  PERFORM set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true);
  clinic := coalesce(m.to_tenant, m.tenant_id);
  UPDATE ts.events SET user_id = m.to_user, tenant_id = clinic, device_id = coalesce(m.to_device, device_id)
    WHERE tenant_id = m.tenant_id AND user_id = m.from_user AND (m.device_id IS NULL OR device_id = m.device_id)
    AND (m.from_time IS NULL OR time >= m.from_time) AND (m.to_time IS NULL OR time < m.to_time);
  GET DIAGNOSTICS total = ROW_COUNT;
  UPDATE public.event_keys SET user_id = m.to_user, tenant_id = clinic, device_id = coalesce(m.to_device, device_id)
    WHERE tenant_id = m.tenant_id AND user_id = m.from_user AND (m.device_id IS NULL OR device_id = m.device_id)
    AND (m.from_time IS NULL OR time >= m.from_time) AND (m.to_time IS NULL OR time < m.to_time);
  after := coalesce(m.reached, m.from_time - CASE WHEN m.from_epoch IS NULL THEN interval '0' ELSE slack END, '-infinity');
  until := coalesce(m.to_time + CASE WHEN m.to_epoch IS NULL THEN interval '0' ELSE slack END, 'infinity');
  LOOP
    -- The wearer's next day, with whichever device.
    SELECT min(t) INTO first FROM (
      SELECT (SELECT r.time FROM ts.readings r WHERE r.tenant_id = m.tenant_id AND r.user_id = m.from_user
                AND r.type = c.type AND r.time >= after AND r.time < until ORDER BY r.time LIMIT 1) AS t
      FROM public.channels c
      UNION ALL
      SELECT (SELECT w.time FROM ts.waveforms w WHERE w.tenant_id = m.tenant_id AND w.user_id = m.from_user
                AND w.type = c.type AND w.time >= after AND w.time < until ORDER BY w.time LIMIT 1)
      FROM public.channels c) AS firsts;
    after := first;
    EXIT WHEN first IS NULL OR days >= most_days OR looked >= 5 * most_days;
    after := first + interval '1 day';
    looked := looked + 1;
    CONTINUE WHEN ts.newest_of(m, first, least(after, until)) IS NULL;
    WITH gone AS (
      UPDATE ts.readings SET user_id = m.to_user, tenant_id = clinic, device_id = coalesce(m.to_device, device_id)
      WHERE tenant_id = m.tenant_id AND user_id = m.from_user
        AND time >= first AND time < least(after, until) AND (m.device_id IS NULL OR device_id = m.device_id)
        AND (m.from_time IS NULL OR ts.is_after(epoch, seq, time, m.from_epoch, m.from_seq, m.from_time))
        AND (m.to_time IS NULL OR NOT ts.is_after(epoch, seq, time, m.to_epoch, m.to_seq, m.to_time))
      RETURNING type, time),
    hours AS (SELECT type, date_bin('1 hour', time, 'epoch') AS hour, count(*) AS n FROM gone GROUP BY 1, 2),
    noted AS (
      INSERT INTO ts.stale (tenant_id, user_id, type, hour)
        SELECT whose.tenant, whose.wearer, type, hour
        FROM hours CROSS JOIN (VALUES (m.tenant_id, m.from_user), (clinic, m.to_user)) AS whose (tenant, wearer)
        WHERE whose.wearer <> nobody),
    counted AS (
      INSERT INTO ts.written (tenant_id, hour, readings)
        SELECT whose.tenant, hour, whose.sign * sum(n)
        FROM hours CROSS JOIN (VALUES (m.tenant_id, -1), (clinic, 1)) AS whose (tenant, sign)
        WHERE clinic <> m.tenant_id GROUP BY 1, 2, whose.sign)
    SELECT count(*) INTO moved FROM gone;
    UPDATE ts.waveforms SET user_id = m.to_user, tenant_id = clinic, device_id = coalesce(m.to_device, device_id)
      WHERE tenant_id = m.tenant_id AND user_id = m.from_user
      AND time >= first AND time < least(after, until) AND (m.device_id IS NULL OR device_id = m.device_id)
      AND (m.from_time IS NULL OR ts.is_after(epoch, seq, time, m.from_epoch, m.from_seq, m.from_time))
      AND (m.to_time IS NULL OR NOT ts.is_after(epoch, seq, time, m.to_epoch, m.to_seq, m.to_time));
    GET DIAGNOSTICS waves = ROW_COUNT;
    total := total + moved + waves;
    days := days + 1;
  END LOOP;
  UPDATE public.moves SET reached = after WHERE id = which;
  RETURN CASE WHEN total = 0 AND after IS NOT NULL THEN -1 ELSE total END;
END $$;

-- As before, without nobody's.
CREATE OR REPLACE VIEW events WITH (security_barrier) AS
  SELECT time, tenant_id, user_id, device_id, event_type, severity, confidence, data, acknowledged_at
  FROM ts.events
  WHERE tenant_id = (select current_tenant()) AND user_id <> '00000000-0000-0000-0000-000000000000'
  WITH LOCAL CHECK OPTION;

-- An event that moves into another clinic is looked at in both.
CREATE OR REPLACE FUNCTION ts.note_event() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  whose record;
BEGIN
  FOR whose IN
    SELECT NEW.tenant_id AS clinic, NEW.user_id AS wearer, NEW.time AS at
    UNION SELECT OLD.tenant_id, OLD.user_id, OLD.time WHERE TG_OP = 'UPDATE'
    ORDER BY 1, 2
  LOOP
    CONTINUE WHEN NOT EXISTS (SELECT FROM public.alert_rules r WHERE r.tenant_id = whose.clinic AND r.event_type = NEW.kind
      AND r.ended_at IS NULL);
    INSERT INTO ts.alert_notes (tenant_id, user_id, hour) VALUES
      (whose.clinic, whose.wearer, date_bin('1 hour', whose.at, 'epoch'));
    PERFORM jobs.of_clinic('evaluate_alerts', whose.clinic);
  END LOOP;
  RETURN NULL;
END $$;
RESET ROLE;
