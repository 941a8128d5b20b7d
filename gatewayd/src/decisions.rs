//! What people decided at this box, on its way to the cloud.
//!
//! The promise: a decision is on disk when [`Decisions::record`] returns, all of one call or none; it is signed by this
//! box, and stays until the bridge has acknowledged it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kinara_clock::Clock;
use kinara_protocol::envelope::{self, Decision, FrameBoundary, decision};
use kinara_protocol::topic::GatewayId;
use prost::Message;
use ring::pkcs8::Document;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use tokio::sync::watch;
use uuid::{NoContext, Timestamp, Uuid};

use crate::align::source::{BUILD_DATE_US, Known};
use crate::devices::How;
use crate::files::{self, write_through};
use crate::hardware::HardwareId;
use crate::status::Board;
use crate::store::{Store, StoreError};

/// The private key, in the data folder.
const KEY_FILE: &str = "identity.key";
/// How often it is tried to keep a key that could not be kept.
pub const KEEP_EVERY: Duration = Duration::from_mins(1);
/// The uncertainty of a time while the box does not know what time it is: ten years.
const UNKNOWN_TIME_US: u64 = 10 * 365 * 86_400 * 1_000_000;

/// Who does something.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// Somebody at the box's page.
    Staff {
        /// Name.
        name: String,
        /// The cloud's member; none when the box alone knows the person.
        member: Option<Uuid>,
    },
    /// Somebody with a shell.
    Operator {
        /// Their account.
        name: String,
    },
    /// The box itself, as the cloud's configuration told it.
    Box,
}

impl Actor {
    /// For people.
    pub fn name(&self) -> &str {
        match self {
            Self::Staff { name, .. } | Self::Operator { name } => name,
            Self::Box => "this box",
        }
    }

    fn on_the_wire(&self) -> envelope::Actor {
        let (kind, member) = match self {
            Self::Staff { member, .. } => ("staff", *member),
            Self::Operator { .. } => ("operator", None),
            Self::Box => ("gateway", None),
        };
        envelope::Actor {
            kind: kind.to_owned(),
            name: self.name().to_owned(),
            member_id: member.map(|member| member.as_bytes().to_vec()).unwrap_or_default(),
        }
    }
}

/// The first frame on the later side of a hand-over: epoch and seq.
pub type Boundary = (u64, u32);

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Somebody new, until the cloud confirms.
    WearerAdded {
        /// Drawn here.
        user: Uuid,
        /// As the clinic calls them.
        display_name: String,
    },
    /// A wearer agreed.
    ConsentRecorded {
        /// Drawn here.
        consent: Uuid,
        /// The wearer.
        user: Uuid,
        /// Version of the text.
        version: String,
        /// Its language.
        language: String,
        /// SHA-256 of the text that was shown.
        text_sha256: [u8; 32],
        /// Who asked.
        asked_by: String,
    },
    /// A wearer does not agree any more.
    ConsentWithdrawn {
        /// The wearer.
        user: Uuid,
    },
    /// A device is worn by somebody.
    Assigned {
        /// The device.
        hardware: HardwareId,
        /// The wearer.
        user: Uuid,
        /// The consent it rests on.
        consent: Uuid,
        /// The first frame that is theirs, where it could be asked.
        from: Option<Boundary>,
        /// The device's name, for people.
        device_name: String,
    },
    /// It is worn by nobody.
    Unassigned {
        /// The device.
        hardware: HardwareId,
        /// The first frame that is nobody's.
        to: Option<Boundary>,
    },
    /// This box has a bond with it.
    Paired {
        /// The device.
        hardware: HardwareId,
        /// How it came about.
        how: How,
        /// The adapter's address, by which the device knows this box.
        adapter: [u8; 6],
    },
    /// This box has no bond with it any more.
    Forgotten {
        /// The device.
        hardware: HardwareId,
    },
}

/// Where decisions are recorded; cheap to clone.
#[derive(Debug, Clone)]
pub struct Decisions {
    store: Store,
    key: Arc<SigningKey>,
    gateway: GatewayId,
    clock: Arc<dyn Clock>,
    known: watch::Receiver<Option<Known>>,
    floor_us: i64,
}

