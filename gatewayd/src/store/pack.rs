//! Packing: while there is no way out, small rows of one wearable are joined into columns, which take a third of the
//! room.

use kinara_protocol::frame::Epoch;
use rusqlite::params;

use super::damage::blob;
use super::engine::Engine;
use super::figures::Key;
use super::{StoreError, piece};

/// Frames of one wearable, epoch and class that lie about in small rows before they are packed.
const PACK_FROM: u64 = 192;
/// From so many on they are packed along with others.
const WORTH_IT: u64 = 2 * piece::COLUMNS_FROM as u64;

impl Engine {
    /// Packs what has enough small rows, in the running transaction: all wearables together, whose rows lie on the same
    /// pages.
    pub(super) fn pack(&mut self) -> Result<(), StoreError> {
        if !self.figures.loose.values().any(|frames| *frames >= PACK_FROM) {
            return Ok(());
        }
        let due: Vec<Key> = self
            .figures
            .loose
            .iter()
            .filter(|(_, frames)| **frames >= WORTH_IT)
            .map(|(key, _)| *key)
            .collect();
        self.begin()?;
        self.write_staged()?;
        for (device, epoch, class) in due {
            self.pack_one(device, Epoch(epoch), class)?;
            self.figures.loose.insert((device, epoch, class), 0);
        }
        self.commit()
    }

    fn pack_one(&mut self, device: i64, epoch: Epoch, class: i64) -> Result<(), StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT id, body FROM pieces
             WHERE device = ?1 AND epoch = ?2 AND class = ?3 AND form = 0 ORDER BY first_seq",
        )?;
        let mut rows = select.query(params![device, piece::epoch_to_sql(epoch), class])?;
        let mut small: Vec<(i64, Vec<u8>)> = Vec::new();
        let mut broken = Vec::new();
        while let Some(row) = rows.next()? {
            let body = blob(row, 1).and_then(|body| piece::frames(body).map(|_| body.to_vec()));
            match body {
                Ok(body) => small.push((row.get(0)?, body)),
                Err(damage) => broken.push((row.get(0)?, damage)),
            }
        }
        drop(rows);
        drop(select);
        self.set_pieces_aside(broken)?;
        let mut rest = small.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest
                .iter()
                .take_while(|row| {
                    bytes += row.1.len();
                    bytes <= piece::MAX_BYTES
                })
                .count()
                .max(1);
            let (now, later) = rest.split_at(fits);
            rest = later;
            let joined: Vec<u8> = now.iter().flat_map(|row| row.1.iter().copied()).collect();
            let mut frames = piece::frames(&joined).expect("each of the joined rows was read");
            frames.sort_by_key(|frame| frame.header().seq);
            let (form, body) = piece::encode(&frames);
            let (Some(first), Some(last), Some(oldest)) = (frames.first(), frames.last(), now.first()) else {
                continue;
            };
            if form == piece::FORM_RAW {
                continue;
            }
            // The joined row takes the place of the first, so that the oldest frames still go out first.
            self.db
                .prepare_cached(
                    "UPDATE pieces SET form = ?2, first_seq = ?3, last_seq = ?4, frames = ?5, bytes = ?6, body = ?7
                     WHERE id = ?1",
                )?
                .execute(params![
                    oldest.0,
                    form,
                    first.header().seq,
                    last.header().seq,
                    frames.len() as i64,
                    joined.len() as i64,
                    body
                ])?;
            for row in &now[1..] {
                self.db.prepare_cached("DELETE FROM pieces WHERE id = ?1")?.execute([row.0])?;
            }
        }
        Ok(())
    }
}
