-- What people decide at a box, and what a box must know of its clinic: signing keys, the log of decisions, wearers that a
-- box added, PINs, consent texts, bonds, introductions and revocations.
SET ROLE kinara_owner;

-- A gateway's Ed25519 keys. The first that it says is trusted; a later one waits until an operator says that the box was
-- made anew and is the same. Former keys stay: what was signed with them can still be checked.
CREATE TABLE gateway_keys (
  gateway_id uuid NOT NULL REFERENCES gateways ON DELETE CASCADE,
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  key bytea NOT NULL CHECK (octet_length(key) = 32),
  seen_at timestamptz NOT NULL DEFAULT now(),
  trusted_at timestamptz,
  ended_at timestamptz,     -- another key took its place
  PRIMARY KEY (gateway_id, key)
);
CREATE UNIQUE INDEX gateway_keys_one ON gateway_keys (gateway_id) WHERE trusted_at IS NOT NULL AND ended_at IS NULL;

-- Every decision whose signature is good, once, as it was signed. Rows are not changed but for what became of them: a
-- refused one may be taken after all, when what it lacked has come.
CREATE TABLE decisions (
  gateway_id uuid NOT NULL REFERENCES gateways,
  id uuid NOT NULL,         -- drawn by the box; another clinic's box can take nothing away by drawing the same
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  kind varchar(30) NOT NULL,
  at timestamptz NOT NULL,
  uncertainty_us int8 NOT NULL,
  actor_kind varchar(20) NOT NULL,
  actor_name varchar(255) NOT NULL,
  member_id uuid,           -- as the box says: no reference
  hardware_id varchar(255),
  user_id uuid,
  detail jsonb NOT NULL DEFAULT '{}',
  payload bytea NOT NULL,   -- the message without its signature
  signature bytea NOT NULL,
  key bytea NOT NULL,
  received_at timestamptz NOT NULL,
  refused varchar(50),      -- why it was not carried out; NULL: it was
  settled_at timestamptz NOT NULL,
  PRIMARY KEY (gateway_id, id)
);
CREATE INDEX decisions_tenant ON decisions (tenant_id, at DESC);
CREATE INDEX decisions_hardware ON decisions (tenant_id, hardware_id, at DESC);

-- Wearers that a box added. One that turns out to be somebody known is merged into them: assignments and consents at
-- once, what is stored already by a move.
ALTER TABLE users
  ADD COLUMN provisional boolean NOT NULL DEFAULT false,
  ADD COLUMN added_by_gateway uuid REFERENCES gateways ON DELETE SET NULL,
  ADD COLUMN confirmed_at timestamptz,
  ADD COLUMN merged_into uuid REFERENCES users,
  ADD COLUMN merged_at timestamptz,
  ADD CHECK (merged_into IS DISTINCT FROM id),
  ADD CHECK ((merged_into IS NULL) = (merged_at IS NULL));

-- What is stored under one wearer and is another's of the same clinic: two were merged, or a box told late that it had
-- given the device on. The bridge's upkeep moves it, slice by slice, until nothing more comes.
CREATE TABLE moves (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  from_user uuid NOT NULL,
  to_user uuid NOT NULL,
  device_id uuid,           -- NULL: of every device
  from_time timestamptz,    -- NULL: from the beginning
  to_time timestamptz,
  from_epoch int8,          -- where the boundary names a frame, it decides in its log
  from_seq int8,
  to_epoch int8,
  to_seq int8,
  asked_at timestamptz NOT NULL DEFAULT now(),
  tried_at timestamptz,
  settled_at timestamptz,
  CHECK (from_user <> to_user)
);
CREATE INDEX moves_open ON moves (asked_at) WHERE settled_at IS NULL;