impl Decisions {
    /// For this box. It is surely later than `floor_us`.
    pub fn new(
        store: Store,
        key: SigningKey,
        gateway: GatewayId,
        clock: Arc<dyn Clock>,
        known: watch::Receiver<Option<Known>>,
        floor_us: i64,
    ) -> Self {
        Self { store, key: Arc::new(key), gateway, clock, known, floor_us: floor_us.max(BUILD_DATE_US) }
    }

    /// The public half of the key, for the cloud to trust; nothing while it is not kept, for it may end with this run.
    pub fn kept_key(&self) -> Option<[u8; 32]> {
        self.key.trouble().is_none().then(|| self.key.public())
    }

    /// Keeps the key as soon as the disk takes it, which is tried so often, and has people told how it stands.
    pub async fn keep_key(self, every: Duration, board: Board) {
        while let Some(trouble) = self.key.trouble() {
            board.alert("key", Some(trouble));
            tokio::time::sleep(every).await;
            self.key.keep();
        }
        board.alert("key", None);
        // It is never lost again; a part of the daemon that ends would end the daemon.
        std::future::pending::<()>().await;
    }

    /// UTC and how far off it may be, both in microseconds.
    pub fn now(&self) -> (i64, u64) {
        let boot_us = self.clock.boottime_us();
        match *self.known.borrow() {
            Some(known) => (known.utc_us(boot_us), known.uncertainty_us_at(boot_us)),
            None => (self.clock.utc_us().max(self.floor_us), UNKNOWN_TIME_US),
        }
    }

    /// A new id, in the order of time.
    pub fn new_id(&self) -> Uuid {
        let now = self.now().0.max(0) as u64;
        let nanos = (now % 1_000_000 * 1_000) as u32;
        Uuid::new_v7(Timestamp::from_unix(NoContext, now / 1_000_000, nanos))
    }

    /// Signs and keeps what was decided at once; on return it is on disk. Gives the ids in the same order.
    pub async fn record(&self, by: &Actor, what: Vec<What>) -> Result<Vec<Uuid>, StoreError> {
        let (at_utc_us, uncertainty_us) = self.now();
        let mut ids = Vec::new();
        let mut signed = Vec::new();
        for what in what {
            let id = self.new_id();
            // Not what it says: the journal is no place for a wearer's name.
            tracing::info!(%id, by = by.name(), kind = what.kind(), "decided");
            let decision = Decision {
                id: id.as_bytes().to_vec(),
                at_utc_us,
                uncertainty_us,
                actor: Some(by.on_the_wire()),
                what: Some(what.on_the_wire()),
                signature: Vec::new(),
            };
            signed.push((id, self.key.sign(self.gateway, decision).encode_to_vec()));
            ids.push(id);
        }
        self.store.put_decisions(signed).await?;
        Ok(ids)
    }

    /// Whether the cloud has not confirmed this decision yet.
    pub async fn is_waiting(&self, id: Uuid) -> Result<bool, StoreError> {
        self.store.decision_waits(id).await
    }
}

impl What {
    /// Its name for the journal.
    fn kind(&self) -> &'static str {
        match self {
            Self::WearerAdded { .. } => "wearer_added",
            Self::ConsentRecorded { .. } => "consent_recorded",
            Self::ConsentWithdrawn { .. } => "consent_withdrawn",
            Self::Assigned { .. } => "assigned",
            Self::Unassigned { .. } => "unassigned",
            Self::Paired { .. } => "paired",
            Self::Forgotten { .. } => "forgotten",
        }
    }

    fn on_the_wire(self) -> decision::What {
        let boundary = |at: Option<Boundary>| at.map(|(epoch, seq)| FrameBoundary { epoch, seq });
        let bytes = |id: Uuid| id.as_bytes().to_vec();
        match self {
            Self::WearerAdded { user, display_name } => {
                decision::What::WearerAdded(envelope::WearerAdded { user_id: bytes(user), display_name })
            }
            Self::ConsentRecorded { consent, user, version, language, text_sha256, asked_by } => {
                decision::What::ConsentRecorded(envelope::ConsentRecorded {
                    consent_id: bytes(consent),
                    user_id: bytes(user),
                    version,
                    language,
                    text_sha256: text_sha256.to_vec(),
                    asked_by,
                })
            }
            Self::ConsentWithdrawn { user } => {
                decision::What::ConsentWithdrawn(envelope::ConsentWithdrawn { user_id: bytes(user) })
            }
            Self::Assigned { hardware, user, consent, from, device_name } => {
                decision::What::Assigned(envelope::Assigned {
                    hardware_id: hardware.to_string(),
                    user_id: bytes(user),
                    consent_id: bytes(consent),
                    from: boundary(from),
                    device_name,
                })
            }
            Self::Unassigned { hardware, to } => decision::What::Unassigned(envelope::Unassigned {
                hardware_id: hardware.to_string(),
                to: boundary(to),
            }),
            Self::Paired { hardware, how, adapter } => decision::What::Paired(envelope::Paired {
                hardware_id: hardware.to_string(),
                how: how.as_str().to_owned(),
                bond: adapter.to_vec(),
            }),
            Self::Forgotten { hardware } => {
                decision::What::Forgotten(envelope::Forgotten { hardware_id: hardware.to_string() })
            }
        }
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The machine has no randomness.
    #[error("no key could be made")]
    Random,
}

