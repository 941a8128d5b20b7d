//! The devices of this box: bonds, and who wears what.
//!
//! The promise: what a call here has changed is on disk when it returns, in one file that only this user can read, and
//! a call that fails has changed nothing. The file is not in the database: a database that has to be set aside must not
//! cost the pairings. A file that cannot be read is set aside itself. Who asks what is known waits for no disk.

mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kinara_protocol::intervals::Intervals;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use self::disk::{bonds_of_an_older_version, decode, encode};
use crate::decisions::Actor;
use crate::files::{self, Turns, write_through};
use crate::hardware::HardwareId;

/// Where it is in the data folder.
pub const FILE: &str = "devices.json";
/// Its predecessor: bonds alone, key by hardware.
const BONDS_FILE: &str = "bonds.json";

/// What the transport needs to connect again. For BlueZ, which keeps the keys itself, where and whom: `"<adapter
/// address> <identity address> <public|random>"`.
#[derive(Clone, PartialEq, Eq)]
pub struct Bond(pub Vec<u8>);

impl Bond {
    /// The identity address of the other side, where the transport's bond names it.
    pub fn identity(&self) -> Option<[u8; 6]> {
        parse_address(std::str::from_utf8(&self.0).ok()?.split(' ').nth(1)?)
    }
}

impl std::fmt::Debug for Bond {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bond(…)")
    }
}

/// How a bond came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// With the code on the label.
    Label,
    /// With the number on the display.
    Display,
    /// Another gateway of the clinic introduced this one.
    Introduction,
    /// Without proof: a sensor of another maker.
    JustWorks,
}

impl How {
    /// As decisions name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Display => "display",
            Self::Introduction => "introduction",
            Self::JustWorks => "just_works",
        }
    }
}

/// A bond that this box holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bonded {
    /// For the transport.
    pub bond: Bond,
    /// The address of the adapter that made it: no other one can use it. `None` for one of an older version, which had
    /// one adapter.
    pub adapter: Option<[u8; 6]>,
    /// How it came about.
    pub how: How,
    /// One side has forgotten it; a person has to forget it here as well and pair again.
    pub stale: bool,
}

/// Who wears a device, as this box was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The wearer.
    pub user: Uuid,
    /// The consent it rests on.
    pub consent: Uuid,
    /// The decision that says so.
    pub decision: Uuid,
    /// UTC since when, microseconds.
    pub since_us: i64,
    /// The cloud's configuration that does not know of it: the last one before it, or that came while it waited.
    #[serde(default)]
    pub config: u64,
}

/// A wearer who was recorded for a device and gets it once its log has begun anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    /// The wearer.
    pub user: Uuid,
    /// The consent it rests on.
    pub consent: Uuid,
    /// The log that has to end first, by its id.
    pub old_log: u32,
    /// Who decided it.
    pub by: Actor,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// The name it advertised in its window.
    pub name: String,
    /// The bond.
    pub bonded: Option<Bonded>,
    /// Who wears it.
    pub worn_by: Option<Binding>,
    /// Who is to wear it from its next log on; nobody does until then.
    pub hand_over: Option<HandOver>,
    /// How often it is to measure; none: nobody has said so here.
    pub intervals: Option<Intervals>,
}

impl Device {
    /// Who wears it, or is about to.
    pub fn wearer(&self) -> Option<Uuid> {
        self.worn_by.map(|binding| binding.user).or(self.hand_over.as_ref().map(|pending| pending.user))
    }
}

/// Everything in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// By hardware.
    pub devices: BTreeMap<HardwareId, Device>,
    /// Introductions that have served, or have failed for good.
    pub introduced: BTreeSet<Uuid>,
    /// Revocations that have been carried out, as `hardware/address`.
    pub revoked: BTreeSet<String>,
}

/// The file.
#[derive(Debug)]
pub struct Devices {
    path: PathBuf,
    /// Held while nothing is written.
    contents: Mutex<Contents>,
    changes: Turns,
    changed: watch::Sender<u64>,
}

