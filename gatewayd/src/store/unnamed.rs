//! Numbers of wearables whose name is lost.
//!
//! A row of `devices` that cannot be read costs no reading: the index of the names has the name as well. Where it does not,
//! the wearable's frames wait under their number until it comes again and is known by the id of its log, which is random and
//! its alone. Nobody else gets the number. After 90 days nobody waits for it any more.

use std::collections::{BTreeSet, HashMap};

use kinara_protocol::frame::Epoch;
use rusqlite::params;

use super::StoreError;
use super::damage::{blob, cell};
use super::engine::{Device, Engine};
use super::prune::FORGOTTEN_US;
use crate::hardware::HardwareId;

/// Under this and a number it is noted since when its name is missed.
const UNNAMED: &str = "unnamed ";

/// By the id of a log: the number of the wearable that it is of.
pub(super) type Unnamed = HashMap<u32, i64>;

/// Tables that speak of wearables by number, and find the highest one without searching.
const NUMBERED: [(&str, &str); 6] = [
    ("devices", "id"),
    ("epochs", "device"),
    ("anchors", "device"),
    ("pieces", "device"),
    ("sealed_lines", "device"),
    ("quarantine", "device"),
];

impl Engine {
    /// The name of a wearable's number by the index of the names, which lies on another page than the row.
    pub(super) fn name_by_index(&self, id: i64) -> Option<HardwareId> {
        let sql = "SELECT CAST(hardware AS BLOB) FROM devices INDEXED BY sqlite_autoindex_devices_1
                   WHERE +id = ?1 AND hardware IS NOT NULL";
        let mut select = self.db.prepare_cached(sql).ok()?;
        let mut rows = select.query([id]).ok()?;
        let row = rows.next().ok()??;
        HardwareId::parse(std::str::from_utf8(blob(row, 0).ok()?).ok()?).ok()
    }

    /// Writes names that the index had, in the running transaction; the rows without them have been set aside.
    pub(super) fn name_again(&mut self, named: Vec<(i64, HardwareId)>) -> Result<(), StoreError> {
        for (id, hardware) in named {
            tracing::warn!(%hardware, id, "the name of a wearable was damaged; the index had it");
            self.db.execute(
                "INSERT INTO devices (id, hardware) VALUES (?1, ?2)",
                params![id, hardware.as_str()],
            )?;
        }
        Ok(())
    }

    /// A number that nothing here speaks of.
    pub(super) fn free_number(&self) -> Result<i64, StoreError> {
        let mut highest = self.meta("devices_behind")?.unwrap_or(0);
        for (table, column) in NUMBERED {
            let sql = format!("SELECT max({column}) FROM {table} WHERE typeof({column}) = 'integer'");
            let mut select = self.db.prepare_cached(&sql)?;
            let of_table: Option<i64> = select.query_row([], |row| row.get(0))?;
            highest = highest.max(of_table.unwrap_or(0));
        }
        Ok(highest.saturating_add(1))
    }

    /// Whether frames under this number wait for its wearable.
    pub(super) fn is_unnamed(&self, device: i64) -> bool {
        self.unnamed.values().any(|number| *number == device)
    }

    /// A wearable is here with this epoch: where the log is one whose wearable lost its name, it has it again. In the
    /// running transaction.
    pub(super) fn meet(&mut self, hardware: &HardwareId, epoch: Epoch) -> Result<(), StoreError> {
        if self.devices.contains_key(hardware) {
            return Ok(());
        }
        let Some(id) = self.unnamed.get(&epoch.log_id()).copied() else { return Ok(()) };
        tracing::warn!(%hardware, id, "a wearable whose name was damaged is known by its log");
        self.db
            .execute("INSERT INTO devices (id, hardware) VALUES (?1, ?2)", params![id, hardware.as_str()])?;
        self.unnamed.retain(|_, number| *number != id);
        self.hardware.insert(id, hardware.clone());
        // What is in memory of the others is ahead of the tables.
        let only = HashMap::from([(hardware.clone(), Device { id, ..Device::default() })]);
        let others = std::mem::replace(&mut self.devices, only);
        let read = self.read_all_of_devices();
        self.devices.extend(others);
        read?;
        self.recount()?;
        if self.next_left()?.is_none() { self.tell_lost() } else { Ok(()) }
    }

    fn read_all_of_devices(&mut self) -> Result<(), StoreError> {
        self.read_anchors_again()?;
        let mut devices = std::mem::take(&mut self.devices);
        // A row that cannot be read is set aside at the next start.
        let read = self.read_epochs(&mut devices, &mut Vec::new());
        self.devices = devices;
        read?;
        self.read_wanted()?;
        self.read_sensors()
    }

    /// Notes which logs are of a wearable without a name.
    pub(super) fn see_unnamed(&mut self) -> Result<(), StoreError> {
        self.unnamed.clear();
        let mut select = self.db.prepare(
            "SELECT device, epoch FROM epochs WHERE NOT EXISTS (SELECT 1 FROM devices WHERE id = epochs.device)",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (Ok(device), Ok(epoch)) = (cell::<i64>(row, 0), cell::<i64>(row, 1)) else { continue };
            self.unnamed.insert(Epoch(epoch as u64).log_id(), device);
        }
        Ok(())
    }

    /// Forgets numbers whose wearable did not come again, in the running transaction. Frames under them are then set aside. It
    /// counts from when the name was first missed by a known clock: a box may have lain in a drawer, or without a clock.
    pub(super) fn prune_unnamed(&mut self) -> Result<(), StoreError> {
        let Some(now_us) = self.known_us() else { return Ok(()) };
        let numbers: BTreeSet<i64> = self.unnamed.values().copied().collect();
        for number in &numbers {
            let key = format!("{UNNAMED}{number}");
            match self.meta(&key)? {
                Some(since_us) if (now_us - FORGOTTEN_US..=now_us).contains(&since_us) => {}
                Some(since_us) if since_us < now_us => self.forget_number(*number)?,
                // For the first time, or by a clock that was wrong.
                _ => self.set_meta(&key, now_us)?,
            }
        }
        self.db.execute(
            "DELETE FROM meta WHERE key GLOB ?1 || '*' AND NOT EXISTS (
                SELECT 1 FROM epochs WHERE device = CAST(substr(meta.key, length(?1) + 1) AS INTEGER)
                  AND device NOT IN (SELECT id FROM devices))",
            [UNNAMED],
        )?;
        if numbers.is_empty() { Ok(()) } else { self.see_unnamed() }
    }

    fn forget_number(&self, number: i64) -> Result<(), StoreError> {
        for table in ["anchors", "wanted", "sealed_lines", "sensors", "epochs"] {
            self.db.execute(&format!("DELETE FROM {table} WHERE device = ?1"), [number])?;
        }
        Ok(())
    }
}
