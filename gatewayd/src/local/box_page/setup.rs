//! The one-time code of the first set-up.
//!
//! The promise: there is no default password. While nobody can log in, the box has one random code, which it
//! shows only where somebody with access to the box itself can read it (its log, and `setup-code` in its data
//! folder). Whoever types it becomes the first of the staff; with that the code is gone. It is as hard to
//! guess as a key (60 bits).

use std::io;
use std::path::{Path, PathBuf};

use kinara_protocol::entry;
use rand::RngCore;
use sha2::{Digest, Sha256};

use super::keep;

const FILE: &str = "setup-code";
/// RFC 4648 base32.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const LENGTH: usize = 12;

/// The code, while there is one.
#[derive(Debug)]
pub(super) struct Setup {
    path: PathBuf,
    code: Option<String>,
}

impl Setup {
    /// Reads the code that an earlier start has drawn, if any.
    pub fn open(data_dir: &Path) -> Self {
        let path = data_dir.join(FILE);
        let code =
            std::fs::read_to_string(&path).ok().map(|text| tidy(&text)).filter(|code| code.len() == LENGTH);
        Self { path, code }
    }

    /// The code as it is shown, drawn when there is none.
    pub fn code(&mut self, random: &mut impl RngCore) -> io::Result<String> {
        if let Some(code) = &self.code {
            return Ok(shown(code));
        }
        let code: String =
            (0..LENGTH).map(|_| char::from(ALPHABET[(random.next_u32() & 31) as usize])).collect();
        keep::private(&self.path, format!("{}\n", shown(&code)).as_bytes())?;
        self.code = Some(code.clone());
        Ok(shown(&code))
    }

    /// Whether this is the code. It stays until [`Setup::spent`].
    pub fn is(&self, typed: &str) -> bool {
        // By digest: the time that comparing takes says nothing about the code.
        self.code.as_ref().is_some_and(|code| Sha256::digest(code) == Sha256::digest(tidy(typed)))
    }

    /// Somebody can log in: the code is gone.
    pub fn spent(&mut self) -> io::Result<()> {
        self.code = None;
        keep::remove(&self.path)
    }
}

fn shown(code: &str) -> String {
    format!("{}-{}-{}", &code[..4], &code[4..8], &code[8..])
}

/// Letters and digits as the code has them, from any keyboard: 0, 1 and 8 do not occur in it and are read as what they
/// look like.
fn tidy(typed: &str) -> String {
    entry::code_characters(typed)
        .filter_map(|c| match c {
            '0' => Some('O'),
            '1' => Some('I'),
            '8' => Some('B'),
            c if c.is_ascii_alphanumeric() => Some(c),
            _ => None,
        })
        .take(LENGTH + 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_stays_over_restarts_until_it_is_used_and_then_never_works_again() {
        let dir = tempfile::tempdir().unwrap();
        let code = Setup::open(dir.path()).code(&mut rand::rng()).unwrap();
        let mut setup = Setup::open(dir.path());
        assert_eq!(setup.code(&mut rand::rng()).unwrap(), code);
        assert!(setup.is(&code) && setup.is(&code.to_lowercase().replace('-', " ")));
        assert!(!setup.is("") && !setup.is(&code[1..]) && !setup.is(&format!("{code}A")));
        setup.spent().unwrap();
        assert!(!setup.is(&code));
        let mut again = Setup::open(dir.path());
        assert!(!again.is(&code));
        assert_ne!(again.code(&mut rand::rng()).unwrap(), code);
    }

    #[test]
    fn two_boxes_have_different_codes_and_only_the_owner_reads_them() {
        use std::os::unix::fs::PermissionsExt;
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let code = |dir: &tempfile::TempDir| Setup::open(dir.path()).code(&mut rand::rng()).unwrap();
        assert_ne!(code(&one), code(&other));
        let mode = std::fs::metadata(one.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn look_alikes_are_read_as_what_the_code_has() {
        assert_eq!(tidy("o0i1-b8"), "OOIIBB");
    }

    #[test]
    fn the_code_may_be_typed_on_any_keyboard() {
        for typed in ["ab२३", "ＡＢ２３", "ａｂ－٢٣"] {
            assert_eq!(tidy(typed), "AB23", "{typed}");
        }
    }
}
