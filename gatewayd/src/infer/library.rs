//! Whether the ONNX Runtime library is the one that was meant: what it is told to run is signed, and it runs in this process.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The SHA-256 of the library: 64 hexadecimal digits in a configuration, as `models/fetch-onnxruntime` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LibraryDigest([u8; 32]);

impl TryFrom<String> for LibraryDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digest = hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        digest.map(Self).ok_or(
            "the SHA-256 of a library has 64 hexadecimal digits, as models/fetch-onnxruntime prints it",
        )
    }
}

impl LibraryDigest {
    /// Why the file is not to be loaded.
    pub fn check(self, library: &Path) -> Result<(), String> {
        let mut hash = Sha256::new();
        let read = File::open(library).and_then(|mut file| io::copy(&mut file, &mut hash));
        read.map_err(|error| format!("{} cannot be read: {error}", library.display()))?;
        let found: [u8; 32] = hash.finalize().into();
        if found == self.0 {
            return Ok(());
        }
        Err(format!(
            "the SHA-256 of {} is {}, and infer.onnxruntime_sha256 asks for {}; it was not loaded",
            library.display(),
            hex::encode(found),
            hex::encode(self.0)
        ))
    }
}
