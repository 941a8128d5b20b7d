-- The newest reading of each wearer and type of the last seven days, for a page that has just been opened. A view over
-- `readings` cannot answer this from the index: a limit does not reach through a security barrier. So the barrier is
-- around the whole question.
SET ROLE kinara_owner;
CREATE VIEW latest_readings WITH (security_barrier) AS
  SELECT u.tenant_id, u.id AS user_id, r.device_id, c.name AS reading_type, c.unit, r.time, r.value, r.quality,
    r.epoch, r.seq, r.idx
  FROM users u
  CROSS JOIN channels c
  CROSS JOIN LATERAL (
    SELECT s.* FROM ts.readings s
    WHERE s.tenant_id = (select current_tenant()) AND s.user_id = u.id AND s.type = c.type
      AND s.time > now() - interval '7 days'
    ORDER BY s.time DESC LIMIT 1) r
  WHERE u.tenant_id = (select current_tenant());
GRANT SELECT ON latest_readings TO kinara_app;
RESET ROLE;
