-- What the evaluation of rules and the check of a session need to know.
SET ROLE kinara_owner;

-- How far apart a rule's readings may be depends on what it is about.
CREATE POLICY ingest ON alert_rules FOR SELECT TO kinara_ingest USING (true);
GRANT SELECT (id, tenant_id, type) ON alert_rules TO kinara_ingest;

-- Whether a session stands: the member's role now, if nobody has ended the session or disabled the member. Asked before
-- there is a transaction of a tenant, for one session that a signed token names.
CREATE FUNCTION session_standing(of_member uuid, of_family uuid) RETURNS varchar
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT m.role FROM members m
    WHERE m.id = of_member AND m.disabled_at IS NULL
      AND EXISTS (SELECT FROM sessions s WHERE s.family = of_family AND s.member_id = m.id AND s.revoked_at IS NULL) $$;
REVOKE ALL ON FUNCTION session_standing(uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION session_standing(uuid, uuid) TO kinara_app;
RESET ROLE;
