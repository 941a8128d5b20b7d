-- What senders claim is bounded: names of channels by clinic; what is put aside is one row for each thing.
SET ROLE kinara_owner;

-- A channel beyond the registry is named by the clinic that brought it first, and a clinic may name a few. Those of the
-- registry, and those named before, are nobody's.
ALTER TABLE channels ADD COLUMN named_by uuid REFERENCES tenants ON DELETE SET NULL;
CREATE INDEX channels_named_by ON channels (named_by) WHERE named_by IS NOT NULL;

-- What comes over HTTP has names and no count: a number that its sender never used is not missing (decision 30). Whoever hears first of
-- an epoch by such a number, stored or not, says so here. Of what was heard before, a slice at a time says it, withdraws the gaps that were none,
-- and notes epochs whose frames' times are not known. Gives how many epochs it looked at.
ALTER TABLE ledger ADD COLUMN named boolean NOT NULL DEFAULT false;
CREATE FUNCTION ts.note_epochs() RETURNS int8
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  this record;
  over_http boolean;
  uncertain boolean;
  looked int8 := 0;
BEGIN
  FOR this IN SELECT e.hardware, e.epoch FROM ts.next_epochs('epochs', 1000) e ORDER BY 1, 2 LOOP
    looked := looked + 1;
    SELECT bool_and(f.ref_ticks = 0 AND f.ref_utc_us = 0), bool_or(f.time_uncertain) INTO over_http, uncertain
      FROM public.frame_times f WHERE f.hardware = this.hardware AND f.epoch = this.epoch;
    IF over_http THEN
      UPDATE public.ledger l SET named = true WHERE l.hardware = this.hardware AND l.epoch = this.epoch AND NOT l.named;
      UPDATE public.gaps g SET withdrawn_at = now(), updated_at = now()
        WHERE g.hardware = this.hardware AND g.epoch = this.epoch AND g.reason = 'late' AND g.withdrawn_at IS NULL;
    END IF;
    IF uncertain THEN
      INSERT INTO ts.unmarked VALUES (this.hardware, this.epoch) ON CONFLICT DO NOTHING;
    END IF;
  END LOOP;
  RETURN looked;
END $$;
REVOKE ALL ON FUNCTION ts.note_epochs() FROM PUBLIC;

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
