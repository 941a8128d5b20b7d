//! Small files that are kept whole: the box's devices, people, keys.
//!
//! The promise: what is written here is on disk on return, beside a copy of its own. A file that cannot be read, as one of
//! zero bytes after a power cut or one on a bad sector, is set aside, its last good copy takes its place, and a person is
//! told. It does as well where the file is not there at all: who wants it gone deletes both. A disk that cannot be written
//! keeps nobody from reading. A file that belongs to another user, as a backup that root has put there, is whole and stays as
//! it is: its last good copy is used, nothing is written in this run, and a person is told.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::RuntimeFlavor;

use crate::status::Board;

/// What a file that was set aside ends in.
const BROKEN: &str = "broken";
/// What the last good copy of a file ends in.
const GOOD: &str = "good";

/// Files that this run may not read. Nothing is written over them, whatever may be done with them meanwhile.
static FOREIGN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Replaces a file whole, and then its copy: on return the new one is on disk, before that the old one is. Only its owner
/// can read it. A card may take a second for that: other tasks of this thread go on elsewhere meanwhile. No lock may be held
/// that others wait for.
pub fn write_through(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if foreign().contains(path) {
        return Err(not_ours(path));
    }
    beside_other_tasks(|| {
        replace(path, bytes)?;
        keep_copy(path, bytes);
        Ok(())
    })
}

/// As [`write_through`], of a file without which nothing is lost: no copy is kept.
pub fn write_uncopied(path: &Path, bytes: &[u8]) -> io::Result<()> {
    beside_other_tasks(|| replace(path, bytes))
}

/// Has those who change something on disk do so one after the other, each as a whole.
#[derive(Debug, Default)]
pub struct Turns(Mutex<()>);

impl Turns {
    /// Does it when nobody else does. Who waits here, or for the card, waits beside other tasks.
    pub fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        beside_other_tasks(|| {
            let _turn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        })
    }
}

fn beside_other_tasks<T>(write: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(write),
        _ => write(),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    let Some(folder) = path.parent() else { return Ok(()) };
    File::open(folder)?.sync_all()
}

/// The file itself is what counts: a copy that cannot be written is worth a word.
fn keep_copy(path: &Path, bytes: &[u8]) {
    if let Err(error) = replace(&copy_of(path), bytes) {
        tracing::warn!(%error, file = %path.display(), "there is no second copy of this file");
    }
}

fn copy_of(path: &Path) -> PathBuf {
    path.with_extension(GOOD)
}

/// Reads a file, or its copy where there is no good one; `None` when there is neither.
pub fn read<T, E: Display>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, E>) -> io::Result<Option<T>> {
    read_found(path, std::fs::read(path), parse)
}

fn read_found<T, E: Display>(
    path: &Path,
    found: io::Result<Vec<u8>>,
    parse: impl Fn(&[u8]) -> Result<T, E>,
) -> io::Result<Option<T>> {
    if found.is_ok() {
        // Somebody has given it to us: what is in it is known from now on.
        foreign().remove(path);
    }
    let parsed = match found {
        // A file of no bytes says nothing, even in a form in which nothing is something.
        Ok(bytes) if bytes.is_empty() => Err("it is empty".to_owned()),
        Ok(bytes) => parse(&bytes).map(|value| (value, bytes)).map_err(|error| error.to_string()),
        // It may have been set aside, and the power cut before its copy was in its place.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(use_last_good(path, parse)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return read_foreign(path, parse),
        Err(error) if is_the_files(&error) => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    match parsed {
        Ok((value, bytes)) => {
            // The copy may be older than the file, or broken itself.
            if !std::fs::read(copy_of(path)).is_ok_and(|copy| copy == bytes) {
                keep_copy(path, &bytes);
            }
            Ok(Some(value))
        }
        Err(error) => {
            if let Err(why) = set_aside(path, &error) {
                tracing::error!(%error, %why, file = %path.display(), "a file cannot be read, nor be set aside");
            }
            Ok(use_last_good(path, parse))
        }
    }
}

/// The last good copy of a file that belongs to somebody else; an error where there is none.
fn read_foreign<T, E: Display>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, E>) -> io::Result<Option<T>> {
    foreign().insert(path.to_owned());
    let Some((value, _)) = last_good(path, parse) else { return Err(not_ours(path)) };
    tracing::error!(
        file = %path.display(),
        "a file belongs to another user: its last good copy is used, and nothing is written in this run"
    );
    Ok(Some(value))
}

