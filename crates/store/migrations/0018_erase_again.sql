-- A writer that had begun before a tombstone was set may commit after the erasure: it is done again when no such writer can
-- be left, and not only in the night.
SET ROLE kinara_jobs;
CREATE OR REPLACE FUNCTION jobs.of_tenant() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  -- A transaction is given up after its statements' time (30 s each, by default), and tried a few times.
  settled CONSTANT interval := interval '10 minutes';
  this jsonb := to_jsonb(NEW);
  about text := this ->> TG_ARGV[1];
  payload json := json_build_object('tenant', this ->> 'tenant_id', 'id', about);
  queue text := 'tenant:' || (this ->> 'tenant_id');
BEGIN
  PERFORM jobs.add_job(TG_ARGV[0], payload, queue_name => queue, job_key => TG_ARGV[0] || ':' || about);
  IF TG_ARGV[0] = 'erase' THEN
    PERFORM jobs.add_job(TG_ARGV[0], payload, queue_name => queue, job_key => 'erase again:' || about,
      run_at => now() + settled);
  END IF;
  RETURN NULL;
END $$;
RESET ROLE;
