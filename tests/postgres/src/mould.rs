//! Moulds: stopped clusters, each made once, that throw-away servers get copies of.
//!
//! `initdb` and a schema cost seconds, a copy of what they leave costs a fraction of one, and tests want hundreds of them. The
//! promise: a mould is whole or not there (it is made under a lock, in a place of its own, and gets its name at the end);
//! nothing runs in it again; it counts for one day, one version of the server, one storage and one key.
//!
//! They lie in a folder of the checkout's own below `/var/tmp`, where an ordinary user reaches them, and nobody else reads
//! them. `./kinara clean` removes them; one that has been of no use for days goes when another one is made.

use std::fs::{File, TryLockError};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use crate::{Error, file, is_own, programs, timescale};

const DAY: Duration = Duration::from_hours(24);
/// So long is a mould kept: those of yesterday are of no use any more, unless somebody copies one right now.
const KEPT: Duration = DAY.saturating_mul(2);

/// A whole mould. It stays while this is held.
#[derive(Debug)]
pub(crate) struct Mould {
    place: PathBuf,
    _lock: File,
}

impl Mould {
    /// The cluster's files.
    pub(crate) fn data(&self) -> PathBuf {
        self.place.join("data")
    }

    /// The file with its superuser's password.
    pub(crate) fn password(&self) -> PathBuf {
        self.place.join("superuser.password")
    }
}

/// What is there of a mould.
#[derive(Debug)]
pub(crate) enum Found {
    /// All.
    Whole(Mould),
    /// Nothing, and the finder is the only one who makes it.
    Missing(Making),
}

/// A mould that is being made. Without [`Making::done`] it never was.
#[derive(Debug)]
pub(crate) struct Making {
    new: PathBuf,
    place: PathBuf,
    lock: File,
}

impl Making {
    /// Where it is to be made.
    pub(crate) fn folder(&self) -> &Path {
        &self.new
    }

    /// It is whole, and its server was stopped in good order.
    pub(crate) fn done(self) -> Result<Mould, Error> {
        let left = self.new.join("data/postmaster.pid");
        if left.exists() {
            return Err(file("there is still", &left)(io::ErrorKind::ResourceBusy.into()));
        }
        std::fs::rename(&self.new, &self.place).map_err(file("cannot make", &self.place))?;
        share(&self.lock, &self.place)?;
        let lock = self.lock.try_clone().map_err(file("cannot lock", &self.place))?;
        Ok(Mould { place: self.place.clone(), _lock: lock })
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // What is done has another name by now.
        let _ = remove(&self.new);
    }
}

/// Looks for the mould of this key; waits while somebody makes it.
pub(crate) fn find(key: &str) -> Result<Found, Error> {
    find_in(&folder(), key, today())
}

fn find_in(folder: &Path, key: &str, day: u64) -> Result<Found, Error> {
    make_folder(folder)?;
    let place = folder.join(name(key, day)?);
    let lock = lock_of(&place)?;
    share(&lock, &place)?;
    if !place.exists() {
        lock.unlock().and_then(|()| lock.lock()).map_err(file("cannot lock", &place))?;
        if !place.exists() {
            let new = place.with_extension("new");
            remove(&new)?;
            forget_old(folder)?;
            return Ok(Found::Missing(Making { new, place, lock }));
        }
        share(&lock, &place)?;
    }
    Ok(Found::Whole(Mould { place, _lock: lock }))
}

/// Takes the lock as many may have it; from one kind to the other by way of none, or two would wait for each other.
fn share(lock: &File, place: &Path) -> Result<(), Error> {
    lock.unlock().and_then(|()| lock.lock_shared()).map_err(file("cannot lock", place))
}

/// All that a mould's content follows from but for who asks: the day counts since a schema has days in it.
fn name(key: &str, day: u64) -> Result<String, Error> {
    let bin = programs()?;
    let mut hasher = DefaultHasher::new();
    for program in [Some(bin.join("postgres")), timescale(&bin)].into_iter().flatten() {
        let found = std::fs::metadata(&program).map_err(file("cannot read", &program))?;
        (&program, found.size(), found.mtime(), found.mtime_nsec()).hash(&mut hasher);
    }
    (key, day).hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

#[expect(clippy::disallowed_methods, reason = "the server's own clock is this one, too")]
fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY.as_secs()
}

/// The outside place of the checkout's `.kinara/moulds`, as the launcher and `tests/clinic/src/folders.rs` name such places.
fn folder() -> PathBuf {
    let checkout = std::env::var_os("KINARA_ROOT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/")).to_owned(),
        PathBuf::from,
    );
    let digest = Sha256::digest(checkout.join(".kinara/moulds").as_os_str().as_encoded_bytes());
    PathBuf::from(format!("/var/tmp/kinara-{}", &hex::encode(digest)[..12]))
}

