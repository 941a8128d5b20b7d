//! What was done at the box's page, by whom.
//!
//! The promise: everything that somebody did, or tried in vain, is a line in `audit.jsonl` before the answer
//! is shown; what was tried in vain with a wrong PIN or code has a line a minute that says how many ([`Failures`]). The file only grows; at [`FULL`] bytes it becomes `audit.1.jsonl` (the former one of that name
//! goes) and a new one begins, so that the two never take more than twice that. What people decided about
//! wearers and devices is kept longer, by the cloud.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::keep;
use crate::files;

const FILE: &str = "audit.jsonl";
const FORMER: &str = "audit.1.jsonl";
/// Bytes after which a new file begins.
const FULL: u64 = 1 << 20;
/// Lines shown.
const SHOWN: usize = 200;
/// Characters of a detail.
const LONGEST: usize = 300;

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    /// First set-up.
    SetUp,
    /// Log in.
    LogIn,
    /// Log out.
    LogOut,
    /// Open the pairing window.
    OpenWindow,
    /// Close it.
    CloseWindow,
    /// Pair a device.
    Pair,
    /// Give a device to a wearer.
    Bind,
    /// Take it back.
    Unbind,
    /// Record that a wearer does not agree any more.
    Withdraw,
    /// Forget a device.
    Forget,
    /// Have it show itself.
    Identify,
    /// Set how often it measures.
    SetIntervals,
    /// Add somebody to the staff.
    AddStaff,
    /// Take somebody off.
    RemoveStaff,
    /// Change a PIN.
    ChangePin,
    /// Have the last known time forgotten (`kinaractl clock reset`).
    ResetClock,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// When, UTC microseconds as far as the box knew.
    pub utc_us: i64,
    /// Who; for a login that failed, as whom.
    pub who: String,
    /// From which address.
    pub from: String,
    /// What.
    pub action: Action,
    /// To what or whom; may be empty.
    pub subject: String,
    /// Empty when it was done; else why not.
    pub failure: String,
}

/// A line about what was tried in vain, for one person and deed, at most so often, microseconds.
const FAILURES_EVERY_US: i64 = 60_000_000;
/// Persons and deeds that are told apart; beyond, all others are one.
const FAILURES: usize = 256;

/// What was tried in vain and has no line yet.
#[derive(Debug, Default)]
pub(super) struct Failures(HashMap<(String, Action), (i64, u32)>);

impl Failures {
    /// Counts one. Gives how many had no line since the last, when it is time for one.
    pub fn take(&mut self, (who, action): (&str, Action), now_us: i64) -> Option<u32> {
        let mut key = (who.to_owned(), action);
        if self.0.len() >= FAILURES && !self.0.contains_key(&key) {
            key = (String::new(), action);
        }
        match self.0.get_mut(&key) {
            Some((told_us, waiting)) if now_us - *told_us < FAILURES_EVERY_US => {
                *waiting = waiting.saturating_add(1);
                None
            }
            Some((told_us, waiting)) => {
                *told_us = now_us;
                Some(std::mem::take(waiting))
            }
            None => {
                self.0.insert(key, (now_us, 0));
                Some(0)
            }
        }
    }
}

/// The audit; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Audit(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    file: File,
    size: u64,
    /// The file may end in the midst of a line.
    torn: bool,
    newest: VecDeque<Entry>,
}

