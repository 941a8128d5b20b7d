-- Erasing a person whole: whoever was merged into them, and every place that names them.
SET ROLE kinara_owner;

-- When nothing of them was left any more; NULL: it is to be looked for in the next night, as after a restore.
ALTER TABLE tombstones ADD COLUMN settled_at timestamptz;
GRANT UPDATE (settled_at) ON tombstones TO kinara_ingest;

-- Everybody who is the same person: whom a wearer was merged into, and who was merged into them.
CREATE FUNCTION ts.same_person(tenant uuid, wearer uuid) RETURNS SETOF uuid
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE same (id) AS (
      SELECT wearer
      UNION
      SELECT CASE WHEN u.id = s.id THEN u.merged_into ELSE u.id END
      FROM same s JOIN public.users u ON u.tenant_id = tenant AND u.merged_into IS NOT NULL
        AND (u.id = s.id OR u.merged_into = s.id))
    SELECT id FROM same $$;

CREATE FUNCTION ts.erase_same_person() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  wearer uuid := coalesce(to_jsonb(NEW) ->> 'user_id', to_jsonb(NEW) ->> 'id');
BEGIN
  INSERT INTO public.tombstones (tenant_id, user_id, erased_at)
    SELECT NEW.tenant_id, other, t.erased_at
    FROM (SELECT min(s.erased_at) AS erased_at FROM public.tombstones s WHERE s.tenant_id = NEW.tenant_id
            AND s.user_id IN (SELECT ts.same_person(NEW.tenant_id, wearer))) t
      CROSS JOIN ts.same_person(NEW.tenant_id, wearer) other
    WHERE t.erased_at IS NOT NULL ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;
CREATE TRIGGER same_person AFTER INSERT ON tombstones FOR EACH ROW EXECUTE FUNCTION ts.erase_same_person();
-- Somebody turns out to be a person who was erased.
CREATE TRIGGER same_person AFTER UPDATE OF merged_into ON users FOR EACH ROW WHEN (NEW.merged_into IS NOT NULL)
  EXECUTE FUNCTION ts.erase_same_person();
-- Those who were erased before this.
INSERT INTO tombstones (tenant_id, user_id, erased_at)
  SELECT t.tenant_id, other, min(t.erased_at) FROM tombstones t CROSS JOIN ts.same_person(t.tenant_id, t.user_id) other
  GROUP BY 1, 2 ON CONFLICT DO NOTHING;

-- As before, and: whoever is the same person goes too; all that names them, wherever it is. What of the quarantine is theirs is
-- decided by the frames themselves, in crates/ingest/src/erase.rs.
CREATE OR REPLACE FUNCTION ts.erase(tenant uuid, wearer uuid, most_days int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  first timestamptz;
  after timestamptz := '-infinity';
  gone int8;
  total int8 := 0;
  base text;
BEGIN
  IF NOT EXISTS (SELECT FROM public.tombstones t WHERE t.tenant_id = tenant AND t.user_id = wearer) THEN
    RAISE EXCEPTION 'there is no tombstone for this wearer' USING ERRCODE = '55000';
  END IF;
  -- What is compressed is decompressed for it.
  PERFORM set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true);
  FOR i IN 1..most_days LOOP
    SELECT min(t) INTO first FROM (
      SELECT (SELECT r.time FROM ts.readings r WHERE r.tenant_id = tenant AND r.user_id = wearer AND r.type = c.type
                AND r.time >= after ORDER BY r.time LIMIT 1) AS t FROM public.channels c
      UNION ALL
      SELECT (SELECT w.time FROM ts.waveforms w WHERE w.tenant_id = tenant AND w.user_id = wearer AND w.type = c.type
                AND w.time >= after ORDER BY w.time LIMIT 1) FROM public.channels c) firsts;
    EXIT WHEN first IS NULL;
    after := first + interval '1 day';
    WITH rows AS (
      DELETE FROM ts.readings r WHERE r.tenant_id = tenant AND r.user_id = wearer AND r.time >= first AND r.time < after
      RETURNING r.time), noted AS (
      INSERT INTO ts.written (tenant_id, hour, readings)
        SELECT tenant, date_bin('1 hour', time, 'epoch'), -count(*) FROM rows GROUP BY 2)
    SELECT count(*) INTO gone FROM rows;
    total := total + gone;
    DELETE FROM ts.waveforms w WHERE w.tenant_id = tenant AND w.user_id = wearer AND w.time >= first AND w.time < after;
    GET DIAGNOSTICS gone = ROW_COUNT;
    total := total + gone;
  END LOOP;
  IF total > 0 THEN
    RETURN total;
  END IF;

  -- Notes come last but one: what is taken from ts.stale is passed on to the others.
  FOREACH base IN ARRAY ARRAY['ts.events', 'ts.readings_minute', 'ts.readings_15min', 'ts.readings_hourly', 'ts.readings_daily',
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
  RETURN total + gone;
END $$;

REVOKE ALL ON FUNCTION ts.same_person(uuid, uuid), ts.erase_same_person() FROM PUBLIC;
RESET ROLE;
