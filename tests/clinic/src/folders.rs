//! Where a clinic keeps its things, and as whom PostgreSQL runs.
//!
//! Everything is under one folder. There is one exception: PostgreSQL refuses to run as root, so under
//! root it runs as an ordinary user (the packaged `postgres`, else `nobody`), and where that user cannot
//! reach the folder (a home that is closed to others) the database's files lie under `/var/tmp` in a
//! folder named for the clinic's. [`forget`] removes both. That name can be guessed and anybody may write
//! to `/var/tmp`, so what is found there is used only if it is a folder of our own that nobody else may
//! write to.

use crate::{ClinicError, Result};
use sha2::{Digest, Sha256};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};

/// A user that a program is to run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name in `/etc/passwd`.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
}

/// Whether this program runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The user PostgreSQL has to run as: nobody else unless this program is root.
pub fn database_user() -> Option<User> {
    if !is_root() {
        return None;
    }
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    ["postgres", "nobody"].iter().find_map(|wanted| {
        let line = accounts.lines().find(|line| line.split(':').next() == Some(wanted))?;
        let mut fields = line.split(':').skip(2);
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name: (*wanted).to_owned(), uid, gid })
    })
}

/// The folder for the database's files: in `folder` where the user can reach it, else under `/var/tmp`.
/// It is made, and belongs to the user.
pub fn database_folder(folder: &Path, user: Option<&User>) -> Result<PathBuf> {
    let Some(user) = user else {
        let inside = folder.join("database");
        make(&inside, 0o700)?;
        return Ok(inside);
    };
    let place = if reachable(folder) {
        let inside = folder.join("database");
        make(&inside, 0o700)?;
        inside
    } else {
        make_outside(folder, "database", 0o700, Some(user))?
    };
    lchown(&place, Some(user.uid), Some(user.gid)).map_err(ClinicError::file(&place))?;
    Ok(place)
}

/// A short path for Unix sockets, whose names may have 107 bytes at most.
pub fn socket_folder(folder: &Path, name: &str) -> Result<PathBuf> {
    // The longest name below it: 16 digits and ".sock".
    const LONGEST: usize = 107 - 22;
    let inside = folder.join(name);
    if inside.as_os_str().len() > LONGEST {
        return make_outside(folder, name, 0o755, None);
    }
    make(&inside, 0o755)?;
    Ok(inside)
}

/// Makes a folder below the outside place of this folder, which belongs to us, or to `user` if it is handed over.
fn make_outside(folder: &Path, name: &str, mode: u32, user: Option<&User>) -> Result<PathBuf> {
    let parent = outside(folder);
    make_own(&parent, 0o711, None)?;
    let place = parent.join(name);
    make_own(&place, mode, user)?;
    Ok(place)
}

/// Makes one folder, or accepts it if nobody else can have made it or can change what is in it.
fn make_own(folder: &Path, mode: u32, user: Option<&User>) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => return made.map_err(ClinicError::file(folder)),
    }
    // Of the name itself: a link is never ours, wherever it leads.
    let found = std::fs::symlink_metadata(folder).map_err(ClinicError::file(folder))?;
    let owner = found.uid() == rustix::process::geteuid().as_raw()
        || user.is_some_and(|user| user.uid == found.uid());
    if found.is_dir() && owner && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(ClinicError::Foreign(folder.to_path_buf()))
}

/// The place under `/var/tmp` that belongs to this folder. It may not exist.
pub fn outside(folder: &Path) -> PathBuf {
    let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    PathBuf::from(format!("/var/tmp/kinara-{}", &hex::encode(digest)[..12]))
}

/// Removes a clinic's folder and what lies outside of it.
pub fn forget(folder: &Path) -> Result<()> {
    for place in [outside(folder), folder.to_path_buf()] {
        match std::fs::remove_dir_all(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ClinicError::file(place)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes a folder and its parents; the last one has this mode.
pub fn make(folder: &Path, mode: u32) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent).map_err(ClinicError::file(parent))?;
    }
    match std::fs::DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(ClinicError::file(folder)(error))
        }
        _ => Ok(()),
    }
}

/// Writes a file that only its owner may read, wholly or not at all.
pub fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let new = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(ClinicError::file(&new))?;
    file.write_all(text.as_bytes()).map_err(ClinicError::file(&new))?;
    std::fs::rename(&new, path).map_err(ClinicError::file(path))
}

/// Writes an ordinary file.
pub fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(ClinicError::file(path))
}

/// Bytes that are free where this folder lies (or will lie).
pub fn free_bytes(folder: &Path) -> u64 {
    let there = folder.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    rustix::fs::statvfs(there).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether anybody may pass through this folder and all above it.
fn reachable(folder: &Path) -> bool {
    folder.ancestors().all(|place| {
        place.as_os_str().is_empty() || place.metadata().is_ok_and(|data| data.mode() & 0o001 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret.json");
        write_secret(&path, "{}").unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn sockets_get_a_short_place_where_the_folder_is_deep() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(90));
        let place = socket_folder(&deep, "air").unwrap();
        assert!(place.starts_with("/var/tmp"), "{place:?}");
        forget(&deep).unwrap();
        assert!(!outside(&deep).exists());
    }

    #[test]
    fn what_somebody_else_put_at_the_outside_place_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(90));
        let refused = format!("{} belongs to somebody else; remove it", outside(&deep).display());
        std::os::unix::fs::symlink(dir.path(), outside(&deep)).unwrap();
        assert_eq!(socket_folder(&deep, "air").unwrap_err().to_string(), refused);
        assert!(!dir.path().join("air").exists());
        std::fs::remove_file(outside(&deep)).unwrap();
        std::fs::create_dir(outside(&deep)).unwrap();
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(outside(&deep), everybody).unwrap();
        assert_eq!(socket_folder(&deep, "air").unwrap_err().to_string(), refused);
        forget(&deep).unwrap();
    }

    #[test]
    fn a_closed_home_is_not_reachable_for_another_user() {
        let dir = tempfile::tempdir().unwrap();
        let closed = dir.path().join("closed");
        make(&closed, 0o700).unwrap();
        assert!(!reachable(&closed.join("clinic")));
    }
}
