-- Devices whose refused frames are taken again have turns. A mark stays for a minute after its device has been looked
-- through, for writers that had begun before; the oldest marks alone were looked at, so a device that was given to somebody
-- just after many others waited for all of them.
-- Open gaps are looked at in turn, too, so many a sweep.
SET ROLE kinara_owner;
ALTER TABLE gaps ADD COLUMN looked_at timestamptz;
ALTER TABLE replays ADD COLUMN looked_at timestamptz;
COMMENT ON COLUMN replays.looked_at IS 'when it had its last turn';
GRANT UPDATE (looked_at) ON replays TO kinara_ingest;
RESET ROLE;
