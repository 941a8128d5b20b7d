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
RESET ROLE;
