//! Access tokens: short-lived, signed with a key that only this program's user can read.
//!
//! The promise: whoever is logged in stays so while the key is changed. A token names its key, tokens of two keys are taken,
//! and new ones are signed with the first.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use kinara_clock::Clock;
use rand::TryRngCore as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::access::{Member, Role};
use crate::problem::Problem;

const ISSUER: &str = "kinara";
const AUDIENCE: &str = "kinara-api";
/// Bytes of the key: as many as the hash has.
const KEY_BYTES: usize = 32;
/// Bytes of a key's digest that tell it from another: of a secret of 256 bits they give nothing away.
const NAME_BYTES: usize = 8;
/// The longest token that is looked at.
const MAX_TOKEN: usize = 2048;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error(
        "cannot {what} the signing key {path}: {source}; check jwt_secret_file and jwt_previous_secret_file"
    )]
    File {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// Others can read the file.
    #[error("the signing key {0} can be read by others; run: chmod 600 {0}")]
    Exposed(PathBuf),
    /// Too short.
    #[error(
        "the signing key {0} has fewer than 32 bytes; remove it, and a new one is made (everyone logs in again)"
    )]
    Short(PathBuf),
    /// No randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(rand::rand_core::OsError),
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: Uuid,
    tid: Uuid,
    sid: Uuid,
    role: Role,
    iat: i64,
    exp: i64,
}

/// A key, and the name that tokens call it by.
struct Key {
    name: String,
    decoding: DecodingKey,
}

impl Key {
    fn new(key: &[u8]) -> Self {
        let name = hex::encode(&Sha256::digest(key)[..NAME_BYTES]);
        Self { name, decoding: DecodingKey::from_secret(key) }
    }
}

/// Makes and reads access tokens.
pub struct Tokens {
    encoding: EncodingKey,
    header: Header,
    /// The one that signs, and the other whose tokens are taken.
    keys: Vec<Key>,
    validation: Validation,
    clock: Arc<dyn Clock>,
    lifetime_s: i64,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("lifetime_s", &self.lifetime_s).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Signs with this key, and takes the tokens of `previous` as well.
    pub fn new(key: &[u8], previous: Option<&[u8]>, lifetime_s: u64, clock: Arc<dyn Clock>) -> Self {
        // One algorithm, so that no token can choose a weaker one. The end is checked below, on our own clock.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_exp = false;
        let keys: Vec<Key> = std::iter::once(key).chain(previous).map(Key::new).collect();
        Self {
            encoding: EncodingKey::from_secret(key),
            header: Header { kid: Some(keys[0].name.clone()), ..Header::new(Algorithm::HS256) },
            keys,
            validation,
            clock,
            lifetime_s: lifetime_s as i64,
        }
    }

    /// A token for a member, and how many seconds it is good.
    pub fn issue(
        &self,
        member: Uuid,
        tenant: Uuid,
        role: Role,
        session: Uuid,
    ) -> Result<(String, i64), Problem> {
        let now = self.clock.utc_us() / 1_000_000;
        let claims = Claims {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            sub: member,
            tid: tenant,
            sid: session,
            role,
            iat: now,
            exp: now + self.lifetime_s,
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.encoding)
            .map_err(|error| Problem::internal(&error))?;
        Ok((token, self.lifetime_s))
    }

    /// Who a token speaks for.
    pub fn read(&self, token: &str) -> Result<Member, Problem> {
        let wrong = || Problem::unauthenticated("The access token is not valid. Log in again.");
        if token.len() > MAX_TOKEN {
            return Err(wrong());
        }
        let named = jsonwebtoken::decode_header(token).map_err(|_| wrong())?.kid.ok_or_else(wrong)?;
        let key = self.keys.iter().find(|key| key.name == named).ok_or_else(wrong)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.decoding, &self.validation)
            .map_err(|_| wrong())?
            .claims;
        if claims.exp <= self.clock.utc_us() / 1_000_000 {
            return Err(Problem::unauthenticated("The access token is over. Refresh it, or log in again."));
        }
        Ok(Member {
            id: claims.sub,
            tenant: claims.tid,
            role: claims.role,
            session: claims.sid,
            expires_us: claims.exp * 1_000_000,
        })
    }
}

/// Reads a key, which nobody else can read.
pub fn read_key(path: &Path) -> Result<Vec<u8>, KeyError> {
    let unread = |source| KeyError::File { what: "read", path: path.to_owned(), source };
    let mut open = std::fs::File::open(path).map_err(unread)?;
    if open.metadata().map_err(unread)?.permissions().mode() & 0o077 != 0 {
        return Err(KeyError::Exposed(path.to_owned()));
    }
    let mut key = Vec::new();
    open.read_to_end(&mut key).map_err(unread)?;
    if key.len() < KEY_BYTES {
        return Err(KeyError::Short(path.to_owned()));
    }
    Ok(key)
}

