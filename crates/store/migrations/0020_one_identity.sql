-- One device, one name; one wearer, one number.
--
-- The operator's command took what looked like an id: small letters, hyphens, anything behind `bt:`. Gateways always wrote
-- capitals, so that one sensor could be two devices, and two wearers' at once. Names are brought to the form in which every
-- door writes them now; two that become one are joined. What cannot be decided here is left as it is, and said in the
-- audit log of the clinic (`migration.hardware`, `migration.wearer`). This file may be run again.
SET ROLE kinara_owner;

DO $$
DECLARE
  old record;
  spell record;
  kept uuid;
BEGIN
  CREATE TEMPORARY TABLE renamed ON COMMIT DROP AS
    SELECT h.id, h.hardware_id AS was, n.name FROM hardware h
    CROSS JOIN LATERAL (SELECT CASE
      WHEN h.hardware_id ~* '^kinara:[0-9a-f]{16}$' THEN lower(h.hardware_id)
      WHEN h.hardware_id ~* '^bt:([0-9a-f]{2}[:-]?){5}[0-9a-f]{2}$' THEN 'bt:' || upper(regexp_replace(
        regexp_replace(substr(h.hardware_id, 4), '[:-]', '', 'g'), '(..)(?!$)', '\1:', 'g'))
      END AS name) n
    WHERE n.name <> h.hardware_id;

  -- Whose is somebody's now comes first: it keeps its row where nobody has the right name yet.
  FOR old IN
    SELECT r.* FROM renamed r ORDER BY NOT EXISTS (SELECT FROM device_assignments a
      WHERE a.hardware_id = r.id AND a.valid_to IS NULL), r.id
  LOOP
    SELECT h.id INTO kept FROM hardware h WHERE h.hardware_id = old.name;
    IF NOT FOUND THEN
      UPDATE hardware SET hardware_id = old.name WHERE id = old.id;
      kept := old.id;
    ELSE
      FOR spell IN SELECT * FROM device_assignments a WHERE a.hardware_id = old.id ORDER BY a.valid_from LOOP
        IF EXISTS (SELECT FROM device_assignments k WHERE k.hardware_id = kept
            AND tstzrange(k.valid_from, k.valid_to) && tstzrange(spell.valid_from, spell.valid_to)) THEN
          -- Two wearers at the same time: nobody here knows who wore it. What is stored stays where it is.
          UPDATE device_assignments SET valid_to = greatest(valid_from, now()) WHERE id = spell.id AND valid_to IS NULL;
        ELSE
          UPDATE device_assignments SET hardware_id = kept WHERE id = spell.id;
        END IF;
        INSERT INTO audit_log (tenant_id, actor, action, target, detail)
          SELECT a.tenant_id, 'migration', 'migration.hardware', old.name, jsonb_build_object('was', old.was,
            'assignment', a.id, 'user_id', a.user_id, 'joined', a.hardware_id = kept,
            'overlaps', a.hardware_id <> kept)
          FROM device_assignments a WHERE a.id = spell.id;
      END LOOP;

      INSERT INTO ledger AS l (hardware, epoch, seqs, highest, highest_time, end_seq, end_ticks, next_epoch, updated_at)
        SELECT kept, epoch, seqs, highest, highest_time, end_seq, end_ticks, next_epoch, updated_at FROM ledger
        WHERE hardware = old.id
        ON CONFLICT (hardware, epoch) DO UPDATE SET seqs = l.seqs + excluded.seqs,
          highest = greatest(l.highest, excluded.highest),
          highest_time = CASE WHEN excluded.highest > l.highest THEN excluded.highest_time ELSE l.highest_time END;
      DELETE FROM ledger WHERE hardware = old.id;
      INSERT INTO frame_times AS f SELECT kept, t.epoch, t.seqs, t.ref_ticks, t.ref_utc_us, t.rate_ppb, t.uncertainty_us,
          t.growth_ppb, t.time_uncertain FROM frame_times t WHERE t.hardware = old.id
        ON CONFLICT (hardware, epoch, ref_ticks, ref_utc_us, rate_ppb, uncertainty_us, growth_ppb, time_uncertain)
          DO UPDATE SET seqs = f.seqs + excluded.seqs;
      DELETE FROM frame_times WHERE hardware = old.id;
      INSERT INTO gateway_delivered AS d (gateway_id, hardware, epoch, seqs, told_at)
        SELECT gateway_id, kept, epoch, seqs, told_at FROM gateway_delivered WHERE hardware = old.id
        ON CONFLICT (gateway_id, hardware, epoch) DO UPDATE SET seqs = d.seqs + excluded.seqs;
      DELETE FROM gateway_delivered WHERE hardware = old.id;
      UPDATE event_keys e SET hardware = kept WHERE e.hardware = old.id AND NOT EXISTS (SELECT FROM event_keys k
        WHERE k.hardware = kept AND (k.kind, k.producer, k.epoch, k.grid) = (e.kind, e.producer, e.epoch, e.grid));
      DELETE FROM event_keys WHERE hardware = old.id;
      UPDATE gaps g SET hardware = kept WHERE g.hardware = old.id AND (g.seqs IS NOT NULL OR NOT EXISTS (SELECT FROM gaps k
        WHERE k.hardware = kept AND k.seqs IS NULL AND (k.epoch, k.reason) = (g.epoch, g.reason)));
      INSERT INTO wear SELECT kept, epoch, at, worn FROM wear WHERE hardware = old.id ON CONFLICT DO NOTHING;
      DELETE FROM wear WHERE hardware = old.id;
      DELETE FROM replays WHERE hardware = old.id;
    END IF;

    -- What was refused under the former name is looked at again.
    UPDATE quarantine q SET hardware_id = old.name WHERE q.hardware_id = old.was AND NOT EXISTS (SELECT FROM quarantine k
      WHERE k.hardware_id = old.name AND (k.reason, k.digest) = (q.reason, q.digest)
        AND k.tenant_id IS NOT DISTINCT FROM q.tenant_id);
    INSERT INTO replays (hardware) VALUES (kept)
      ON CONFLICT (hardware) DO UPDATE SET asked_at = clock_timestamp(), upto = DEFAULT;
    UPDATE decisions SET hardware_id = old.name WHERE hardware_id = old.was;
    UPDATE alerts a SET subject = old.name || substr(a.subject, length(old.was) + 1)
      WHERE a.kind = 'frames' AND starts_with(a.subject, old.was || ' ') AND a.withdrawn_at IS NULL
        AND NOT EXISTS (SELECT FROM alerts k WHERE k.kind = 'frames' AND k.withdrawn_at IS NULL
          AND k.subject = old.name || substr(a.subject, length(old.was) + 1)
          AND k.tenant_id IS NOT DISTINCT FROM a.tenant_id);

    -- Of a clinic's rows for it the one that is worn keeps the name.
    FOR spell IN
      SELECT d.id, d.hardware_id, row_number() OVER (PARTITION BY d.tenant_id ORDER BY NOT EXISTS (
          SELECT FROM device_assignments a WHERE a.device_id = d.id AND a.hardware_id = kept AND a.valid_to IS NULL),
        d.hardware_id <> old.name, d.created_at, d.id) AS place
      FROM devices d WHERE d.hardware_id IN (old.was, old.name) ORDER BY place DESC
    LOOP
      IF spell.place > 1 THEN
        UPDATE devices SET hardware_id = NULL, user_id = NULL,
          name = left(coalesce(name, 'Sensor') || ' (' || spell.hardware_id || ', joined)', 255) WHERE id = spell.id;
      ELSE
        UPDATE devices SET hardware_id = old.name WHERE id = spell.id AND hardware_id <> old.name;
      END IF;
    END LOOP;
    DELETE FROM hardware h WHERE h.id = old.id AND h.id <> kept
      AND NOT EXISTS (SELECT FROM device_assignments a WHERE a.hardware_id = h.id)
      AND NOT EXISTS (SELECT FROM gaps g WHERE g.hardware = h.id);
  END LOOP;
  DROP TABLE renamed;