impl Devices {
    /// Reads the file of a data folder. One that cannot be read is set aside, and the devices have to be paired again.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let old = data_dir.join(BONDS_FILE);
        let found = files::read(&path, decode)?;
        let is_kept = found.is_some();
        let found = found.or_else(|| bonds_of_an_older_version(&old));
        let is_known = found.is_some();
        let devices = Self {
            path,
            contents: Mutex::new(found.unwrap_or_default()),
            changes: Turns::default(),
            changed: watch::channel(0).0,
        };
        if is_known {
            devices.done_with(&old, is_kept);
        }
        Ok(devices)
    }

    /// An older version's file has served once what was in it is in ours. A disk that takes nothing now stops nobody: what is
    /// known goes to disk with the next change, and the older file goes with the next start.
    fn done_with(&self, old: &Path, is_kept: bool) {
        let kept = if is_kept { Ok(()) } else { self.can_be_kept() };
        match kept.and_then(|()| std::fs::remove_file(old)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%error, "the bonds of an older version are known, and not taken over on disk yet");
            }
            _ => {}
        }
    }

    /// Everything, as it is now.
    pub fn now(&self) -> Contents {
        self.lock().clone()
    }

    /// One device.
    pub fn get(&self, hardware: &HardwareId) -> Option<Device> {
        self.lock().devices.get(hardware).cloned()
    }

    /// Its bond, whatever its state.
    pub fn bonded(&self, hardware: &HardwareId) -> Option<Bonded> {
        self.lock().devices.get(hardware)?.bonded.clone()
    }

    /// Changes the file; on an error nothing has changed.
    pub fn change<T>(&self, change: impl FnOnce(&mut Contents) -> T) -> io::Result<T> {
        self.changes.alone(|| {
            let before = self.now();
            let mut next = before.clone();
            let value = change(&mut next);
            if next != before {
                self.save(&next)?;
                *self.lock() = next;
                self.changed.send_modify(|count| *count += 1);
            }
            Ok(value)
        })
    }

    /// Whether a change could be kept now: writes the file as it is. For whoever is about to do what cannot be undone.
    pub fn can_be_kept(&self) -> io::Result<()> {
        self.changes.alone(|| self.save(&self.now()))
    }

    /// Wakes when something has changed.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, contents: &Contents) -> io::Result<()> {
        write_through(&self.path, &encode(contents)?)
    }
}

/// `AA:BB:CC:DD:EE:FF`.
pub fn address_text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02X}")).join(":")
}

