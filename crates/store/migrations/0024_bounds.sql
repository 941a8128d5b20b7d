-- What senders claim is bounded: names of channels by clinic; what is put aside is one row for each thing.
SET ROLE kinara_owner;

-- A channel beyond the registry is named by the clinic that brought it first, and a clinic may name a few. Those of the
-- registry, and those named before, are nobody's.
ALTER TABLE channels ADD COLUMN named_by uuid REFERENCES tenants ON DELETE SET NULL;
CREATE INDEX channels_named_by ON channels (named_by) WHERE named_by IS NOT NULL;

-- By identity: two frames may have the same bytes left, and are two.
DROP INDEX quarantine_once;
CREATE UNIQUE INDEX quarantine_once ON quarantine
  (reason, digest, (coalesce(hardware_id, '')), (coalesce(epoch, 0)), (coalesce(seq, -1)),
   (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'::uuid)));

-- A request whose job is dead waits for an operator, and takes no place of its clinic's others.
ALTER TABLE ingest_requests ADD COLUMN given_up boolean NOT NULL DEFAULT false;
GRANT UPDATE (given_up) ON ingest_requests TO kinara_ingest;
RESET ROLE;

-- A clinic's requests have numbers one after another, and a clinic that had none waiting begins where the others stand:
-- whoever asks one thing is not behind the hundredth of somebody else, whenever that was asked. The queue is taken by
-- these numbers (its priority), then by age. What is not a request goes first, as before.
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
  place int := 0;
BEGIN
  IF TG_ARGV[0] = 'take_request' THEN
    SELECT greatest(0, min(j.priority) FILTER (WHERE j.is_available),
        1 + max(j.priority) FILTER (WHERE q.queue_name = queue AND j.attempts < j.max_attempts))
      INTO place
      FROM jobs._private_jobs j JOIN jobs._private_tasks t ON t.id = j.task_id
        LEFT JOIN jobs._private_job_queues q ON q.id = j.job_queue_id
      WHERE t.identifier = TG_ARGV[0];
  END IF;
  PERFORM jobs.add_job(TG_ARGV[0], payload, queue_name => queue, job_key => TG_ARGV[0] || ':' || about,
    priority => least(place, 32000));
  IF TG_ARGV[0] = 'erase' THEN
    PERFORM jobs.add_job(TG_ARGV[0], payload, queue_name => queue, job_key => 'erase again:' || about,
      run_at => now() + settled);
  END IF;
  RETURN NULL;
END $$;
RESET ROLE;