impl Audit {
    /// Opens the file and reads what is shown.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let mut newest = VecDeque::new();
        for name in [FORMER, FILE] {
            let path = data_dir.join(name);
            let text = match std::fs::read(&path) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // Without an audit there would be no page, and without a page nobody could be cared for here.
                Err(error) if files::is_the_files(&error) => {
                    files::set_aside(&path, &error)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            // A line that a power cut has left half is no reason not to start.
            for entry in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
                push(&mut newest, entry);
            }
        }
        let file = keep::append(&data_dir.join(FILE))?;
        let size = file.metadata()?.len();
        // A line that a power cut has left half is ended with the next one; an empty one is skipped.
        let torn = size > 0;
        Ok(Self(Arc::new(Mutex::new(Inner { dir: data_dir.to_owned(), file, size, torn, newest }))))
    }

    /// Writes a line; it is on disk when this returns.
    pub async fn record(&self, mut entry: Entry) {
        for text in [&mut entry.subject, &mut entry.failure, &mut entry.who] {
            *text = text.chars().take(LONGEST).collect();
        }
        let audit = self.clone();
        let kept = entry.clone();
        let written = tokio::task::spawn_blocking(move || audit.lock().write(&entry)).await;
        if let Err(error) = written.map_err(io::Error::other).flatten() {
            tracing::error!(
                %error, who = kept.who, action = ?kept.action, subject = kept.subject, failure = kept.failure,
                "the audit could not be written; it is in the log only"
            );
        }
        push(&mut self.lock().newest, kept);
    }

    /// The newest lines, newest first.
    pub fn newest(&self) -> Vec<Entry> {
        self.lock().newest.iter().rev().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = if self.torn { b"\n".to_vec() } else { Vec::new() };
        serde_json::to_writer(&mut line, entry).map_err(io::Error::other)?;
        line.push(b'\n');
        if self.size + line.len() as u64 > FULL {
            std::fs::rename(self.dir.join(FILE), self.dir.join(FORMER))?;
            self.file = keep::append(&self.dir.join(FILE))?;
            self.size = 0;
        }
        // Should the disk have room for half of it only, the next line begins anew.
        self.torn = true;
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        self.size += line.len() as u64;
        self.torn = false;
        Ok(())
    }
}

fn push(newest: &mut VecDeque<Entry>, entry: Entry) {
    if newest.len() == SHOWN {
        newest.pop_front();
    }
    newest.push_back(entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_pins_have_a_line_a_minute_that_says_how_many() {
        let mut failures = Failures::default();
        let mut lines = Vec::new();
        for second in 0..180 {
            lines.extend(failures.take(("Ravi", Action::LogIn), second * 1_000_000));
        }
        assert_eq!(lines, [0, 59, 59]);
        assert_eq!(
            failures.take(("Mina", Action::LogIn), 0),
            Some(0),
            "another person has a line of her own"
        );
        for n in 0..10_000 {
            failures.take((&n.to_string(), Action::LogIn), 0);
        }
        assert!(failures.0.len() <= FAILURES + 1);
    }

    fn entry(subject: &str) -> Entry {
        Entry {
            utc_us: 1,
            who: "Ravi".to_owned(),
            from: "10.0.0.1".to_owned(),
            action: Action::Forget,
            subject: subject.to_owned(),
            failure: String::new(),
        }
    }

    #[tokio::test]
    async fn what_was_done_is_there_after_a_restart_newest_first_even_with_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        audit.record(entry("one")).await;
        audit.record(entry("two")).await;
        keep::append(&dir.path().join(FILE)).unwrap().write_all(b"{\"utc_us\":12,\"wh").unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        audit.record(entry("three\n{}")).await;
        let audit = Audit::open(dir.path()).unwrap();
        let subjects: Vec<_> = audit.newest().into_iter().map(|e| e.subject).collect();
        assert_eq!(subjects, ["three\n{}", "two", "one"]);
    }

    #[tokio::test]
    async fn a_line_that_found_no_room_on_the_disk_costs_itself_and_not_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        audit.record(entry("one")).await;
        // A device without room, and what the disk had room for.
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut audit.lock().file, full);
        audit.record(entry("two")).await;
        keep::append(&dir.path().join(FILE)).unwrap().write_all(b"{\"utc_us\":12,\"wh").unwrap();
        audit.lock().file = file;
        audit.record(entry("three")).await;
        let audit = Audit::open(dir.path()).unwrap();
        let subjects: Vec<_> = audit.newest().into_iter().map(|e| e.subject).collect();
        assert_eq!(subjects, ["three", "one"]);
    }

    #[tokio::test]
    async fn the_files_stay_within_their_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        audit.lock().size = FULL - 10;
        audit.record(entry(&"x".repeat(5_000))).await;
        audit.record(entry("after")).await;
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.len() < 1_000, "a detail is cut: {}", text.len());
        assert!(dir.path().join(FORMER).exists());
    }

    #[test]
    fn an_audit_that_cannot_be_read_is_set_aside_and_another_begins() {
        for name in [FILE, FORMER] {
            let dir = tempfile::tempdir().unwrap();
            // Stands for a bad sector: the file, and not the machine, is why it cannot be read.
            std::fs::create_dir(dir.path().join(name)).unwrap();
            let audit = Audit::open(dir.path()).unwrap();
            assert!(audit.newest().is_empty() && dir.path().join(FILE).is_file());
            assert_eq!(files::broken(dir.path()).unwrap().len(), 1);
        }
    }
}
