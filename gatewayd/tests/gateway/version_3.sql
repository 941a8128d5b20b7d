-- The tables as versions up to 0.1 wrote them, with the rows that are there.
ALTER TABLE meta RENAME TO new_meta; ALTER TABLE devices RENAME TO new_devices;
ALTER TABLE epochs RENAME TO new_epochs; ALTER TABLE anchors RENAME TO new_anchors;
ALTER TABLE pieces RENAME TO new_pieces; ALTER TABLE batches RENAME TO new_batches;
ALTER TABLE events RENAME TO new_events; ALTER TABLE quarantine RENAME TO new_quarantine;
ALTER TABLE damaged RENAME TO new_damaged;
DROP INDEX pieces_by_identity; DROP INDEX batches_in_order; DROP INDEX events_unsealed; DROP INDEX events_sealed;
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE devices (id INTEGER PRIMARY KEY, hardware TEXT NOT NULL UNIQUE);
CREATE TABLE epochs (
    device INTEGER NOT NULL, epoch INTEGER NOT NULL, received BLOB NOT NULL,
    last_ticks INTEGER NOT NULL, boot BLOB,
    PRIMARY KEY (device, epoch)
) WITHOUT ROWID;
CREATE TABLE anchors (
    device INTEGER NOT NULL, epoch INTEGER NOT NULL, ticks INTEGER NOT NULL,
    utc_us INTEGER, uncertainty_us INTEGER NOT NULL, boot_us INTEGER, boot_id TEXT,
    PRIMARY KEY (device, epoch, ticks)
) WITHOUT ROWID;
CREATE TABLE pieces (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device INTEGER NOT NULL, epoch INTEGER NOT NULL, class INTEGER NOT NULL, form INTEGER NOT NULL,
    first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, frames INTEGER NOT NULL, bytes INTEGER NOT NULL,
    received_us INTEGER NOT NULL, received_boot_us INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX pieces_by_identity ON pieces (device, epoch, first_seq);
CREATE TABLE batches (
    kind INTEGER NOT NULL, buffer INTEGER NOT NULL, sequence INTEGER NOT NULL,
    ordinal INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, reason TEXT,
    sha256 BLOB NOT NULL, frames TEXT NOT NULL, oldest_us INTEGER NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (kind, buffer, sequence)
);
CREATE INDEX batches_in_order ON batches (kind, state, ordinal);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, gap INTEGER NOT NULL,
    body BLOB, buffer INTEGER, sequence INTEGER, put_boot_us INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX events_unsealed ON events (id) WHERE body IS NOT NULL AND buffer IS NULL;
CREATE INDEX events_sealed ON events (buffer, sequence) WHERE body IS NOT NULL;
CREATE TABLE quarantine (
    device INTEGER NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL, crc INTEGER NOT NULL,
    reason TEXT NOT NULL, received_us INTEGER NOT NULL, frame BLOB NOT NULL,
    PRIMARY KEY (device, epoch, seq, crc)
) WITHOUT ROWID;
CREATE TABLE damaged (
    id INTEGER PRIMARY KEY AUTOINCREMENT, origin TEXT NOT NULL, identity TEXT NOT NULL, why TEXT NOT NULL,
    found_us INTEGER NOT NULL, body BLOB
);
INSERT INTO meta SELECT key, value FROM new_meta;
INSERT INTO devices SELECT id, hardware FROM new_devices;
INSERT INTO epochs SELECT device, epoch, received, last_ticks, boot FROM new_epochs;
INSERT INTO anchors SELECT device, epoch, ticks, utc_us, uncertainty_us, boot_us, boot_id FROM new_anchors;
INSERT INTO pieces SELECT id, device, epoch, class, form, first_seq, last_seq, frames, bytes, received_us,
                          received_boot_us, body FROM new_pieces;
INSERT INTO batches SELECT kind, buffer, sequence, ordinal, state, reason, sha256, '{}', oldest_us, payload
    FROM new_batches;
DROP TABLE new_meta; DROP TABLE new_devices; DROP TABLE new_epochs; DROP TABLE new_anchors; DROP TABLE new_pieces;
DROP TABLE new_batches; DROP TABLE new_events; DROP TABLE new_quarantine; DROP TABLE new_damaged;
DROP TABLE lost; DROP TABLE wanted; DROP TABLE sealed_lines; DROP TABLE sensors;
PRAGMA user_version = 3;