fn make_folder(folder: &Path) -> Result<(), Error> {
    match std::fs::DirBuilder::new().mode(0o711).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map_err(file("cannot make the directory", folder)),
    }
    // Anybody may make such a name: a link is never ours, wherever it leads.
    let found = std::fs::symlink_metadata(folder).map_err(file("cannot read", folder))?;
    if found.is_dir() && is_own(&found, None)? { Ok(()) } else { Err(Error::Foreign(folder.to_owned())) }
}

fn lock_of(place: &Path) -> Result<File, Error> {
    let path = place.with_extension("lock");
    File::create(&path).map_err(file("cannot write", &path))
}

fn remove(folder: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("cannot remove", folder)(error)),
        _ => Ok(()),
    }
}

/// Removes moulds that were made days ago and that nobody copies.
fn forget_old(folder: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(folder).map_err(file("cannot read", folder))?.flatten() {
        let place = entry.path();
        let old = entry.metadata().is_ok_and(|found| {
            found.is_dir() && found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > KEPT))
        });
        if !old {
            continue;
        }
        let lock = lock_of(&place)?;
        match lock.try_lock() {
            Ok(()) => {
                remove(&place)?;
                let _ = std::fs::remove_file(place.with_extension("lock"));
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(file("cannot lock", &place)(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn make(making: Making) -> Mould {
        std::fs::create_dir_all(making.folder().join("data")).unwrap();
        making.done().unwrap()
    }

    fn whole(found: Found) -> Option<Mould> {
        match found {
            Found::Whole(mould) => Some(mould),
            Found::Missing(_) => None,
        }
    }

    #[test]
    fn of_many_who_want_a_mould_one_makes_it_and_all_get_it() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("moulds");
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| match find_in(&folder, "key", 1).unwrap() {
                    Found::Whole(mould) => assert!(mould.data().is_dir()),
                    Found::Missing(making) => {
                        made.fetch_add(1, Ordering::Relaxed);
                        make(making);
                    }
                });
            }
        });
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_mould_that_was_left_half_made_is_never_used() {
        let place = tempfile::tempdir().unwrap();
        let Found::Missing(making) = find_in(place.path(), "key", 1).unwrap() else {
            panic!("nobody made it")
        };
        let left = making.folder().join("data");
        drop(making);
        // As by somebody who was killed.
        std::fs::create_dir_all(left).unwrap();
        let Found::Missing(making) = find_in(place.path(), "key", 1).unwrap() else { panic!("half a mould") };
        assert!(!making.folder().exists(), "what was left is in the way");
        // Nor one whose server was not stopped.
        std::fs::create_dir_all(making.folder().join("data")).unwrap();
        std::fs::write(making.folder().join("data/postmaster.pid"), "1").unwrap();
        assert!(making.done().is_err());
        assert!(whole(find_in(place.path(), "key", 1).unwrap()).is_none());
    }

    #[test]
    fn another_key_or_another_day_is_another_mould() {
        let place = tempfile::tempdir().unwrap();
        let Found::Missing(making) = find_in(place.path(), "key", 1).unwrap() else {
            panic!("nobody made it")
        };
        make(making);
        assert!(whole(find_in(place.path(), "key", 1).unwrap()).is_some());
        assert!(whole(find_in(place.path(), "other", 1).unwrap()).is_none());
        assert!(whole(find_in(place.path(), "key", 2).unwrap()).is_none());
    }

    #[test]
    fn an_old_mould_goes_when_another_one_is_made_unless_somebody_copies_it() {
        let place = tempfile::tempdir().unwrap();
        let old = |key: &str| {
            let Found::Missing(making) = find_in(place.path(), key, 1).unwrap() else {
                panic!("nobody made it")
            };
            let mould = make(making);
            let before = mould.place.metadata().unwrap().modified().unwrap() - 2 * KEPT;
            File::open(&mould.place).unwrap().set_modified(before).unwrap();
            mould
        };
        let (held, free) = (old("held"), old("free").place);
        assert!(whole(find_in(place.path(), "new", 9).unwrap()).is_none());
        assert!(held.place.exists() && !free.exists());
    }

    #[test]
    fn a_folder_that_somebody_else_could_have_made_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let link = place.path().join("link");
        std::os::unix::fs::symlink(place.path(), &link).unwrap();
        let error = find_in(&link, "key", 1).unwrap_err().to_string();
        assert_eq!(error, format!("{} belongs to somebody else; remove it", link.display()));
    }
}
