-- Devices and gateways, and whose a device is when.
SET ROLE kinara_owner;

-- One row for a device in the whole system, whichever clinics ever held it. No tenant, no health data.
CREATE TABLE hardware (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  hardware_id varchar(255) NOT NULL UNIQUE,
  created_at timestamptz NOT NULL DEFAULT now()
);

-- A tenant's view of a piece of hardware.
CREATE TABLE devices (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  user_id uuid REFERENCES users ON DELETE SET NULL,
  device_type varchar(50) NOT NULL DEFAULT 'kinara',
  hardware_id varchar(255),
  name varchar(255),
  firmware_version varchar(50),
  last_seen_at timestamptz,
  metadata jsonb NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL DEFAULT now(),
  battery_percent smallint,
  worn boolean,
  link jsonb, -- {gateway_id, connected, rssi_dbm, buffered_frames, backlog_frames, problem}
  UNIQUE (tenant_id, hardware_id)
);
CREATE INDEX devices_hardware ON devices (hardware_id);

CREATE TABLE gateways (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  name varchar(255) NOT NULL,
  state jsonb NOT NULL DEFAULT '{}', -- the gateway's last `state`, as published
  last_seen_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  retired_at timestamptz
);
CREATE INDEX gateways_tenant ON gateways (tenant_id);

-- The lives of a gateway's daemon: each start draws a buffer and names the one before it, by its own database's
-- memory. A life that nobody continues is a database that was deleted or restored.
CREATE TABLE gateway_buffers (
  gateway_id uuid NOT NULL REFERENCES gateways ON DELETE CASCADE,
  buffer int8 NOT NULL,
  previous int8,            -- NULL: none
  store_id int8 NOT NULL,
  first_seen_at timestamptz NOT NULL DEFAULT now(),
  last_seen_at timestamptz NOT NULL DEFAULT now(),
  broke_at timestamptz,     -- this life does not continue the newest one: what that one held is gone
  PRIMARY KEY (gateway_id, buffer)
);

-- Intervals that never overlap, in at most one tenant at a time. A boundary is a time and, where the device was
-- connected, an (epoch, seq), which then decides: the frame of that name is the first of the new interval.
-- No foreign key to users: erasing a person leaves this row, by which late frames are still known as theirs.
CREATE TABLE device_assignments (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  hardware_id uuid NOT NULL REFERENCES hardware,
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  user_id uuid NOT NULL,
  device_id uuid NOT NULL REFERENCES devices,
  consent_id uuid REFERENCES consents ON DELETE SET NULL,
  valid_from timestamptz NOT NULL,
  valid_to timestamptz,
  from_epoch int8,
  from_seq int8,
  to_epoch int8,
  to_seq int8,
  created_at timestamptz NOT NULL DEFAULT now(),
  CHECK (valid_to IS NULL OR valid_to >= valid_from),
  CHECK ((from_epoch IS NULL) = (from_seq IS NULL)),
  CHECK ((to_epoch IS NULL) = (to_seq IS NULL)),
  EXCLUDE USING gist (hardware_id WITH =, tstzrange(valid_from, valid_to) WITH &&)
);
CREATE INDEX device_assignments_device ON device_assignments (device_id);
CREATE INDEX device_assignments_user ON device_assignments (tenant_id, user_id);

-- An erased person. Late batches are measured against it, and it is applied again after a restore.
CREATE TABLE tombstones (
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  user_id uuid NOT NULL,
  erased_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, user_id)
);

-- The channel registry as the views need it. `type` is the channel's number, 16 bits read as signed.
CREATE TABLE channels (
  type int2 PRIMARY KEY,
  name varchar(50) NOT NULL UNIQUE,
  unit varchar(20)
);
INSERT INTO channels (type, name, unit) VALUES
  (1, 'heart_rate', 'bpm'), (2, 'rr_interval', 'ms'), (3, 'skin_temperature', '°C'), (4, 'ambient_temperature', '°C'),
  (5, 'eda', 'µS'), (6, 'spo2', '%'), (7, 'activity_counts', 'counts'), (8, 'steps', 'steps'), (9, 'battery', '%'),
  (64, 'ppg', 'counts'), (65, 'acceleration', 'g');
RESET ROLE;
