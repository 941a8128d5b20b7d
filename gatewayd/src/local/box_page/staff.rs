//! Who may use the box's page: people added at the box, and those whom the cloud's roster names.
//!
//! Those of the box are kept in `staff.json` (mode 0600, with verifiers, never PINs). Of two with the same
//! name and origin the second is refused.

use std::io;
use std::path::{Path, PathBuf};

use kinara_protocol::entry;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::desk::Actor;
use crate::files;
use crate::roster::Roster;

const FILE: &str = "staff.json";
/// People that the box keeps.
const MOST: usize = 200;
/// Characters of a name.
pub(super) const LONGEST_NAME: usize = 60;

/// Somebody who may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Person {
    /// Drawn at the box, or the cloud's member.
    pub id: Uuid,
    /// As they are called.
    pub name: String,
    /// The cloud's member; none when the box alone knows them.
    pub member: Option<Uuid>,
    /// Of the PIN.
    pub verifier: String,
}

impl Person {
    /// As the desk names them.
    pub fn actor(&self) -> Actor {
        Actor::Staff { name: self.name.clone(), member: self.member }
    }
}

/// Why somebody is not added, or not changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StaffError {
    /// Empty, too long, or not for display.
    #[error("a name has 1 to {LONGEST_NAME} characters")]
    BadName,
    /// There is one of this name.
    #[error("there is somebody of this name")]
    SameName,
    /// Nobody with this id at the box.
    #[error("the box does not keep this person")]
    Unknown,
    /// Nobody could log in any more.
    #[error("this is the last person who can log in")]
    Last,
    /// The box keeps as many people as it can.
    #[error("the box keeps {MOST} people at most")]
    Full,
    /// The file.
    #[error("staff.json: {0}")]
    File(#[from] io::Error),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    id: Uuid,
    name: String,
    pin_verifier: String,
}

/// The people of the box.
#[derive(Debug)]
pub(super) struct Staff {
    path: PathBuf,
    people: Vec<Kept>,
}

impl Staff {
    /// Reads `staff.json`.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let people = files::read(&path, |bytes| serde_json::from_slice(bytes))?.unwrap_or_default();
        Ok(Self { path, people })
    }

    /// Everybody who may log in, by name.
    pub fn all(&self, roster: &Roster) -> Vec<Person> {
        let here = self.people.iter().map(|kept| Person {
            id: kept.id,
            name: kept.name.clone(),
            member: None,
            verifier: kept.pin_verifier.clone(),
        });
        let cloud = roster.staff.iter().filter(|entry| !entry.pin_verifier.is_empty()).map(|entry| Person {
            id: entry.member,
            name: entry.name.clone(),
            member: Some(entry.member),
            verifier: entry.pin_verifier.clone(),
        });
        let mut all: Vec<Person> = here.chain(cloud).collect();
        all.sort_by_key(|person| person.name.to_lowercase());
        all
    }

    /// Somebody by their id.
    pub fn find(&self, roster: &Roster, id: Uuid) -> Option<Person> {
        self.all(roster).into_iter().find(|person| person.id == id)
    }

    /// Adds somebody; on disk when it returns.
    pub fn add(&mut self, name: &str, verifier: String) -> Result<Person, StaffError> {
        let name = tidy_name(name).ok_or(StaffError::BadName)?;
        if self.people.len() >= MOST {
            return Err(StaffError::Full);
        }
        if self.people.iter().any(|kept| kept.name.to_lowercase() == name.to_lowercase()) {
            return Err(StaffError::SameName);
        }
        let kept = Kept { id: Uuid::now_v7(), name, pin_verifier: verifier };
        let person = Person {
            id: kept.id,
            name: kept.name.clone(),
            member: None,
            verifier: kept.pin_verifier.clone(),
        };
        let mut people = self.people.clone();
        people.push(kept);
        self.save(people)?;
        Ok(person)
    }

    /// Gives somebody another PIN.
    pub fn set_pin(&mut self, id: Uuid, verifier: String) -> Result<(), StaffError> {
        let mut people = self.people.clone();
        people.iter_mut().find(|kept| kept.id == id).ok_or(StaffError::Unknown)?.pin_verifier = verifier;
        Ok(self.save(people)?)
    }

    /// Takes somebody off; gives their name.
    pub fn remove(&mut self, roster: &Roster, id: Uuid) -> Result<String, StaffError> {
        let gone = self.people.iter().find(|kept| kept.id == id).ok_or(StaffError::Unknown)?;
        let name = gone.name.clone();
        if self.all(roster).len() == 1 {
            return Err(StaffError::Last);
        }
        self.save(self.people.iter().filter(|kept| kept.id != id).cloned().collect())?;
        Ok(name)
    }

    fn save(&mut self, people: Vec<Kept>) -> io::Result<()> {
        files::write_through(&self.path, &serde_json::to_vec_pretty(&people).map_err(io::Error::other)?)?;
        self.people = people;
        Ok(())
    }
}

/// A name with single spaces and nothing that steers the line it stands in.
pub(super) fn tidy_name(text: &str) -> Option<String> {
    entry::name(text, LONGEST_NAME).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster::StaffEntry;

    fn roster() -> Roster {
        let entry = StaffEntry {
            member: Uuid::from_u128(5),
            name: "Asha".to_owned(),
            pin_verifier: "from the cloud".to_owned(),
        };
        let without = StaffEntry { member: Uuid::from_u128(6), pin_verifier: String::new(), ..entry.clone() };
        Roster { staff: vec![entry, without], ..Roster::default() }
    }

    #[test]
    fn people_of_the_box_stay_over_restarts_and_stand_beside_those_of_the_cloud() {
        let dir = tempfile::tempdir().unwrap();
        let mut staff = Staff::open(dir.path()).unwrap();
        let ravi = staff.add("  Ravi   Kumar ", "v1".to_owned()).unwrap();
        staff.set_pin(ravi.id, "v2".to_owned()).unwrap();
        let staff = Staff::open(dir.path()).unwrap();
        let names: Vec<_> = staff.all(&roster()).into_iter().map(|p| (p.name, p.verifier)).collect();
        let expected = [("Asha", "from the cloud"), ("Ravi Kumar", "v2")];
        assert_eq!(names, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn the_last_person_who_can_log_in_cannot_be_taken_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut staff = Staff::open(dir.path()).unwrap();
        let ravi = staff.add("Ravi", "v".to_owned()).unwrap();
        assert!(matches!(staff.remove(&Roster::default(), ravi.id), Err(StaffError::Last)));
        assert_eq!(staff.remove(&roster(), ravi.id).unwrap(), "Ravi");
        assert!(matches!(staff.remove(&roster(), ravi.id), Err(StaffError::Unknown)));
    }

    #[test]
    fn a_name_that_is_taken_empty_or_endless_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut staff = Staff::open(dir.path()).unwrap();
        staff.add("Ravi", "v".to_owned()).unwrap();
        assert!(matches!(staff.add("RAVI", "v".to_owned()), Err(StaffError::SameName)));
        for name in ["", "   ", "a\u{7}b", &"x".repeat(LONGEST_NAME + 1)] {
            assert!(matches!(staff.add(name, "v".to_owned()), Err(StaffError::BadName)), "{name:?}");
        }
    }
}
