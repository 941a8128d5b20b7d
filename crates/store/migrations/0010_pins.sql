-- A PIN that was taken back: its row keeps the name that boxes showed, and nothing else.
SET ROLE kinara_owner;
ALTER TABLE staff_pins ALTER COLUMN set_at DROP NOT NULL, ALTER COLUMN set_at DROP DEFAULT,
  ADD CHECK (verifier IS NULL OR set_at IS NOT NULL);
RESET ROLE;