fn foreign() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    FOREIGN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_ours(path: &Path) -> io::Error {
    let text = format!(
        "{} belongs to another user; give it to the daemon's, then restart the daemon",
        path.display()
    );
    io::Error::new(ErrorKind::PermissionDenied, text)
}

/// Whether this file, and not the machine, is why it cannot be read.
pub fn is_the_files(error: &io::Error) -> bool {
    let bad_sector = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    bad_sector || error.kind() == ErrorKind::IsADirectory
}

fn last_good<T, E: Display>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, E>) -> Option<(T, Vec<u8>)> {
    let bytes = std::fs::read(copy_of(path)).ok()?;
    let value = parse(&bytes).ok().filter(|_| !bytes.is_empty())?;
    Some((value, bytes))
}

/// Puts the last good copy in the place of the file.
fn use_last_good<T, E: Display>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, E>) -> Option<T> {
    let (value, bytes) = last_good(path, parse)?;
    tracing::warn!(file = %path.display(), "its last good copy is used");
    if let Err(error) = replace(path, &bytes) {
        tracing::warn!(%error, file = %path.display(), "the copy stays where it is");
    }
    Some(value)
}

/// Moves a file that cannot be read out of the way.
pub fn set_aside(path: &Path, error: &dyn Display) -> io::Result<()> {
    let aside = path.with_extension(BROKEN);
    std::fs::rename(path, &aside)?;
    tracing::error!(
        %error, file = %path.display(), aside = %aside.display(),
        "a file cannot be read and was set aside"
    );
    Ok(())
}

