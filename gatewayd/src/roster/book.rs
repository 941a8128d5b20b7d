//! The roster on disk: the cloud's last word, and what was decided here that it has not heard of yet. Who asks waits for no
//! disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kinara_protocol::envelope::{Config, RosterEntry};
use kinara_protocol::label::IntroductionSecret;
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::{ConsentText, Introduction, Revocation, Roster, StaffEntry, WearerEntry, texts};
use crate::devices::{Device, Devices};
use crate::files::{self, Turns, write_through};
use crate::hardware::HardwareId;

/// The cloud's configuration as it came, in the data folder.
const CONFIG_FILE: &str = "config.pb";
/// What was decided here and is not in it yet.
const PEOPLE_FILE: &str = "people.json";

/// A consent that was recorded here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsentHere {
    /// Drawn here.
    pub id: Uuid,
    /// Version of the text.
    pub version: String,
}

/// What was decided here and the cloud's configuration does not show yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct People {
    /// Wearers added here, by id: their names.
    pub added: BTreeMap<Uuid, String>,
    /// Consents given here, by wearer.
    pub consents: BTreeMap<Uuid, ConsentHere>,
    /// Wearers who have withdrawn theirs here.
    pub withdrawn: BTreeSet<Uuid>,
}

#[derive(Debug)]
struct State {
    config: Config,
    people: People,
}

/// The roster's keeper.
#[derive(Debug)]
pub struct Book {
    dir: PathBuf,
    devices: Arc<Devices>,
    /// Held while nothing is written.
    state: Mutex<State>,
    changes: Turns,
    roster: watch::Sender<Roster>,
    introductions: watch::Sender<Vec<Introduction>>,
}

impl Book {
    /// Reads it from the data folder. A file that cannot be read is set aside; the cloud sends its own again.
    pub fn open(dir: &Path, devices: Arc<Devices>) -> io::Result<Self> {
        let config = files::read(&dir.join(CONFIG_FILE), |bytes| Config::decode(bytes))?.unwrap_or_default();
        let people: People =
            files::read(&dir.join(PEOPLE_FILE), |bytes| serde_json::from_slice(bytes))?.unwrap_or_default();
        let book = Self {
            dir: dir.to_owned(),
            devices,
            state: Mutex::new(State { config, people }),
            changes: Turns::default(),
            roster: watch::channel(Roster::default()).0,
            introductions: watch::channel(Vec::new()).0,
        };
        book.tell();
        Ok(book)
    }

    /// The roster, and whenever it changes.
    pub fn roster(&self) -> watch::Receiver<Roster> {
        self.roster.subscribe()
    }

    /// The wearables that this box is to be introduced to, or to introduce another one to.
    pub fn introductions(&self) -> watch::Receiver<Vec<Introduction>> {
        self.introductions.subscribe()
    }

    /// The gateways that are to be taken off wearables.
    pub fn revocations(&self) -> Vec<Revocation> {
        let state = self.lock();
        let read = |revocation: &kinara_protocol::envelope::Revocation| {
            Some(Revocation {
                hardware: HardwareId::parse(&revocation.hardware_id).ok()?,
                adapter: revocation.bond.as_slice().try_into().ok()?,
            })
        };
        state.config.revocations.iter().filter_map(read).collect()
    }

    /// The version of the cloud's configuration in force.
    pub fn version(&self) -> u64 {
        self.lock().config.config_version
    }

    /// Takes a configuration of the cloud; on return it is on disk. False for an older one than that in force.
    pub fn take(&self, config: &Config) -> io::Result<bool> {
        self.changes.alone(|| {
            let (known, is_new) = {
                let state = self.lock();
                (state.config.config_version, *config != state.config)
            };
            if config.config_version < known {
                return Ok(false);
            }
            if is_new {
                write_through(&self.dir.join(CONFIG_FILE), &config.encode_to_vec())?;
                self.lock().config = config.clone();
            }
            self.forget_known()?;
            Ok(true)
        })
    }

    /// Forgets what the configuration in force shows of what was decided here, where that was not done when it came.
    pub fn settle(&self) -> io::Result<()> {
        self.changes.alone(|| self.forget_known())
    }

