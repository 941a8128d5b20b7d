//! Rows that cannot be read any more.
//!
//! The promise: such a row costs what it held and nothing else. It is kept in the table `damaged` for whoever wants to
//! look at it, its frames become a gap `gateway_lost` (a frame that comes after all is taken out of it by the cloud),
//! the log and an alert say so, and everything else goes on. Only what SQLite itself calls damage sets the whole
//! database aside.

use kinara_protocol::frame::Epoch;
use rusqlite::{OptionalExtension, params};

use super::StoreError;
use super::engine::Engine;
use super::piece;
use super::quota::Extent;
use super::ranges::SeqSet;
use crate::hardware::HardwareId;

/// Damaged rows are kept so long, microseconds (90 days),
const KEPT_US: i64 = 90 * 86_400_000_000;
/// and so many of them.
const MOST: i64 = 1_000;

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damage(pub String);

/// Rows of one table, by id, and what is wrong with each.
pub type Broken = Vec<(i64, Damage)>;

impl Engine {
    /// Sets a row of frames aside, in the running transaction.
    pub(super) fn set_piece_aside(&mut self, id: i64, damage: &Damage) -> Result<(), StoreError> {
        let found: Option<(i64, i64, i64, i64)> = self
            .db
            .query_row("SELECT device, epoch, first_seq, last_seq FROM pieces WHERE id = ?1", [id], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((device, epoch, first, last)) = found else { return Ok(()) };
        let epoch = Epoch(epoch as u64);
        let hardware = self.hardware.get(&device).cloned();
        let name = hardware.as_ref().map_or("an unknown wearable", HardwareId::as_str);
        tracing::error!(
            id, hardware = name, %epoch, first, last, %damage,
            "a row of stored frames is damaged and was set aside; what it held is lost"
        );
        self.keep_damaged("pieces", &format!("{name}/{epoch}/{first}-{last}"), damage, id)?;
        if let Some(hardware) = hardware {
            let state = self.device(&hardware)?.epochs.entry(epoch.0).or_default();
            let seqs = state.received.within(first, last);
            // Whoever still has them may bring them again.
            (state.received, state.dirty) = (state.received.without(first, last), true);
            self.put_gap(&hardware, epoch.0, &Extent { seqs, ticks: None }, "gateway_lost")?;
        }
        self.recount()
    }

    /// Sets an event or gap aside, in the running transaction. Found again, it is told again.
    pub(super) fn set_event_aside(&mut self, id: i64, damage: &Damage) -> Result<(), StoreError> {
        let key: String =
            self.db.query_row("SELECT key FROM events WHERE id = ?1", [id], |row| row.get(0))?;
        tracing::error!(id, key, %damage, "an event that waited for the cloud is damaged and was set aside");
        self.keep_damaged("events", &key, damage, id)
    }

    fn keep_damaged(
        &mut self,
        origin: &str,
        identity: &str,
        damage: &Damage,
        id: i64,
    ) -> Result<(), StoreError> {
        let now = self.utc_us();
        self.db.execute(
            &format!(
                "INSERT INTO damaged (origin, identity, why, found_us, body)
                 SELECT ?1, ?2, ?3, ?4, body FROM {origin} WHERE id = ?5"
            ),
            params![origin, identity, damage.to_string(), now, id],
        )?;
        self.db.execute(&format!("DELETE FROM {origin} WHERE id = ?1"), [id])?;
        Ok(())
    }

    /// Sets aside wearables whose name cannot be read. Their frames follow when they are next looked at.
    pub(super) fn set_devices_aside(&mut self, broken: &[(i64, Damage)]) -> Result<(), StoreError> {
        if broken.is_empty() {
            return Ok(());
        }
        self.begin()?;
        for (id, damage) in broken {
            tracing::error!(id, %damage, "the name of a wearable is damaged; its frames here are lost");
            self.db.execute(
                "INSERT INTO damaged (origin, identity, why, found_us, body)
                 SELECT 'devices', id, ?2, ?3, hardware FROM devices WHERE id = ?1",
                params![id, damage.to_string(), self.utc_us()],
            )?;
            self.db.execute("DELETE FROM devices WHERE id = ?1", [id])?;
        }
        self.commit()
    }

    /// Sets aside what is noted of epochs. What lies here unsealed is known to have been received; a frame that went to
    /// the cloud before and comes again goes there again, and is a double.
    pub(super) fn set_epochs_aside(
        &mut self,
        broken: &[(HardwareId, Epoch, Damage)],
    ) -> Result<(), StoreError> {
        if broken.is_empty() {
            return Ok(());
        }
        self.begin()?;
        for (hardware, epoch, damage) in broken {
            tracing::error!(
                %hardware, %epoch, %damage,
                "the note of what was received is damaged; it begins anew with what waits here"
            );
            let id = self.device(hardware)?.id;
            let key = params![id, piece::epoch_to_sql(*epoch)];
            self.db.execute(
                "INSERT INTO damaged (origin, identity, why, found_us, body)
                 SELECT 'epochs', ?3, ?4, ?5, received FROM epochs WHERE device = ?1 AND epoch = ?2",
                params![
                    id,
                    piece::epoch_to_sql(*epoch),
                    format!("{hardware}/{epoch}"),
                    damage.to_string(),
                    self.utc_us()
                ],
            )?;
            self.db.execute("DELETE FROM epochs WHERE device = ?1 AND epoch = ?2", key)?;
            let received = self.unsealed(id, *epoch)?;
            let state = self.device(hardware)?.epochs.entry(epoch.0).or_default();
            (state.received, state.dirty) = (received, true);
        }
        self.commit()
    }

    /// The numbers of an epoch's frames that are stored and not sealed, as far as they can be read.
    fn unsealed(&self, device: i64, epoch: Epoch) -> Result<SeqSet, StoreError> {
        let mut select = self.db.prepare("SELECT form, body FROM pieces WHERE device = ?1 AND epoch = ?2")?;
        let mut rows = select.query(params![device, piece::epoch_to_sql(epoch)])?;
        let mut seqs = SeqSet::default();
        while let Some(row) = rows.next()? {
            let body = row.get_ref(1)?.as_blob().unwrap_or_default();
            let Ok(bytes) = piece::decode(row.get(0)?, body) else { continue };
            for frame in piece::frames(&bytes).unwrap_or_default() {
                seqs.insert(frame.header().seq);
            }
        }
        Ok(seqs)
    }

    /// How many rows have been set aside.
    pub(super) fn damaged_rows(&self) -> Result<i64, StoreError> {
        Ok(self.db.query_row("SELECT count(*) FROM damaged", [], |row| row.get(0))?)
    }

    /// Forgets damaged rows that nobody wanted to look at.
    pub(super) fn prune_damaged(&self) -> Result<(), StoreError> {
        self.db.execute(
            "DELETE FROM damaged WHERE found_us < ?1 OR id <= (SELECT max(id) FROM damaged) - ?2",
            [self.utc_us() - KEPT_US, MOST],
        )?;
        Ok(())
    }
}
