-- What came in, how its time came about, what will not come, and what was refused. By hardware, not by tenant.
-- An epoch is 64 unsigned bits, kept in the same 64 bits read as signed.
SET ROLE kinara_owner;

-- Rows are never deleted by retention or erasure: there is no health data in them.
CREATE TABLE ledger (
  hardware uuid NOT NULL REFERENCES hardware,
  epoch int8 NOT NULL,
  seqs int8multirange NOT NULL DEFAULT '{}', -- frames that are in
  highest int8 NOT NULL DEFAULT -1,          -- highest seq ever heard of in this epoch
  highest_time timestamptz,                  -- when that frame's last sample was taken
  -- What the next boot's anchor said about the end of this epoch.
  end_seq int8,
  end_ticks int8,
  next_epoch int8,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (hardware, epoch)
) WITH (fillfactor = 70);

-- utc_us(t) = ref_utc_us + (t - ref_ticks) * 1000 * (1 + rate_ppb / 1e9)
-- uncertainty_us(t) = uncertainty_us + |t - ref_ticks| * 1000 * growth_ppb / 1e9
CREATE TABLE frame_times (
  hardware uuid NOT NULL REFERENCES hardware,
  epoch int8 NOT NULL,
  seqs int8multirange NOT NULL,
  ref_ticks int8 NOT NULL,
  ref_utc_us int8 NOT NULL,
  rate_ppb int4 NOT NULL,
  uncertainty_us int8 NOT NULL,
  growth_ppb int8 NOT NULL,
  time_uncertain boolean NOT NULL,
  PRIMARY KEY (hardware, epoch, ref_ticks, ref_utc_us, rate_ppb, uncertainty_us, growth_ppb, time_uncertain)
) WITH (fillfactor = 70);

CREATE TABLE event_keys (
  hardware uuid NOT NULL REFERENCES hardware,
  kind varchar(50) NOT NULL,
  producer varchar(100) NOT NULL,
  epoch int8 NOT NULL,
  grid int8 NOT NULL, -- onset tick / grid
  tenant_id uuid NOT NULL,
  user_id uuid NOT NULL,
  device_id uuid NOT NULL,
  time timestamptz NOT NULL,
  PRIMARY KEY (hardware, kind, producer, epoch, grid)
);

-- Reasons: reset, overflow, quota, gateway_lost (final unless the data come after all); late (open: somebody may still
-- hold it); no_consent, erased, expired (we had it, and did not keep it).
-- seqs: the frames that are missing. NULL: samples that were never in a frame (reset), bounded by ticks and time.
CREATE TABLE gaps (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  hardware uuid NOT NULL REFERENCES hardware,
  epoch int8 NOT NULL,
  seqs int8multirange,
  from_ticks int8,
  to_ticks int8,
  reason text NOT NULL CHECK (reason IN
    ('reset', 'overflow', 'quota', 'gateway_lost', 'late', 'no_consent', 'erased', 'expired')),
  from_time timestamptz,
  to_time timestamptz,
  gateway_id uuid REFERENCES gateways ON DELETE SET NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  withdrawn_at timestamptz
);
CREATE INDEX gaps_hardware ON gaps (hardware, epoch) WHERE withdrawn_at IS NULL;
CREATE UNIQUE INDEX gaps_once ON gaps (hardware, epoch, reason) WHERE seqs IS NULL;

-- What was refused, frame by frame, with all that an ordinary write needs to take it later.
CREATE TABLE quarantine (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid REFERENCES tenants ON DELETE CASCADE, -- whose gateway brought it
  gateway_id uuid REFERENCES gateways ON DELETE SET NULL,
  what varchar(10) NOT NULL CHECK (what IN ('frame', 'event', 'payload')),
  hardware_id varchar(255),
  epoch int8,
  seq int8,
  reason varchar(50) NOT NULL,
  detail text NOT NULL DEFAULT '',
  payload bytea NOT NULL, -- the frame as received; an event or a payload as published
  digest bytea NOT NULL,  -- SHA-256 of payload
  fit jsonb,              -- how the gateway stamped it
  received_at timestamptz NOT NULL DEFAULT now(),
  replayed_at timestamptz -- taken after all
);
CREATE UNIQUE INDEX quarantine_once ON quarantine (reason, digest, (coalesce(hardware_id, '')));
CREATE INDEX quarantine_frame ON quarantine (hardware_id, epoch, seq);
CREATE INDEX quarantine_tenant ON quarantine (tenant_id, received_at);
RESET ROLE;