    fn forget_known(&self) -> io::Result<()> {
        let (before, people) = {
            let state = self.lock();
            let mut people = state.people.clone();
            forget_what_the_cloud_knows(&mut people, &state.config);
            (state.people.clone(), people)
        };
        let saved = if people == before { Ok(()) } else { self.save(people) };
        // Who wears what is known, whether that could be kept or not.
        self.tell();
        saved
    }

    /// Changes what was decided here; on return it is on disk, on an error nothing has changed.
    pub fn decide(&self, change: impl FnOnce(&mut People)) -> io::Result<()> {
        self.changes.alone(|| {
            let mut people = self.lock().people.clone();
            change(&mut people);
            self.save(people)?;
            self.tell();
            Ok(())
        })
    }

    /// The cloud's own word on who wears a device.
    pub fn cloud_says(&self, hardware: &HardwareId) -> Option<Uuid> {
        let state = self.lock();
        let mut entries = state.config.roster.iter();
        entries
            .find(|entry| entry.hardware_id == hardware.as_str())
            .and_then(|entry| Uuid::from_slice(&entry.user_id).ok())
    }

    /// Puts the roster together anew: the cloud, the people of this box, the devices of this box.
    pub fn tell(&self) {
        let state = self.lock();
        let roster = compose(&state.config, &state.people, &self.devices);
        self.roster.send_if_modified(|shown| {
            let changed = *shown != roster;
            *shown = roster;
            changed
        });
        self.introductions.send_if_modified(|known| {
            let now = introductions(&state.config, known);
            let changed = *known != now;
            *known = now;
            changed
        });
    }

