//! Recordings of people that may not be kept in this repository.
//!
//! `KINARA_RECORDINGS` names the folder they lie in; a relative one is meant from the checkout. Without it a test that
//! wants one skips, with a clear word. With it a recording that is not there fails the test: whoever names a folder, as
//! CI does, wants these tests to run.

use std::path::{Path, PathBuf};

/// A recording by its name below the folder; nothing, and a word about it, where no folder is named.
///
/// # Panics
/// When a folder is named and the recording is not in it.
pub fn find(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("KINARA_RECORDINGS").map(PathBuf::from);
    let found = find_in(folder.as_deref(), &crate::clinic::root(), name);
    if found == Ok(None) {
        eprintln!("SKIPPED: {name}: KINARA_RECORDINGS names no folder of recordings");
    }
    found.unwrap_or_else(|why| panic!("{why}"))
}

fn find_in(folder: Option<&Path>, root: &Path, name: &str) -> Result<Option<PathBuf>, String> {
    let Some(folder) = folder.filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(None) };
    let path = root.join(folder).join(name);
    if path.is_file() {
        return Ok(Some(path));
    }
    Err(format!("KINARA_RECORDINGS is {}, and {} is not there", folder.display(), path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_folder_a_test_skips_and_with_one_a_missing_recording_fails() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("some")).unwrap();
        std::fs::write(root.path().join("some/rri.txt"), "1").unwrap();
        assert_eq!(find_in(None, root.path(), "rri.txt"), Ok(None));
        assert_eq!(find_in(Some(Path::new("")), root.path(), "rri.txt"), Ok(None));
        let found = find_in(Some(Path::new("some")), root.path(), "rri.txt").unwrap();
        assert_eq!(found, Some(root.path().join("some/rri.txt")));
        let missing = find_in(Some(Path::new("some")), root.path(), "ppg.txt").unwrap_err();
        assert!(missing.contains("ppg.txt is not there"), "{missing}");
        assert!(find_in(Some(Path::new("none")), root.path(), "rri.txt").is_err());
    }
}
