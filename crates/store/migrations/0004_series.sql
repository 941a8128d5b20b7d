-- Time series. Base tables in a schema of their own, which the application role cannot enter; the next step (one of
-- 0005.plain and 0005.timescale) makes them partitioned tables or hypertables.
CREATE SCHEMA ts AUTHORIZATION kinara_owner;
GRANT USAGE ON SCHEMA ts TO kinara_ingest;
SET ROLE kinara_owner;

-- What storage this database has, decided once.
CREATE TABLE ts.storage (
  kind text NOT NULL CHECK (kind IN ('plain', 'timescale'))
);
RESET ROLE;