-- Who may use the boxes' own pages. The name is the one shown there.
CREATE TABLE staff_pins (
  member_id uuid PRIMARY KEY REFERENCES members ON DELETE CASCADE,
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  name varchar(100) NOT NULL,
  verifier text CHECK (verifier LIKE '$argon2id$%'), -- NULL: taken back
  set_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX staff_pins_tenant ON staff_pins (tenant_id);

-- What wearers are asked to agree to. A text is never changed: consents name its version.
CREATE TABLE consent_texts (
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  version varchar(50) NOT NULL,
  language varchar(10) NOT NULL,
  text text NOT NULL CHECK (octet_length(text) BETWEEN 1 AND 20000),
  sha256 bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  created_by uuid,
  PRIMARY KEY (tenant_id, version, language)
);

-- Which gateway a piece of hardware is bonded with, as the boxes' decisions tell.
CREATE TABLE bonds (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  gateway_id uuid NOT NULL REFERENCES gateways ON DELETE CASCADE,
  hardware_id varchar(255) NOT NULL,
  adapter bytea NOT NULL CHECK (octet_length(adapter) = 6),
  how varchar(20) NOT NULL,
  since timestamptz NOT NULL,
  ended_at timestamptz
);
CREATE UNIQUE INDEX bonds_one ON bonds (hardware_id, gateway_id) WHERE ended_at IS NULL;
CREATE INDEX bonds_tenant ON bonds (tenant_id, hardware_id);

-- A one-use secret by which another gateway of the clinic gets to know a wearable. It is wiped once it is of no use.
CREATE TABLE introductions (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  hardware_id varchar(255) NOT NULL,
  from_gateway uuid NOT NULL REFERENCES gateways ON DELETE CASCADE,
  to_gateway uuid NOT NULL REFERENCES gateways ON DELETE CASCADE,
  secret bytea CHECK (octet_length(secret) = 16),
  state varchar(10) NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'expired')),
  asked_by uuid,
  asked_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  settled_at timestamptz,
  CHECK ((state = 'open') = (secret IS NOT NULL))
);
CREATE UNIQUE INDEX introductions_one ON introductions (hardware_id, to_gateway) WHERE state = 'open';
CREATE INDEX introductions_tenant ON introductions (tenant_id, hardware_id);

-- A gateway is to be taken off a wearable. Told until the bond is gone, is made anew, or a month is over.
CREATE TABLE revocations (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  bond_id uuid NOT NULL REFERENCES bonds ON DELETE CASCADE,
  hardware_id varchar(255) NOT NULL,
  gateway_id uuid NOT NULL REFERENCES gateways ON DELETE CASCADE,
  adapter bytea NOT NULL CHECK (octet_length(adapter) = 6),
  asked_by uuid,
  asked_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  settled_at timestamptz
);
CREATE UNIQUE INDEX revocations_one ON revocations (bond_id) WHERE settled_at IS NULL;
CREATE INDEX revocations_tenant ON revocations (tenant_id, hardware_id);

-- What was published to each gateway last: one content has one version, whichever bridge publishes it.
CREATE TABLE gateway_configs (
  gateway_id uuid PRIMARY KEY REFERENCES gateways ON DELETE CASCADE,
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  version int8 NOT NULL,
  digest bytea NOT NULL,
  changed_at timestamptz NOT NULL DEFAULT now()
);

