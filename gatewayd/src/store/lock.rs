//! The lock on the data folder. Its file says whether the last one who had it came to an end.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use super::StoreError;
use crate::sabotage::{self, Kind};

/// What the file holds while the store is open.
const OPEN: &[u8] = b"open\n";

/// Held while nobody else may work in the folder.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes it. True where a run before this one did not end by itself.
    pub fn take(dir: &Path) -> Result<(Self, bool), StoreError> {
        let path = dir.join("lock");
        // On a file system that cannot be written the lock is there from before, and holds as well.
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .or_else(|error| File::open(&path).map_err(|_| error))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Taken(dir.to_owned()))?;
        let mut lock = Self(file);
        let mut noted = Vec::new();
        if let Err(error) = lock.0.read_to_end(&mut noted).and_then(|_| lock.begins()) {
            tracing::debug!(%error, "the next start does not know whether this run ended");
        }
        // The planted faults that acknowledge too early are to be seen: what is asked for after a kill would bring back what they lose.
        let is_planted = sabotage::is(Kind::AckInWait) || sabotage::is(Kind::AckBeforeCommit);
        Ok((lock, !noted.is_empty() && !is_planted))
    }

    fn begins(&mut self) -> io::Result<()> {
        self.0.rewind()?;
        self.0.write_all(OPEN)?;
        self.0.sync_all()
    }

    /// All that was committed is in the database.
    pub fn ends(&self) {
        if let Err(error) = self.0.set_len(0) {
            tracing::debug!(%error, "the next start takes this for no end");
        }
    }
}
