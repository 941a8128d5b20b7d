//! Planted faults, by which the conservation oracle proves that it would see real ones. Compiled into test builds only.

use std::sync::LazyLock;
use std::time::Duration;

use uuid::Uuid;

use crate::assign::Assignment;
use crate::batch::Sample;

/// How long `ack-before-commit` holds a commit back.
pub const DELAY: Duration = Duration::from_secs(2);
/// Every so many frames, `swap-wearer` swaps one.
const SWAP_EVERY: u32 = 20;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Every reading is written twice.
    DoubleBatch,
    /// Batches are acknowledged before their commit, which comes late.
    AckBeforeCommit,
    /// What the ledger holds is ignored.
    LedgerOff,
    /// Every 20th frame goes to another wearer.
    SwapWearer,
    /// A frame's values change places among their times.
    ReverseFrame,
    /// A boundary that is told late moves nothing.
    MoveNothing,
    /// What is stored of somebody who is erased stays.
    EraseNothing,
    /// What comes late of somebody who was erased is taken.
    TakeErased,
    /// What another clinic's gateway brings is taken.
    TakeForeign,
}

impl Sabotage {
    /// What `KINARA_SABOTAGE` asks for, if it concerns the cloud.
    pub fn from_env() -> Option<Self> {
        match std::env::var("KINARA_SABOTAGE").ok()?.as_str() {
            "double-batch" => Some(Self::DoubleBatch),
            "ack-before-commit" => Some(Self::AckBeforeCommit),
            "ledger-off" => Some(Self::LedgerOff),
            "swap-wearer" => Some(Self::SwapWearer),
            "reverse-frame" => Some(Self::ReverseFrame),
            "move-nothing" => Some(Self::MoveNothing),
            "erase-nothing" => Some(Self::EraseNothing),
            "take-erased" => Some(Self::TakeErased),
            "take-foreign" => Some(Self::TakeForeign),
            _ => None,
        }
    }
}

/// Whether this fault is planted.
pub fn is(fault: Sabotage) -> bool {
    static PLANTED: LazyLock<Option<Sabotage>> = LazyLock::new(Sabotage::from_env);
    *PLANTED == Some(fault)
}

/// Whether a frame is taken that must not be.
pub(crate) fn takes(assignment: &Assignment, sender_tenant: Uuid) -> bool {
    assignment.erased && is(Sabotage::TakeErased)
        || assignment.tenant != sender_tenant && is(Sabotage::TakeForeign)
}

/// A frame's samples; where that is planted, their values are in reverse.
pub(crate) fn reversed(samples: &[Sample], sabotage: Option<Sabotage>) -> Vec<Sample> {
    let mut out = samples.to_vec();
    if sabotage == Some(Sabotage::ReverseFrame) {
        out.iter_mut().zip(samples.iter().rev()).for_each(|(one, other)| one.value = other.value);
    }
    out
}

/// Picks the frames to swap.
pub(crate) struct Swapper {
    on: bool,
    count: u32,
    last: Option<Uuid>,
}

static FRAMES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

impl Swapper {
    pub fn new(sabotage: Option<Sabotage>) -> Self {
        Self { on: sabotage == Some(Sabotage::SwapWearer), count: 0, last: None }
    }

    /// The wearer that this frame is to be given to instead, if any: one seen before, or nobody at all.
    pub fn next(&mut self, user: Uuid) -> Option<Uuid> {
        if !self.on {
            return None;
        }
        self.count = FRAMES.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let other =
            self.last.filter(|last| *last != user).unwrap_or_else(|| Uuid::from_u128(user.as_u128() ^ 1));
        self.last = Some(user);
        self.count.is_multiple_of(SWAP_EVERY).then_some(other)
    }
}
