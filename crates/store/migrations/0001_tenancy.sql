-- Roles, the tenant of a transaction, and the tables a clinic is made of.
--
-- Three roles. kinara_owner owns everything and cannot log in. kinara_app serves the clinics' people: it is held to
-- one tenant a transaction. kinara_ingest writes for all tenants and reads no reading. Logins are the operator's:
--   CREATE ROLE api LOGIN PASSWORD '…' IN ROLE kinara_app;
-- Roles belong to the whole server, and another database's migration may be making them right now.
DO $$
DECLARE
  role_name text;
BEGIN
  FOREACH role_name IN ARRAY ARRAY['kinara_owner', 'kinara_app', 'kinara_ingest'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS', role_name);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END LOOP;
  -- A superuser needs no membership; another migrating role must be able to become the owner.
  IF NOT pg_has_role(current_user, 'kinara_owner', 'MEMBER') THEN
    EXECUTE format('GRANT kinara_owner TO %I', current_user);
  END IF;
  EXECUTE format('GRANT CREATE ON DATABASE %I TO kinara_owner', current_database());
END $$;

CREATE EXTENSION IF NOT EXISTS btree_gist;
GRANT CREATE, USAGE ON SCHEMA public TO kinara_owner;
GRANT USAGE ON SCHEMA public TO kinara_app, kinara_ingest;
SET ROLE kinara_owner;

-- Always called as (select current_tenant()), so that it is evaluated once a query. Unset: NULL, which equals nothing.
CREATE FUNCTION current_tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
  AS $$ SELECT nullif(current_setting('kinara.tenant', true), '')::uuid $$;

CREATE TABLE tenants (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  name varchar(255) NOT NULL,
  slug varchar(100) NOT NULL UNIQUE,
  plan varchar(50) NOT NULL DEFAULT 'starter',
  settings jsonb NOT NULL DEFAULT '{}',
  region varchar(50) NOT NULL DEFAULT 'local',
  time_zone varchar(64) NOT NULL DEFAULT 'UTC',
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- People who log in.
CREATE TABLE members (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  email varchar(255) NOT NULL,
  name varchar(255),
  role varchar(20) NOT NULL CHECK (role IN ('admin', 'clinician', 'viewer')),
  password_hash text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  last_login_at timestamptz,
  disabled_at timestamptz
);
-- One address, one login: the login form does not ask for a clinic.
CREATE UNIQUE INDEX members_email ON members (lower(email));
CREATE INDEX members_tenant ON members (tenant_id);

-- Refresh tokens, by hash. A token is used once; using it again revokes its whole family.
CREATE TABLE sessions (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  member_id uuid NOT NULL REFERENCES members ON DELETE CASCADE,
  family uuid NOT NULL,
  token_hash bytea NOT NULL UNIQUE,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  used_at timestamptz,
  revoked_at timestamptz
);
CREATE INDEX sessions_family ON sessions (family);
CREATE INDEX sessions_member ON sessions (member_id);

CREATE TABLE api_keys (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  key_hash varchar(64) NOT NULL UNIQUE,
  name varchar(255),
  scopes text[] NOT NULL DEFAULT '{}',
  last_used_at timestamptz,
  expires_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_keys_tenant ON api_keys (tenant_id);

-- Wearers.
CREATE TABLE users (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  external_id varchar(255),
  email varchar(255),
  display_name varchar(255),
  time_zone varchar(64) NOT NULL DEFAULT 'UTC',
  profile jsonb NOT NULL DEFAULT '{}',
  preferences jsonb NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (tenant_id, external_id)
);

CREATE TABLE consents (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
  version varchar(50) NOT NULL,
  given_at timestamptz NOT NULL DEFAULT now(),
  withdrawn_at timestamptz,
  detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX consents_user ON consents (tenant_id, user_id);

CREATE TABLE audit_log (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
  at timestamptz NOT NULL DEFAULT now(),
  actor text NOT NULL,
  action text NOT NULL,
  target text,
  detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_log_at ON audit_log (tenant_id, at DESC);

CREATE TABLE model_versions (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  name varchar(100) NOT NULL,
  version varchar(50) NOT NULL,
  sha256 bytea,
  metadata jsonb NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (name, version)
);
RESET ROLE;
