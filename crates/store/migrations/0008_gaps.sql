-- Gaps and refusals between clinics: neither tells one clinic of another's.
SET ROLE kinara_owner;

-- As before, but: a gap that nobody has a time for is shown to the wearer who has the device now, not to all who ever
-- had it; and a gateway is named to its own clinic alone.
CREATE OR REPLACE VIEW wearer_gaps WITH (security_barrier) AS
  SELECT g.id, a.tenant_id, a.user_id, a.device_id, g.reason,
    greatest(g.from_time, a.valid_from) AS from_time,
    least(g.to_time, a.valid_to) AS to_time,
    (SELECT w.id FROM gateways w WHERE w.id = g.gateway_id AND w.tenant_id = a.tenant_id) AS gateway_id,
    g.created_at,
    (SELECT sum(upper(s) - lower(s)) FROM unnest(g.seqs) s)::int8 AS frames
  FROM gaps g JOIN device_assignments a ON a.hardware_id = g.hardware
  WHERE a.tenant_id = (select current_tenant()) AND g.withdrawn_at IS NULL
    AND (g.from_time IS NOT NULL OR g.to_time IS NOT NULL OR a.valid_to IS NULL)
    AND tstzrange(a.valid_from, a.valid_to) &&
      tstzrange(least(g.from_time, g.to_time), greatest(g.from_time, g.to_time), '[]');

-- Once for each clinic that brought it: what one clinic's gateway sent is no reason to drop what another's did.
DROP INDEX quarantine_once;
CREATE UNIQUE INDEX quarantine_once ON quarantine
  (reason, digest, (coalesce(hardware_id, '')), (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'::uuid)));
RESET ROLE;
