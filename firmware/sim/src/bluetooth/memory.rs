//! What the radio remembers, as a file in the state directory.
//!
//! **Promise.** A memory that was saved is on the disk, whole; one that was being saved when the power went is not there,
//! and the one before it is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use kinara_firmware_ble::memory::{MAX_IMAGE, Storage};

/// See the module's text.
#[derive(Debug)]
pub struct MemoryFile {
    path: PathBuf,
}

impl MemoryFile {
    /// The file of a state directory.
    pub fn in_state(state: &Path) -> Self {
        Self { path: state.join("bonds.img") }
    }
}

impl Storage for MemoryFile {
    type Error = io::Error;

    fn load(&mut self, into: &mut [u8; MAX_IMAGE]) -> io::Result<usize> {
        match fs::read(&self.path) {
            Ok(bytes) if bytes.len() <= into.len() => {
                into[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "longer than any memory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn save(&mut self, image: &[u8]) -> io::Result<()> {
        let partial = self.path.with_extension("new");
        let mut file = File::create(&partial)?;
        file.write_all(image)?;
        file.sync_all()?;
        fs::rename(&partial, &self.path)?;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_last_is_loaded_and_a_half_written_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = MemoryFile::in_state(dir.path());
        let mut image = [0; MAX_IMAGE];
        assert_eq!(file.load(&mut image).unwrap(), 0);
        file.save(b"one").unwrap();
        file.save(b"two").unwrap();
        fs::write(dir.path().join("bonds.new"), b"thr").unwrap();
        let len = MemoryFile::in_state(dir.path()).load(&mut image).unwrap();
        assert_eq!(&image[..len], b"two");
    }
}
