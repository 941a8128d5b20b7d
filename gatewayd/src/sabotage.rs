//! Faults that can be planted to show that the tests would notice them.
//!
//! Compiled in by the feature `sabotage` only, and chosen by `KINARA_SABOTAGE`. Without the feature [`is`] is a
//! constant `false` and the environment is not read.

/// The faults of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every 50th frame is acknowledged and not stored.
    LoseFrame,
    /// Frames are acknowledged before the commit, which comes two seconds later.
    AckBeforeCommit,
    /// Fits are a second off.
    ShiftClock,
}

/// Whether this fault is planted.
#[cfg(feature = "sabotage")]
pub fn is(kind: Kind) -> bool {
    use std::sync::LazyLock;
    static CHOSEN: LazyLock<Option<Kind>> = LazyLock::new(|| {
        let chosen = match std::env::var("KINARA_SABOTAGE").ok()?.as_str() {
            "lose-frame" => Kind::LoseFrame,
            "ack-before-commit" => Kind::AckBeforeCommit,
            "shift-clock" => Kind::ShiftClock,
            _ => return None,
        };
        tracing::warn!(?chosen, "sabotage is planted");
        Some(chosen)
    });
    *CHOSEN == Some(kind)
}

/// Whether this fault is planted: never.
#[cfg(not(feature = "sabotage"))]
pub const fn is(_: Kind) -> bool {
    false
}
