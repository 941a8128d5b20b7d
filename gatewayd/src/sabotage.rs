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
    /// Frames that wait for their commit, because the wearable still has them, are acknowledged at once.
    AckInWait,
    /// What was lost here is not asked for again.
    NeverAskAgain,
    /// Batches that a bridge could not read stay where they are, whatever bridge comes.
    ForgetParked,
    /// Fits are a second off.
    ShiftClock,
    /// A loop stops turning, and keeps its thread: see [`stall`].
    StallMain,
}

/// Whether this fault is planted.
#[cfg(feature = "sabotage")]
pub fn is(kind: Kind) -> bool {
    use std::sync::LazyLock;
    static CHOSEN: LazyLock<Option<Kind>> = LazyLock::new(|| {
        let chosen = match std::env::var("KINARA_SABOTAGE").ok()?.as_str() {
            "lose-frame" => Kind::LoseFrame,
            "ack-before-commit" => Kind::AckBeforeCommit,
            "ack-in-wait" => Kind::AckInWait,
            "never-ask-again" => Kind::NeverAskAgain,
            "forget-parked" => Kind::ForgetParked,
            "shift-clock" => Kind::ShiftClock,
            "stall-main" => Kind::StallMain,
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

/// With `stall-main` planted: blocks the calling loop's thread for ever once the file `KINARA_STALL_FILE` (default
/// `/run/kinara-gatewayd/stall`) holds the loop's name (`store`, `radio`). The file is taken away first, so that the daemon
/// that systemd's watchdog puts in our place lives.
#[cfg(feature = "sabotage")]
#[allow(clippy::disallowed_methods, reason = "to block is the point")]
pub fn stall(name: &str) {
    if !is(Kind::StallMain) {
        return;
    }
    let path = std::env::var_os("KINARA_STALL_FILE").unwrap_or_else(|| "/run/kinara-gatewayd/stall".into());
    if std::fs::read_to_string(&path).is_ok_and(|wanted| wanted.trim() == name) {
        tracing::warn!(name, "sabotage: this loop stops here");
        // One that cannot be taken away stalls the next life too; the test sees that.
        let _ = std::fs::remove_file(&path);
        loop {
            std::thread::sleep(std::time::Duration::from_hours(1));
        }
    }
}

/// Does nothing without the feature.
#[cfg(not(feature = "sabotage"))]
#[inline]
pub fn stall(_: &str) {}