/// The key that this box signs with.
#[derive(Debug)]
pub struct SigningKey {
    pair: Ed25519KeyPair,
    not_kept: Mutex<Option<NotKept>>,
}

/// Why a key is not kept.
#[derive(Debug)]
struct NotKept {
    error: io::Error,
    /// What is to be written, and where. Nothing where a key is there that cannot be read now: it may be at the next start.
    made: Option<Made>,
}

/// A key that was made, as it is kept.
struct Made(PathBuf, Box<Document>);

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Made(…)")
    }
}

impl SigningKey {
    /// Reads it from the data folder, or makes it there. One that cannot be read is set aside; the cloud hears of the
    /// new one with the next `state`. One that cannot be kept, as on a full disk, serves this run, and the cloud hears of it
    /// when it is kept: readings do not need it.
    pub fn open(data_dir: &Path) -> Result<Self, KeyError> {
        let path = data_dir.join(KEY_FILE);
        let read = files::read(&path, Ed25519KeyPair::from_pkcs8);
        let (read, unreadable) = read.map_or_else(|error| (None, Some(error)), |read| (read, None));
        if let Some(pair) = read {
            return Ok(Self { pair, not_kept: Mutex::new(None) });
        }
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        let pair = Ed25519KeyPair::from_pkcs8(made.as_ref()).map_err(|_| KeyError::Random)?;
        let not_kept = match unreadable {
            Some(error) => Some(NotKept { error, made: None }),
            None => Made(path, Box::new(made)).keep().err(),
        };
        Ok(Self { pair, not_kept: Mutex::new(not_kept) })
    }

    /// Tries to keep it, where it is not.
    fn keep(&self) {
        // A card may take its time, and whoever asks for the key does not wait for it.
        let made = self.lock().as_mut().and_then(|not_kept| not_kept.made.take());
        if let Some(made) = made {
            let failed = made.keep().err();
            *self.lock() = failed;
        }
    }

    /// What people should know of it; nothing when it is kept.
    pub fn trouble(&self) -> Option<String> {
        let not_kept = self.lock();
        let NotKept { error, made } = not_kept.as_ref()?;
        let again = if made.is_some() { "It is tried again each minute. " } else { "" };
        Some(format!(
            "The box's own key cannot be kept ({error}); what people decide here is signed by one that ends with this run, \
             and the cloud does not take it. {again}Look at the disk, then restart the daemon."
        ))
    }

    fn lock(&self) -> MutexGuard<'_, Option<NotKept>> {
        self.not_kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.pair.public_key().as_ref());
        public
    }

    fn sign(&self, gateway: GatewayId, mut decision: Decision) -> Decision {
        let signature = self.pair.sign(&decision.signed_bytes(gateway.0));
        decision.signature = signature.as_ref().to_vec();
        decision
    }
}