    fn save(&self, people: People) -> io::Result<()> {
        write_through(&self.dir.join(PEOPLE_FILE), &serde_json::to_vec_pretty(&people)?)?;
        self.lock().people = people;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the cloud's configuration shows need not be remembered here.
fn forget_what_the_cloud_knows(people: &mut People, config: &Config) {
    for entry in &config.roster {
        let Ok(user) = Uuid::from_slice(&entry.user_id) else { continue };
        people.added.remove(&user);
        let given = people.consents.get(&user);
        if entry.consent_given
            && given.is_some_and(|given| given.id.as_bytes().as_slice() == entry.consent_id.as_slice())
        {
            people.consents.remove(&user);
        }
        if !entry.consent_given {
            people.withdrawn.remove(&user);
        }
    }
}

fn compose(config: &Config, people: &People, devices: &Devices) -> Roster {
    let mut wearers: Vec<WearerEntry> = Vec::new();
    let mut put = |entry: WearerEntry| match wearers.iter_mut().find(|known| known.user == entry.user) {
        // Somebody who wears two devices has two entries in the cloud's roster.
        Some(known) => known.hardware.extend(entry.hardware),
        None => wearers.push(entry),
    };
    config.roster.iter().filter_map(of_the_cloud).for_each(&mut put);
    people.added.iter().map(|(user, name)| added_here(*user, name)).for_each(&mut put);
    let here = devices.now().devices;
    for wearer in &mut wearers {
        // Where this box knows who wears a device, it knows it better than the last configuration.
        wearer.hardware.retain(|hardware| {
            let worn_by = here.get(hardware).and_then(Device::wearer);
            worn_by.is_none_or(|user| user == wearer.user)
        });
        for (hardware, device) in &here {
            let theirs = device.wearer() == Some(wearer.user);
            if theirs && !wearer.hardware.contains(hardware) {
                wearer.hardware.push(hardware.clone());
            }
        }
        if let Some(consent) = people.consents.get(&wearer.user) {
            wearer.consent_version = Some(consent.version.clone());
        }
        if people.withdrawn.contains(&wearer.user) {
            wearer.consent_version = None;
        }
    }
    wearers.sort_by(|a, b| a.display_name.cmp(&b.display_name).then(a.user.cmp(&b.user)));
    let staff = config.staff.iter().filter_map(|staff| {
        Some(StaffEntry {
            member: Uuid::from_slice(&staff.member_id).ok()?,
            name: staff.name.clone(),
            pin_verifier: staff.pin_verifier.clone(),
        })
    });
    Roster {
        version: config.config_version,
        clinic_name: config.clinic_name.clone(),
        wearers,
        staff: staff.collect(),
        consent_texts: newest_texts(config),
    }
}

fn of_the_cloud(entry: &RosterEntry) -> Option<WearerEntry> {
    Some(WearerEntry {
        user: Uuid::from_slice(&entry.user_id).ok()?,
        display_name: entry.display_name.clone(),
        external_id: entry.external_id.clone(),
        provisional: entry.provisional,
        hardware: HardwareId::parse(&entry.hardware_id).into_iter().collect(),
        consent_version: entry.consent_given.then(|| entry.consent_version.clone()),
    })
}

fn added_here(user: Uuid, name: &str) -> WearerEntry {
    WearerEntry {
        user,
        display_name: name.to_owned(),
        external_id: String::new(),
        provisional: true,
        hardware: Vec::new(),
        consent_version: None,
    }
}

/// The last text of each language, as the cloud lists them oldest first; our own where it gave none at all.
fn newest_texts(config: &Config) -> Vec<ConsentText> {
    let mut newest: BTreeMap<&str, ConsentText> = BTreeMap::new();
    for text in config.consent_texts.iter().filter(|text| !text.text.is_empty()) {
        let text_here = ConsentText {
            version: text.version.clone(),
            language: text.language.clone(),
            text: text.text.clone(),
        };
        newest.insert(&text.language, text_here);
    }
    if newest.is_empty() { texts::built_in() } else { newest.into_values().collect() }
}

/// The introductions of a configuration; those that were there keep their count of failures.
fn introductions(config: &Config, before: &[Introduction]) -> Vec<Introduction> {
    let read = |introduction: &kinara_protocol::envelope::Introduction| {
        let id = Uuid::from_slice(&introduction.id).ok()?;
        let failures = before.iter().find(|known| known.id == id).map(|known| known.failures.clone());
        Some(Introduction {
            id,
            hardware: HardwareId::parse(&introduction.hardware_id).ok()?,
            secret: IntroductionSecret::from_bytes(introduction.secret.as_slice().try_into().ok()?),
            expires_us: introduction.expires_utc_us,
            admits: introduction.admits,
            failures: failures.unwrap_or_else(|| Arc::new(AtomicU32::new(0))),
        })
    };
    config.introductions.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Binding;
    use crate::files::tests::slow_card;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn entry(user: Uuid, name: &str) -> RosterEntry {
        RosterEntry {
            user_id: user.as_bytes().to_vec(),
            display_name: name.to_owned(),
            ..RosterEntry::default()
        }
    }

    fn config(version: u64, roster: Vec<RosterEntry>) -> Config {
        Config { config_version: version, clinic_name: "North".to_owned(), roster, ..Config::default() }
    }

    fn open(dir: &Path) -> (Book, Arc<Devices>) {
        let devices = Arc::new(Devices::open(dir).unwrap());
        (Book::open(dir, devices.clone()).unwrap(), devices)
    }

    fn now(book: &Book) -> Roster {
        book.roster().borrow().clone()
    }

    #[test]
    fn the_last_roster_is_there_without_the_cloud_and_an_older_one_does_not_replace_it() {
        let dir = tempfile::tempdir().unwrap();
        let (book, _) = open(dir.path());
        assert!(book.take(&config(5, vec![entry(id(1), "Asha")])).unwrap());
        assert!(!book.take(&config(4, vec![])).unwrap());
        drop(book);
        let roster = now(&open(dir.path()).0);
        assert_eq!((roster.version, roster.clinic_name.as_str()), (5, "North"));
        assert_eq!(roster.wearers[0].display_name, "Asha");
    }

    #[test]
    fn a_wearer_added_here_is_shown_until_the_cloud_has_them_and_then_once() {
        let dir = tempfile::tempdir().unwrap();
        let (book, _) = open(dir.path());
        let given = ConsentHere { id: id(9), version: "3".to_owned() };
        book.decide(|people| {
            people.added.insert(id(2), "Bela".to_owned());
            people.consents.insert(id(2), given);
        })
        .unwrap();
        book.take(&config(6, vec![entry(id(1), "Asha")])).unwrap();
        let (book, _) = open(dir.path());
        let bela = now(&book).wearers[1].clone();
        assert!(bela.provisional && bela.consent_version.as_deref() == Some("3"));
        let mut confirmed = entry(id(2), "Bela B.");
        (confirmed.consent_given, confirmed.consent_version) = (true, "3".to_owned());
        confirmed.consent_id = id(9).as_bytes().to_vec();
        book.take(&config(7, vec![confirmed])).unwrap();
        let wearers = now(&book).wearers;
        assert_eq!((wearers.len(), wearers[0].provisional), (1, false));
        assert_eq!(book.lock().people, People::default(), "the cloud has it all");
    }

    #[test]
    fn what_this_box_knows_of_its_devices_counts_more_than_an_old_roster() {
        let dir = tempfile::tempdir().unwrap();
        let (book, devices) = open(dir.path());
        let hardware = HardwareId::kinara(7);
        let mut asha = entry(id(1), "Asha");
        asha.hardware_id = hardware.to_string();
        book.take(&config(1, vec![asha, entry(id(2), "Bela")])).unwrap();
        assert_eq!(now(&book).wearers[0].hardware, std::slice::from_ref(&hardware));
        let binding = Binding { user: id(2), consent: id(3), decision: id(4), since_us: 0, config: 0 };
        devices
            .change(|all| all.devices.entry(hardware.clone()).or_default().worn_by = Some(binding))
            .unwrap();
        book.tell();
        let wearers = now(&book).wearers;
        assert!(wearers[0].hardware.is_empty());
        assert_eq!(wearers[1].hardware, [hardware]);
    }

    #[test]
    fn a_consent_withdrawn_here_is_withdrawn_whatever_an_old_roster_says() {
        let dir = tempfile::tempdir().unwrap();
        let (book, _) = open(dir.path());
        let mut asha = entry(id(1), "Asha");
        (asha.consent_given, asha.consent_version) = (true, "3".to_owned());
        book.take(&config(1, vec![asha.clone()])).unwrap();
        book.decide(|people| _ = people.withdrawn.insert(id(1))).unwrap();
        book.take(&config(2, vec![asha])).unwrap();
        assert_eq!(now(&book).wearers[0].consent_version, None);
        book.take(&config(3, vec![entry(id(1), "Asha")])).unwrap();
        assert!(book.lock().people.withdrawn.is_empty());
    }

    #[test]
    fn the_newest_text_of_each_language_is_offered_and_ours_where_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (book, _) = open(dir.path());
        let languages = |book: &Book| -> Vec<(String, String)> {
            now(book).consent_texts.into_iter().map(|text| (text.language, text.version)).collect()
        };
        let ours = texts::BUILT_IN_VERSION.to_owned();
        assert_eq!(languages(&book), [("en".to_owned(), ours.clone()), ("hi".to_owned(), ours)]);
        let text = |version: &str| kinara_protocol::envelope::ConsentText {
            version: version.to_owned(),
            language: "en".to_owned(),
            text: "…".to_owned(),
        };
        book.take(&Config { consent_texts: vec![text("1"), text("2")], ..config(1, vec![]) }).unwrap();
        assert_eq!(languages(&book), [("en".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn who_asks_for_the_roster_does_not_wait_for_a_card_that_takes_long() {
        let dir = tempfile::tempdir().unwrap();
        let book = Arc::new(open(dir.path()).0);
        let (decides, takes, asks) = (book.clone(), book.clone(), book);
        let writes: [Box<dyn FnOnce() + Send>; 2] = [
            Box::new(move || _ = decides.decide(|people| _ = people.withdrawn.insert(id(1)))),
            Box::new(move || _ = takes.take(&config(3, vec![entry(id(1), "Asha")]))),
        ];
        slow_card(&dir.path().join("people.new"), writes, move || {
            assert_eq!((asks.version(), asks.cloud_says(&HardwareId::kinara(7))), (0, None));
            asks.tell();
        });
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_box_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.pb"), [0xff; 9]).unwrap();
        std::fs::write(dir.path().join("people.json"), "{").unwrap();
        let (book, _) = open(dir.path());
        assert_eq!(now(&book).wearers.len(), 0);
        assert!(dir.path().join("config.broken").exists() && dir.path().join("people.broken").exists());
    }
}
