//! A box where people decide.

use kinara_ingest::{Counts, Name, Outcome, events, upkeep};
use kinara_protocol::envelope::{
    self, Actor, Assigned, ConsentRecorded, ConsentWithdrawn, Decision, ENVELOPE_VERSION, Event, EventBatch,
    FrameBoundary, Paired, Unassigned, WearerAdded, decision::What,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use uuid::Uuid;

use super::{BOOT_US, EPOCH, NOW_US, World};

/// A device that nobody has had yet.
pub const NEW: &str = "kinara:00000000000000b2";
pub const PATIENT: Uuid = Uuid::from_u128(0x1001);
pub const CONSENT: Uuid = Uuid::from_u128(0x1002);
pub const ADAPTER: [u8; 6] = [1, 2, 3, 4, 5, 6];

/// A box with its key.
pub struct Desk {
    pub gateway: Uuid,
    pub key: Ed25519KeyPair,
}

impl Desk {
    pub fn new(gateway: Uuid, seed: u8) -> Self {
        Self { gateway, key: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap() }
    }

    /// A box whose key is trusted.
    pub async fn known(world: &World, gateway: Uuid, seed: u8) -> Self {
        let desk = Self::new(gateway, seed);
        assert!(!desk.says_its_key(world).await);
        desk
    }

    /// Whether the key waits for an operator.
    pub async fn says_its_key(&self, world: &World) -> bool {
        let mut client = world.pool.get().await.unwrap();
        let tx = client.transaction().await.unwrap();
        let now = kinara_ingest::timestamp(NOW_US);
        let key = self.key.public_key().as_ref();
        let waits = upkeep::note_key(&tx, self.gateway, key, now).await.unwrap();
        tx.commit().await.unwrap();
        waits
    }

    /// A decision, so many seconds after the boot of the test's device.
    pub fn decide(&self, second: i64, what: What) -> Decision {
        let mut decision = Decision {
            id: Uuid::new_v4().as_bytes().to_vec(),
            at_utc_us: BOOT_US + second * 1_000_000,
            uncertainty_us: 1_000,
            actor: Some(Actor { kind: "staff".into(), name: "Nurse".into(), member_id: Vec::new() }),
            what: Some(what),
            signature: Vec::new(),
        };
        decision.signature = self.key.sign(&decision.signed_bytes(self.gateway)).as_ref().to_vec();
        decision
    }

    pub async fn says(&self, world: &World, decisions: &[Decision]) -> Counts {
        self.says_with(world, decisions, Vec::new()).await
    }

    pub async fn says_with(&self, world: &World, decisions: &[Decision], derived: Vec<Event>) -> Counts {
        match self.brings(world, decisions, derived).await {
            Outcome::Done(counts) => counts,
            other @ Outcome::RetryAfter { .. } => panic!("{other:?}"),
        }
    }

    /// Whether nothing of it is taken.
    pub async fn is_sent_away(&self, world: &World, decisions: &[Decision]) -> bool {
        matches!(self.brings(world, decisions, Vec::new()).await, Outcome::RetryAfter { .. })
    }

    async fn brings(&self, world: &World, decisions: &[Decision], derived: Vec<Event>) -> Outcome {
        let batch = EventBatch {
            version: ENVELOPE_VERSION,
            name: Some(Name { gateway: self.gateway, buffer: 7, sequence: 0 }.into()),
            sealed_at_us: NOW_US,
            events: derived,
            gaps: Vec::new(),
            decisions: decisions.to_vec(),
        };
        let batch = events::decode(&envelope::seal(&batch)).unwrap();
        world.writer().write_events(&batch).await.unwrap()
    }

    /// A patient nobody knows yet, their consent, and the device on their chest.
    pub fn takes_in(&self, second: i64, from: Option<FrameBoundary>) -> [Decision; 3] {
        [
            self.decide(second - 2, added(PATIENT)),
            self.decide(second - 1, consents(CONSENT, PATIENT)),
            self.decide(second, assigned(NEW, PATIENT, Some(CONSENT), from)),
        ]
    }
}

pub fn bytes(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

pub fn added(user: Uuid) -> What {
    What::WearerAdded(WearerAdded { user_id: bytes(user), display_name: "New Patient".into() })
}

pub fn consents(consent: Uuid, user: Uuid) -> What {
    What::ConsentRecorded(ConsentRecorded {
        consent_id: bytes(consent),
        user_id: bytes(user),
        version: "2026-1".into(),
        language: "hi".into(),
        text_sha256: vec![3; 32],
        asked_by: "Nurse".into(),
    })
}

pub fn assigned(hardware: &str, user: Uuid, consent: Option<Uuid>, from: Option<FrameBoundary>) -> What {
    What::Assigned(Assigned {
        hardware_id: hardware.into(),
        user_id: bytes(user),
        consent_id: consent.map(bytes).unwrap_or_default(),
        from,
        device_name: String::new(),
    })
}

pub fn unassigned(hardware: &str, to: Option<FrameBoundary>) -> What {
    What::Unassigned(Unassigned { hardware_id: hardware.into(), to })
}

pub fn withdrawn(user: Uuid) -> What {
    What::ConsentWithdrawn(ConsentWithdrawn { user_id: bytes(user) })
}

pub fn paired(how: &str) -> What {
    What::Paired(Paired { hardware_id: NEW.into(), how: how.into(), bond: ADAPTER.to_vec() })
}

pub fn boundary(seq: u32) -> FrameBoundary {
    FrameBoundary { epoch: EPOCH.0, seq }
}

pub fn stored(stored: u64) -> Counts {
    Counts { stored, ..Counts::default() }
}
