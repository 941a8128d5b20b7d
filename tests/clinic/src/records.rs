//! What a clinic has to remember between runs: passwords, the gateways' identities, since when it exists.
//!
//! One file in the clinic's folder, readable by its owner only, written before any of it is used.

use crate::folders::write_secret;
use crate::{ClinicError, Result};
use rand::Rng;
use rand::distr::Alphanumeric;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use uuid::Uuid;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    since: Option<jiff::Timestamp>,
    passwords: BTreeMap<String, String>,
    gateways: BTreeMap<String, Uuid>,
}

/// The records of one clinic.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    content: Content,
}

impl Records {
    /// Opens the file, or begins one.
    pub fn open(path: &Path) -> Result<Self> {
        let content = match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| ClinicError::Answer {
                who: path.display().to_string(),
                what: format!("is damaged ({error}); start anew with --fresh"),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(ClinicError::file(path)(error)),
        };
        Ok(Self { path: path.to_path_buf(), content })
    }

    /// The moment this clinic began; `now` when it begins just now.
    pub fn since(&mut self, now: jiff::Timestamp) -> Result<jiff::Timestamp> {
        if let Some(since) = self.content.since {
            return Ok(since);
        }
        self.content.since = Some(now);
        self.save()?;
        Ok(now)
    }

    /// The password of this name, drawn on first use.
    pub fn password(&mut self, name: &str) -> Result<String> {
        if let Some(password) = self.content.passwords.get(name) {
            return Ok(password.clone());
        }
        let password: String = rand::rng().sample_iter(Alphanumeric).take(20).map(char::from).collect();
        self.content.passwords.insert(name.to_owned(), password.clone());
        self.save()?;
        Ok(password)
    }

    /// The identity of the gateway of this name, drawn on first use.
    pub fn gateway_id(&mut self, name: &str) -> Result<Uuid> {
        if let Some(id) = self.content.gateways.get(name) {
            return Ok(*id);
        }
        let id = Uuid::now_v7();
        self.content.gateways.insert(name.to_owned(), id);
        self.save()?;
        Ok(id)
    }

    fn save(&self) -> Result<()> {
        let text =
            serde_json::to_string_pretty(&self.content).expect("strings and ids can be written as JSON");
        write_secret(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_identities_are_the_same_in_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.json");
        let mut first = Records::open(&path).unwrap();
        let (password, id) = (first.password("bridge").unwrap(), first.gateway_id("A").unwrap());
        assert_ne!(password, first.password("api").unwrap());
        let mut again = Records::open(&path).unwrap();
        assert_eq!((password, id), (again.password("bridge").unwrap(), again.gateway_id("A").unwrap()));
    }

    #[test]
    fn a_damaged_file_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.json");
        std::fs::write(&path, "{").unwrap();
        assert!(Records::open(&path).unwrap_err().to_string().contains("--fresh"));
    }
}