impl Made {
    fn keep(self) -> Result<(), NotKept> {
        let written = write_through(&self.0, (*self.1).as_ref());
        written.map_err(|error| NotKept { error, made: Some(self) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Snapshot;
    use kinara_clock::SystemClock;
    use ring::signature::{ED25519, UnparsedPublicKey};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_boxs_key_is_made_once_and_only_its_user_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = SigningKey::open(dir.path()).unwrap().public();
        assert_eq!(SigningKey::open(dir.path()).unwrap().public(), first);
        let file = dir.path().join("identity.key");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "torn").unwrap();
        assert_eq!(SigningKey::open(dir.path()).unwrap().public(), first, "its good copy");
        std::fs::write(&file, "torn").unwrap();
        std::fs::write(dir.path().join("identity.good"), "torn too").unwrap();
        assert_ne!(SigningKey::open(dir.path()).unwrap().public(), first, "a new one, the old one set aside");
        assert!(dir.path().join("identity.broken").exists());
    }

    #[test]
    fn a_disk_that_takes_no_key_leaves_one_for_this_run_and_a_word_for_people() {
        let dir = tempfile::tempdir().unwrap();
        // As after a power cut, on a disk that is full since: the place of the new file is taken by a folder.
        std::fs::write(dir.path().join("identity.key"), "").unwrap();
        std::fs::create_dir(dir.path().join("identity.new")).unwrap();
        let key = SigningKey::open(dir.path()).unwrap();
        assert!(key.trouble().is_some_and(|text| text.contains("restart")), "{key:?}");
        std::fs::remove_dir(dir.path().join("identity.new")).unwrap();
        let kept = SigningKey::open(dir.path()).unwrap();
        assert_eq!(kept.trouble(), None);
        assert_eq!(SigningKey::open(dir.path()).unwrap().public(), kept.public());
    }

    /// The decisions of a box without a store.
    fn decisions(key: SigningKey) -> Decisions {
        let store = Store::stopped();
        let known = watch::channel(None).1;
        Decisions::new(store, key, GatewayId(Uuid::nil()), Arc::new(SystemClock), known, 0)
    }

    #[tokio::test]
    async fn a_key_is_told_when_it_is_kept_and_is_kept_as_soon_as_the_disk_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        // Stands for a disk that is full.
        std::fs::create_dir(dir.path().join("identity.new")).unwrap();
        let decisions = decisions(SigningKey::open(dir.path()).unwrap());
        let board = Board::new(Snapshot::default());
        let often = Duration::from_millis(20);
        let keeping = tokio::spawn(decisions.clone().keep_key(often, board.clone()));
        tokio::time::sleep(10 * often).await;
        assert_eq!(decisions.kept_key(), None, "the cloud would trust a key that ends with this run");
        assert!(board.now().alerts.contains_key("key"));
        std::fs::remove_dir(dir.path().join("identity.new")).unwrap();
        let began = std::time::Instant::now();
        while board.now().alerts.contains_key("key") {
            assert!(began.elapsed() < Duration::from_mins(1), "it is not tried again");
            tokio::time::sleep(often).await;
        }
        let kept = SigningKey::open(dir.path()).unwrap().public();
        assert_eq!(decisions.kept_key(), Some(kept));
        assert!(!keeping.is_finished(), "a part that ends ends the daemon");
    }

    #[test]
    fn a_key_that_is_there_and_cannot_be_read_now_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.key");
        // A link that leads back to itself: the machine does not say what is there.
        std::os::unix::fs::symlink("identity.key", &file).unwrap();
        let key = SigningKey::open(dir.path()).unwrap();
        key.keep();
        assert!(key.trouble().is_some() && file.is_symlink());
    }

    #[test]
    fn a_signature_holds_for_one_decision_of_one_box() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::open(dir.path()).unwrap();
        let gateway = GatewayId(Uuid::from_u128(1));
        let hardware = HardwareId::kinara(7);
        let decision = Decision {
            id: vec![1; 16],
            what: Some(What::Forgotten { hardware }.on_the_wire()),
            ..Decision::default()
        };
        let signed = key.sign(gateway, decision.clone());
        let public = UnparsedPublicKey::new(&ED25519, key.public());
        public.verify(&decision.signed_bytes(gateway.0), &signed.signature).unwrap();
        let elsewhere = decision.signed_bytes(Uuid::from_u128(2));
        public.verify(&elsewhere, &signed.signature).unwrap_err();
        let other = Decision { at_utc_us: 1, ..decision };
        public.verify(&other.signed_bytes(gateway.0), &signed.signature).unwrap_err();
    }
}