/// The address in this text.
pub fn parse_address(text: &str) -> Option<[u8; 6]> {
    let mut parts = text.split(':');
    let mut address = [0; 6];
    for byte in &mut address {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(address)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kinara_protocol::channel::ChannelId;

    use super::*;
    use crate::files::tests::slow_card;

    fn bonded(key: u8) -> Bonded {
        let adapter = Some([0xc0, 1, 2, 3, 4, 5]);
        Bonded { bond: Bond(vec![key; 16]), adapter, how: How::Display, stale: true }
    }

    #[test]
    fn devices_outlive_the_program_with_everything_that_is_known_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let hardware = HardwareId::kinara(7);
        let devices = Devices::open(dir.path()).unwrap();
        let id = Uuid::from_u128;
        devices
            .change(|contents| {
                let device = contents.devices.entry(hardware.clone()).or_default();
                device.name = "K-0007".to_owned();
                device.bonded = Some(bonded(1));
                device.worn_by =
                    Some(Binding { user: id(1), consent: id(2), decision: id(3), since_us: 4, config: 5 });
                device.intervals = Intervals::REFERENCE.with(ChannelId(1), 60);
                contents.introduced.insert(id(5));
                contents.revoked.insert("x/y".to_owned());
            })
            .unwrap();
        assert_eq!(Devices::open(dir.path()).unwrap().now(), devices.now());
        assert_eq!(devices.bonded(&hardware), Some(bonded(1)));
    }

    #[test]
    fn a_broken_file_is_set_aside_and_the_box_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("devices.json"), "{torn").unwrap();
        assert_eq!(Devices::open(dir.path()).unwrap().now(), Contents::default());
        assert!(dir.path().join("devices.broken").exists());
    }

    #[test]
    fn a_file_of_zero_bytes_after_a_power_cut_costs_no_pairing() {
        let dir = tempfile::tempdir().unwrap();
        let devices = Devices::open(dir.path()).unwrap();
        devices.change(|contents| contents.revoked.insert("x".to_owned())).unwrap();
        let before = devices.now();
        std::fs::write(dir.path().join("devices.json"), "").unwrap();
        for _ in 0..2 {
            assert_eq!(Devices::open(dir.path()).unwrap().now(), before);
        }
        assert_eq!(files::broken(dir.path()).unwrap(), ["devices.broken"]);
    }

    #[test]
    fn the_bonds_of_an_older_version_are_taken_over_once() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("bonds.json");
        std::fs::write(&old, r#"{"kinara:0000000000000007": "0102"}"#).unwrap();
        let hardware = HardwareId::kinara(7);
        for _ in 0..2 {
            let found = Devices::open(dir.path()).unwrap().bonded(&hardware).unwrap();
            assert_eq!((found.bond, found.adapter), (Bond(vec![1, 2]), None));
        }
        assert!(!old.exists());
    }

    #[test]
    fn the_bonds_of_an_older_version_are_known_although_the_card_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (old, full) = (dir.path().join("bonds.json"), dir.path().join("devices.new"));
        std::fs::write(&old, r#"{"kinara:0000000000000007": "0102"}"#).unwrap();
        // Stands for a full card, and below for one that is read-only besides.
        std::fs::create_dir(&full).unwrap();
        let bond = |devices: &Devices| devices.bonded(&HardwareId::kinara(7)).map(|bonded| bonded.bond);
        let devices = Devices::open(dir.path()).unwrap();
        assert_eq!((bond(&devices), old.exists()), (Some(Bond(vec![1, 2])), true));
        std::fs::remove_dir(&full).unwrap();
        devices.change(|contents| contents.revoked.insert("x".to_owned())).unwrap();
        std::fs::write(&old, r#"{"kinara:0000000000000007": "03"}"#).unwrap();
        let devices = Devices::open(dir.path()).unwrap();
        assert_eq!((bond(&devices), old.exists()), (Some(Bond(vec![1, 2])), false), "it is ours by now");

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bonds.json"), "{torn").unwrap();
        std::fs::create_dir_all(dir.path().join("bonds.broken/taken")).unwrap();
        assert_eq!(Devices::open(dir.path()).unwrap().now(), Contents::default());
    }

    #[test]
    fn who_asks_for_a_bond_does_not_wait_for_a_card_that_takes_long() {
        let dir = tempfile::tempdir().unwrap();
        let devices = Arc::new(Devices::open(dir.path()).unwrap());
        // Two changes, one behind the other; then somebody asks.
        let change = |name: &'static str| {
            let devices = devices.clone();
            move || _ = devices.change(|contents| contents.revoked.insert(name.to_owned()))
        };
        let asked = devices.clone();
        slow_card(&dir.path().join("devices.new"), [change("a"), change("b")], move || {
            asked.bonded(&HardwareId::kinara(7));
        });
    }

    #[test]
    fn a_change_that_cannot_be_saved_has_not_happened() {
        let dir = tempfile::tempdir().unwrap();
        let devices = Devices::open(dir.path()).unwrap();
        // The place of the new file is taken by a folder.
        std::fs::create_dir(dir.path().join("devices.new")).unwrap();
        let before = devices.now();
        devices.change(|contents| contents.revoked.insert("x".to_owned())).unwrap_err();
        assert_eq!(devices.now(), before);
    }

    #[test]
    fn an_address_comes_back_from_its_text_and_nothing_else_is_one() {
        let address = [0xc0, 0, 1, 2, 3, 0xff];
        assert_eq!(parse_address(&address_text(address)), Some(address));
        for text in ["", "C0:00:01:02:03", "C0:00:01:02:03:FF:00", "C0:00:01:02:03:+F"] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }
}
