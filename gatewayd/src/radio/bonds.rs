//! The bonds of this gateway, in a file that only its user can read. They are not in the database: a database that
//! has to be set aside must not cost the pairings.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::hardware::HardwareId;

/// What the transport needs to connect again. For BlueZ, which keeps the keys itself, the identity address.
#[derive(Clone, PartialEq, Eq)]
pub struct Bond(pub Vec<u8>);

impl std::fmt::Debug for Bond {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bond(…)")
    }
}

/// All bonds, written through to the file.
#[derive(Debug)]
pub struct Bonds {
    path: PathBuf,
    by_hardware: Mutex<BTreeMap<String, Bond>>,
}

impl Bonds {
    /// Reads the file. One that cannot be read is kept aside and the wearables have to be paired again.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "{}".to_owned(),
            Err(error) => return Err(error),
        };
        let parsed: Result<BTreeMap<String, String>, _> = serde_json::from_str(&text);
        let by_hardware = match parsed {
            Ok(bonds) => bonds
                .into_iter()
                .filter_map(|(hardware, key)| Some((hardware, Bond(hex::decode(key).ok()?))))
                .collect(),
            Err(error) => {
                let aside = path.with_extension("broken");
                std::fs::rename(path, &aside)?;
                tracing::error!(%error, aside = %aside.display(), "the bonds cannot be read; pair the wearables again");
                BTreeMap::new()
            }
        };
        Ok(Self { path: path.to_owned(), by_hardware: Mutex::new(by_hardware) })
    }

    /// The bond with a wearable.
    pub fn get(&self, hardware: &HardwareId) -> Option<Bond> {
        self.lock().get(hardware.as_str()).cloned()
    }

    /// All bonds there are.
    pub fn all(&self) -> Vec<(HardwareId, Bond)> {
        let bonds = self.lock();
        bonds.iter().filter_map(|(text, bond)| Some((HardwareId::parse(text).ok()?, bond.clone()))).collect()
    }

    /// Keeps a bond.
    pub fn put(&self, hardware: &HardwareId, bond: Bond) -> std::io::Result<()> {
        let mut bonds = self.lock();
        bonds.insert(hardware.to_string(), bond);
        self.save(&bonds)
    }

    /// Forgets a bond.
    pub fn remove(&self, hardware: &HardwareId) -> std::io::Result<()> {
        let mut bonds = self.lock();
        bonds.remove(hardware.as_str());
        self.save(&bonds)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bond>> {
        self.by_hardware.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn save(&self, bonds: &BTreeMap<String, Bond>) -> std::io::Result<()> {
        let text: BTreeMap<&str, String> =
            bonds.iter().map(|(hardware, bond)| (hardware.as_str(), hex::encode(&bond.0))).collect();
        let new = self.path.with_extension("new");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(serde_json::to_string_pretty(&text)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bonds_outlive_the_program_and_a_broken_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bonds.json");
        let hardware = HardwareId::kinara(7);
        Bonds::open(&path).unwrap().put(&hardware, Bond(vec![1, 2])).unwrap();
        assert_eq!(Bonds::open(&path).unwrap().get(&hardware), Some(Bond(vec![1, 2])));
        std::fs::write(&path, "{torn").unwrap();
        assert_eq!(Bonds::open(&path).unwrap().get(&hardware), None);
        assert!(dir.path().join("bonds.broken").exists());
    }
}