/// The files that were set aside in a folder, by name.
pub fn broken(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension().is_some_and(|extension| extension == BROKEN) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Tells people of each file that was set aside, until somebody has taken it away, and of each that belongs to somebody else.
pub fn tell_broken(folder: &Path, board: &Board) {
    for path in foreign().iter().filter(|path| path.starts_with(folder)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = format!(
            "The file {name} belongs to another user, so that this box cannot read it. Its last good copy is used, where there \
             is one, and what changes is not kept. Give the file to the daemon's user, then restart the daemon."
        );
        board.alert(&format!("file {name}"), Some(text));
    }
    for name in broken(folder).unwrap_or_default() {
        let text = format!(
            "A file of this box could not be read, as after a power cut, and was set aside as {name}. Its last good copy \
             is used, where there was one. Look whether devices and people are as they should be; then remove {name}."
        );
        board.alert(&format!("file {name}"), Some(text));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

    use super::*;
    use crate::status::Snapshot;

    /// Has tasks write a file on a card that takes long, on one thread, and `other` done meanwhile: it may not wait for them.
    #[expect(clippy::disallowed_methods, reason = "the thread is the test's own")]
    pub(crate) fn slow_card(
        new_file: &Path,
        writes: impl IntoIterator<Item = impl FnOnce() + Send + 'static>,
        other: impl FnOnce() + Send + 'static,
    ) {
        // Stands for the card: whoever opens it to write waits until somebody reads.
        mknodat(CWD, new_file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (begun, begins) = mpsc::channel();
        let mut writing = Vec::new();
        for write in writes {
            let begun = begun.clone();
            writing.push(runtime.spawn(async move {
                begun.send(()).unwrap();
                write();
            }));
            begins.recv().unwrap();
        }
        // Long enough for the first one to be at the card.
        std::thread::sleep(Duration::from_millis(200));
        let (done, is_done) = mpsc::channel();
        runtime.spawn(async move {
            other();
            done.send(()).unwrap();
        });
        let is_done = is_done.recv_timeout(Duration::from_secs(5));
        let not_waiting = OFlags::NONBLOCK.bits().cast_signed();
        while writing.iter().any(|task| !task.is_finished()) {
            // A pipe cannot be forced to disk; that is not what is asked.
            drop(OpenOptions::new().read(true).custom_flags(not_waiting).open(new_file).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(is_done.is_ok(), "it waited for the card");
    }

    #[test]
    fn a_card_that_takes_long_holds_up_no_other_task() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("devices.json");
        slow_card(&path.with_extension("new"), [move || _ = write_through(&path, b"{}")], || {});
    }

    #[test]
    fn a_file_that_the_disk_does_not_give_out_costs_what_has_changed_since_its_copy_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("people.json");
        write_through(&path, b"everybody").unwrap();
        std::fs::remove_file(&path).unwrap();
        // Stands for a bad sector: it is there, and nobody can read it.
        std::fs::create_dir(&path).unwrap();
        assert_eq!(read(&path, text).unwrap().as_deref(), Some("everybody"));
        assert_eq!(std::fs::read(&path).unwrap(), b"everybody");
        assert_eq!(broken(dir.path()).unwrap(), ["people.broken"]);
    }

    #[test]
    fn a_file_that_belongs_to_another_user_stays_as_it_is_and_its_copy_serves_until_somebody_gives_it_to_us()
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("devices.json");
        write_through(&path, b"before").unwrap();
        std::fs::write(&path, b"a good backup that root put here").unwrap();
        let refused = || Err(ErrorKind::PermissionDenied.into());
        assert_eq!(read_found(&path, refused(), text).unwrap().as_deref(), Some("before"));
        assert_eq!(write_through(&path, b"after").unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(std::fs::read(&path).unwrap(), b"a good backup that root put here");
        assert!(broken(dir.path()).unwrap().is_empty());
        let board = Board::new(Snapshot::default());
        tell_broken(dir.path(), &board);
        assert!(board.now().alerts["file devices.json"].contains("belongs to another user"));
        // Without a copy nobody knows what is in it.
        std::fs::remove_file(copy_of(&path)).unwrap();
        let error = read_found(&path, refused(), text).unwrap_err();
        assert!(error.to_string().contains("devices.json belongs to another user"), "{error}");
    }

    #[test]
    fn a_broken_file_that_cannot_be_set_aside_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("people.json");
        write_through(&path, b"everybody").unwrap();
        std::fs::write(&path, []).unwrap();
        // Stands for a disk that cannot be written.
        std::fs::create_dir_all(dir.path().join("people.broken/full")).unwrap();
        std::fs::create_dir(dir.path().join("people.new")).unwrap();
        assert_eq!(read(&path, text).unwrap().as_deref(), Some("everybody"));
        std::fs::remove_file(dir.path().join("people.good")).unwrap();
        assert_eq!(read(&path, text).unwrap(), None);
    }

    fn text(bytes: &[u8]) -> Result<String, std::string::FromUtf8Error> {
        String::from_utf8(bytes.to_vec())
    }

    #[test]
    fn a_power_cut_between_setting_a_file_aside_and_using_its_copy_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("people.json");
        write_through(&path, b"everybody").unwrap();
        std::fs::write(&path, [0xff]).unwrap();
        set_aside(&path, &"torn").unwrap();
        // The power is cut here.
        assert_eq!(read(&path, text).unwrap().as_deref(), Some("everybody"));
        assert_eq!(std::fs::read(&path).unwrap(), b"everybody");
    }

    #[test]
    fn who_deletes_a_file_and_its_copy_is_rid_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("staff.json");
        write_through(&path, b"PINs that nobody remembers").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(dir.path().join("staff.good")).unwrap();
        assert_eq!(read(&path, text).unwrap(), None);
    }

    #[test]
    fn a_copy_that_is_older_than_its_file_is_renewed_when_the_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("devices.json");
        write_through(&path, b"before").unwrap();
        // As when the copy could not be written.
        std::fs::write(&path, b"after").unwrap();
        assert_eq!(read(&path, text).unwrap().as_deref(), Some("after"));
        std::fs::write(&path, []).unwrap();
        assert_eq!(read(&path, text).unwrap().as_deref(), Some("after"));
    }
}
