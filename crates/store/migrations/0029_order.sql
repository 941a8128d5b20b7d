-- Beside each epoch of the ledger: the ends of what is in with certain times, so that a frame whose time would come before one
-- that is numbered before it is known without a look at any reading (decision 35).
SET ROLE kinara_owner;
ALTER TABLE ledger ADD COLUMN stretches bytea NOT NULL DEFAULT '';
COMMENT ON COLUMN ledger.stretches IS 'ends of stretches of frames, by class; written and read by the writers alone';
RESET ROLE;