-- Hardware whose assignments changed: what was refused for want of them is looked at again. `upto`: how far that has got.
CREATE TABLE replays (
  hardware uuid PRIMARY KEY REFERENCES hardware,
  asked_at timestamptz NOT NULL DEFAULT now(),
  upto uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
CREATE FUNCTION mark_replay() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO replays (hardware, asked_at) VALUES (NEW.hardware_id, clock_timestamp())
    ON CONFLICT (hardware) DO UPDATE SET asked_at = excluded.asked_at, upto = DEFAULT;
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION mark_replay() FROM PUBLIC;
CREATE TRIGGER device_assignments_replay
  AFTER INSERT OR UPDATE OF tenant_id, user_id, consent_id, valid_from, valid_to, from_epoch, from_seq, to_epoch, to_seq
  ON device_assignments FOR EACH ROW EXECUTE FUNCTION mark_replay();

-- The lowest frame stored for an assignment whose beginning is known as a time only: whatever its box says of the time,
-- a later frame of that log is not of an earlier assignment.
ALTER TABLE device_assignments ADD COLUMN first_epoch int8, ADD COLUMN first_seq int8,
  ADD CHECK ((first_epoch IS NULL) = (first_seq IS NULL));

ALTER TABLE quarantine DROP CONSTRAINT quarantine_what_check,
  ADD CONSTRAINT quarantine_what_check CHECK (what IN ('frame', 'event', 'payload', 'decision')),
  ADD COLUMN tried_at timestamptz; -- a decision that waits for something: when it was last tried again

-- Whoever changes what boxes are told says so; the bridges listen.
CREATE FUNCTION roster_changed() RETURNS trigger
  LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_notify('kinara_roster', '');
  RETURN NULL;
END $$;
DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['users', 'consents', 'staff_pins', 'members', 'consent_texts', 'introductions', 'revocations',
    'bonds', 'gateways', 'tenants', 'device_assignments'] LOOP
    EXECUTE format('CREATE TRIGGER roster AFTER INSERT OR DELETE OR UPDATE %s ON %I
      FOR EACH STATEMENT EXECUTE FUNCTION roster_changed()',
      CASE t WHEN 'gateways' THEN 'OF name, retired_at' -- its state changes every few seconds, and is not told
        WHEN 'members' THEN 'OF name, role, disabled_at'
        WHEN 'device_assignments' THEN 'OF user_id, consent_id, valid_from, valid_to'
        ELSE '' END, t);
  END LOOP;
END $$;

-- Whether a frame is at or after a boundary: in one log the name decides, else the time.
CREATE FUNCTION ts.is_after(epoch int8, seq int8, at timestamptz, b_epoch int8, b_seq int8, b_time timestamptz)
  RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN b_epoch IS NOT NULL AND epoch >> 32 = b_epoch >> 32
    THEN (epoch & 4294967295, seq) >= (b_epoch & 4294967295, b_seq)
    ELSE at >= b_time END $$;

-- Carries out a slice of a move: its events, and so many days of its readings. Gives how many rows moved.
CREATE FUNCTION ts.move(which uuid, most_days int) RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m public.moves;
  -- A frame's name may put it on the other side of a boundary than its time does, by as much as clocks go wrong.
  slack CONSTANT interval := interval '1 day';
  first timestamptz;
  after timestamptz;
  until timestamptz;
  moved int8;
  total int8 := 0;
BEGIN
  SELECT * INTO m FROM public.moves WHERE id = which FOR UPDATE;
  IF NOT FOUND THEN
    RETURN 0;
  END IF;
  UPDATE ts.events SET user_id = m.to_user WHERE tenant_id = m.tenant_id AND user_id = m.from_user
    AND (m.device_id IS NULL OR device_id = m.device_id)
    AND (m.from_time IS NULL OR time >= m.from_time) AND (m.to_time IS NULL OR time < m.to_time);
  GET DIAGNOSTICS total = ROW_COUNT;
  UPDATE public.event_keys SET user_id = m.to_user WHERE tenant_id = m.tenant_id AND user_id = m.from_user
    AND (m.device_id IS NULL OR device_id = m.device_id)
    AND (m.from_time IS NULL OR time >= m.from_time) AND (m.to_time IS NULL OR time < m.to_time);
  after := coalesce(m.from_time - CASE WHEN m.from_epoch IS NULL THEN interval '0' ELSE slack END, '-infinity');
  until := coalesce(m.to_time + CASE WHEN m.to_epoch IS NULL THEN interval '0' ELSE slack END, 'infinity');
  FOR i IN 1..most_days LOOP
    SELECT min(t) INTO first FROM (
      SELECT (SELECT r.time FROM ts.readings r WHERE r.tenant_id = m.tenant_id AND r.user_id = m.from_user
                AND r.type = c.type AND r.time >= after AND r.time < until
                AND (m.device_id IS NULL OR r.device_id = m.device_id) ORDER BY r.time LIMIT 1) AS t
      FROM public.channels c
      UNION ALL
      SELECT (SELECT w.time FROM ts.waveforms w WHERE w.tenant_id = m.tenant_id AND w.user_id = m.from_user
                AND w.type = c.type AND w.time >= after AND w.time < until
                AND (m.device_id IS NULL OR w.device_id = m.device_id) ORDER BY w.time LIMIT 1)
      FROM public.channels c) AS firsts;
    EXIT WHEN first IS NULL;
    after := first + interval '1 day';
    UPDATE ts.readings SET user_id = m.to_user WHERE tenant_id = m.tenant_id AND user_id = m.from_user
      AND time >= first AND time < least(after, until) AND (m.device_id IS NULL OR device_id = m.device_id)
      AND (m.from_time IS NULL OR ts.is_after(epoch, seq, time, m.from_epoch, m.from_seq, m.from_time))
      AND (m.to_time IS NULL OR NOT ts.is_after(epoch, seq, time, m.to_epoch, m.to_seq, m.to_time));
    GET DIAGNOSTICS moved = ROW_COUNT;
    total := total + moved;
    UPDATE ts.waveforms SET user_id = m.to_user WHERE tenant_id = m.tenant_id AND user_id = m.from_user
      AND time >= first AND time < least(after, until) AND (m.device_id IS NULL OR device_id = m.device_id)
      AND (m.from_time IS NULL OR ts.is_after(epoch, seq, time, m.from_epoch, m.from_seq, m.from_time))
      AND (m.to_time IS NULL OR NOT ts.is_after(epoch, seq, time, m.to_epoch, m.to_seq, m.to_time));
    GET DIAGNOSTICS moved = ROW_COUNT;
    total := total + moved;
  END LOOP;
  RETURN total;
END $$;
REVOKE ALL ON FUNCTION ts.move(uuid, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ts.move(uuid, int) TO kinara_ingest;

-- Who may see what.
DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['gateway_keys', 'decisions', 'staff_pins', 'consent_texts', 'bonds', 'introductions',
    'revocations', 'gateway_configs', 'replays', 'moves'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY owner ON %I TO kinara_owner USING (true) WITH CHECK (true)', t);
    IF t <> 'staff_pins' THEN
      EXECUTE format('CREATE POLICY ingest ON %I TO kinara_ingest USING (true) WITH CHECK (true)', t);
    END IF;
    IF t <> 'replays' THEN
      EXECUTE format('CREATE POLICY tenant ON %I TO kinara_app USING (tenant_id = (select current_tenant()))
        WITH CHECK (tenant_id = (select current_tenant()))', t);
    END IF;
  END LOOP;
END $$;

-- The application: it asks, and reads what came of it. The log, the keys and the bonds are the bridge's to write; the
-- verifiers and the one-use secrets are never read back.
GRANT SELECT ON gateway_keys, decisions, bonds TO kinara_app;
GRANT SELECT, INSERT ON consent_texts, revocations TO kinara_app;
GRANT SELECT (member_id, tenant_id, name, set_at), INSERT (member_id, tenant_id, name, verifier, set_at),
  UPDATE (name, verifier, set_at) ON staff_pins TO kinara_app;
GRANT SELECT, INSERT ON moves TO kinara_app;
GRANT SELECT (id, tenant_id, hardware_id, from_gateway, to_gateway, state, asked_by, asked_at, expires_at, settled_at),
  INSERT (id, tenant_id, hardware_id, from_gateway, to_gateway, secret, asked_by, asked_at, expires_at)
  ON introductions TO kinara_app;

-- The bridge: decisions are carried out by it.
GRANT SELECT, INSERT ON gateway_keys TO kinara_ingest;
GRANT SELECT, INSERT, UPDATE (refused, settled_at) ON decisions TO kinara_ingest;
GRANT SELECT ON consent_texts, revocations, introductions TO kinara_ingest;
GRANT SELECT, INSERT, UPDATE (adapter, how, since, ended_at) ON bonds TO kinara_ingest;
GRANT UPDATE (state, secret, settled_at) ON introductions TO kinara_ingest;
GRANT UPDATE (settled_at) ON revocations TO kinara_ingest;
GRANT SELECT, INSERT, UPDATE ON gateway_configs TO kinara_ingest;
GRANT SELECT, UPDATE (upto), DELETE ON replays TO kinara_ingest;
GRANT INSERT (id, tenant_id, display_name, time_zone, provisional, added_by_gateway, created_at),
  SELECT (external_id, provisional, merged_into) ON users TO kinara_ingest;
GRANT SELECT, INSERT, UPDATE (tried_at, settled_at) ON moves TO kinara_ingest;
GRANT INSERT, UPDATE (withdrawn_at) ON consents TO kinara_ingest;
GRANT INSERT, UPDATE (user_id, name) ON devices TO kinara_ingest;
GRANT INSERT, UPDATE (valid_to, to_epoch, to_seq, first_epoch, first_seq) ON device_assignments TO kinara_ingest;
-- Which gateways a device is connected to is in their state, which the bridge writes itself.

-- Who may use the boxes' pages now: those who still may act in the clinic.
CREATE VIEW box_staff WITH (security_barrier) AS
  SELECT p.tenant_id, p.member_id, p.name, p.verifier
  FROM staff_pins p JOIN members m ON m.id = p.member_id AND m.tenant_id = p.tenant_id
  WHERE p.verifier IS NOT NULL AND m.disabled_at IS NULL AND m.role IN ('admin', 'clinician');
GRANT SELECT ON box_staff TO kinara_ingest;
RESET ROLE;