/// Reads the key, or makes one that nobody else can read.
pub fn read_or_make_key(path: &Path) -> Result<Vec<u8>, KeyError> {
    let file = |what| move |source| KeyError::File { what, path: path.to_owned(), source };
    match read_key(path) {
        Err(KeyError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let mut key = [0u8; KEY_BYTES];
            rand::rngs::OsRng.try_fill_bytes(&mut key).map_err(KeyError::Random)?;
            // Written aside and linked into place: two programs that start at once agree on one whole key.
            let aside = path.with_extension(format!("new-{}", Uuid::new_v4().simple()));
            let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
            let mut made = made.map_err(file("make"))?;
            made.write_all(&key).and_then(|()| made.sync_all()).map_err(file("write"))?;
            let linked = std::fs::hard_link(&aside, path);
            let _ = std::fs::remove_file(&aside);
            match linked {
                Ok(()) => Ok(key.to_vec()),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => read_or_make_key(path),
                Err(error) => Err(file("make")(error)),
            }
        }
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinara_clock::ManualClock;

    #[test]
    fn a_token_is_read_until_its_end_and_not_with_another_key() {
        let clock = Arc::new(ManualClock::default());
        let tokens = Tokens::new(&[7; 32], None, 900, clock.clone());
        let (member, tenant, session) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        let (token, seconds) = tokens.issue(member, tenant, Role::Clinician, session).unwrap();
        assert_eq!(seconds, 900);
        let read = tokens.read(&token).unwrap();
        assert_eq!(
            (read.id, read.tenant, read.role, read.session),
            (member, tenant, Role::Clinician, session)
        );
        assert!(Tokens::new(&[8; 32], None, 900, clock.clone()).read(&token).is_err());
        clock.advance_us(899_000_000);
        assert!(tokens.read(&token).is_ok());
        clock.advance_us(1_000_000);
        assert_eq!(tokens.read(&token).unwrap_err().status(), 401);
    }

    #[test]
    fn a_token_that_chooses_no_algorithm_is_refused() {
        let tokens = Tokens::new(&[7; 32], None, 900, Arc::new(ManualClock::default()));
        let (token, _) = tokens.issue(Uuid::nil(), Uuid::nil(), Role::Admin, Uuid::nil()).unwrap();
        let claims = token.split('.').nth(1).unwrap();
        // {"alg":"none","typ":"JWT"}
        let forged = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");
        assert!(tokens.read(&forged).is_err());
    }

    #[test]
    fn while_the_key_is_changed_tokens_of_both_are_taken_and_new_ones_are_signed_with_the_newer() {
        let clock = Arc::new(ManualClock::default());
        let with = |key: u8, other: Option<u8>| {
            Tokens::new(
                &[key; 32],
                other.map(|key| [key; 32]).as_ref().map(<[u8; 32]>::as_slice),
                900,
                clock.clone(),
            )
        };
        let issued =
            |tokens: &Tokens| tokens.issue(Uuid::nil(), Uuid::nil(), Role::Viewer, Uuid::nil()).unwrap().0;
        let (before, during, after) = (with(1, None), with(2, Some(1)), with(2, None));
        // On a host that comes later, the next key is the other one already.
        let late = with(1, Some(2));
        let (old, new) = (issued(&before), issued(&during));
        assert!(during.read(&old).is_ok() && during.read(&new).is_ok());
        assert!(late.read(&old).is_ok() && late.read(&new).is_ok());
        assert!(after.read(&new).is_ok(), "signed with the newer");
        assert_eq!(after.read(&old).unwrap_err().status(), 401);
        assert!(before.read(&new).is_err());
        let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
        assert_ne!(kid(&old), kid(&new));
        // What names one key and is signed with the other is neither's.
        let forged = [old.split('.').next().unwrap(), new.split_once('.').unwrap().1].join(".");
        assert!(during.read(&forged).is_err());
    }

    #[test]
    fn the_key_is_made_once_and_for_this_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwt.key");
        let key = read_or_make_key(&path).unwrap();
        assert_eq!(key.len(), 32);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_make_key(&path).unwrap(), key);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read_or_make_key(&path), Err(KeyError::Exposed(_))));
        // Another key is never made: one that is missing would be taken for one that was changed.
        let other = folder.path().join("previous.key");
        assert!(matches!(read_key(&other), Err(KeyError::File { .. })) && !other.exists());
    }
}