END $$;

-- Wearers: no space or anything invisible around a name, nor in a number; digits of every script as 0 to 9. Of two that
-- become one number the one who has it keeps it, and the other is left for a person to look at.
DO $$
DECLARE
  blank CONSTANT text := U&'[\00AD\034F\061C\115F\1160\17B4\17B5\180B-\180F\200B-\200F\202A-\202E\2060-\206F\2800\3164\FE00-\FE0F\FEFF\FFA0]';
  zeros CONSTANT int[] := ARRAY[1632, 1776, 1984, 2406, 2534, 2662, 2790, 2918, 3046, 3174, 3302, 3430, 3558, 3664, 3792,
    3872, 4160, 4240, 6112, 6160, 6470, 6608, 6784, 6800, 6992, 7088, 7232, 7248, 42528, 43216, 43264, 43472, 43504, 43600,
    44016, 65296];
  digits text;
  wearer record;
BEGIN
  SELECT string_agg(chr(zero + digit), '' ORDER BY zero, digit) INTO digits
    FROM unnest(zeros) zero, generate_series(0, 9) digit;
  UPDATE users SET display_name = nullif(regexp_replace(display_name, '^(\s|' || blank || ')+|(\s|' || blank || ')+$', '', 'g'), '')
    WHERE display_name ~ ('^(\s|' || blank || ')|(\s|' || blank || ')$') OR display_name = '';
  FOR wearer IN
    SELECT u.id, u.tenant_id, u.external_id, nullif(btrim(translate(regexp_replace(regexp_replace(u.external_id, blank, '', 'g'),
        '\s+', ' ', 'g'), digits, repeat('0123456789', array_length(zeros, 1)))), '') AS number
    FROM users u WHERE u.external_id IS NOT NULL ORDER BY u.created_at, u.id
  LOOP
    CONTINUE WHEN wearer.number IS NOT DISTINCT FROM wearer.external_id;
    IF EXISTS (SELECT FROM users u WHERE u.tenant_id = wearer.tenant_id AND u.external_id = wearer.number) THEN
      INSERT INTO audit_log (tenant_id, actor, action, target, detail) VALUES (wearer.tenant_id, 'migration',
        'migration.wearer', 'user:' || wearer.id,
        jsonb_build_object('external_id', wearer.external_id, 'same_as', wearer.number));
    ELSE
      UPDATE users SET external_id = wearer.number WHERE id = wearer.id;
    END IF;
  END LOOP;
END $$;
RESET ROLE;
