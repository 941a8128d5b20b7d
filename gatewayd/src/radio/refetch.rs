//! Frames that were here and are lost, and that the wearable still holds though it was told that it may forget them.
//!
//! They are asked for at the beginning of a link, the first of them first. Between two of them there may be many that
//! are here: then the log goes on behind those.
//!
//! The wearable's flash may have lost some of them too. It says so with an event at the end of its log, hours away; so
//! what does not come when it is asked for once more is gone, and a frame that it refuses to send costs itself alone. It
//! has its gap already where this box knew of it, and gets one by that event where it did not.

use kinara_protocol::control::{Op, Outcome, Refusal};
use kinara_protocol::frame::{Epoch, Seq};

use super::RadioError;
use super::cursor::Cursor;
use super::requests::Requests;
use crate::hardware::HardwareId;
use crate::store::Store;

/// A gateway that has lost its copy asks for frames in the middle of what it has; further on than this it says so.
const WORTH_A_LEAP: u32 = 256;

/// So many frames that the wearable does not hold are passed before other things get their turn.
pub const PASSED_AT_ONCE: usize = 32;

type Place = (Epoch, Seq);

/// Frames are being sent again.
#[derive(Debug)]
pub struct Refetch {
    /// The last one that came in the log's order.
    last: Place,
    /// The hole that was asked for once more, and whether the wearable has gone back since.
    asked: Option<(Place, bool)>,
    /// The log has still to be asked for from the next wanted frame on: those before it were refused.
    pub asks: bool,
}

impl Refetch {
    /// Takes note of a frame that came in the log's order.
    pub fn came(&mut self, frame: Place) {
        if let Some((_, went_back)) = &mut self.asked {
            *went_back |= frame <= self.last;
        }
        self.last = frame;
    }

    /// Whether a hole that still stands has been sent for in vain: asked for once more, and the log has come from there
    /// again. What comes late, because it waited for the disk, is no sign of that.
    pub fn is_gone(&mut self, hole: Place) -> bool {
        match self.asked {
            Some((asked, went_back)) if asked == hole => went_back,
            _ => {
                self.asked = Some((hole, false));
                false
            }
        }
    }

    /// Whether the log has to be asked for from `next` on, because much lies between it and what comes now.
    pub fn leaps_to(&mut self, next: Place) -> bool {
        let last = self.last;
        let leaps = next.0 > last.0 || next.0 == last.0 && next.1.saturating_sub(last.1) > WORTH_A_LEAP;
        if leaps {
            self.last = next;
        }
        leaps
    }
}

/// Asks for the first frame that was here, is lost, and is still held by the wearable. Gives the way through those
/// frames to the oldest one that nobody has acknowledged; none where there is nothing to ask for. Firmware that does not
/// know the question is none the worse.
pub async fn begin(
    store: &Store,
    hardware: &HardwareId,
    requests: &mut Requests,
    oldest: Place,
) -> Result<Option<(Refetch, Cursor)>, RadioError> {
    let mut wanted = match store.wanted(hardware.clone()).await {
        Ok(wanted) => wanted,
        Err(error) => {
            tracing::warn!(%hardware, %error, "what was lost here is not asked for now");
            return Ok(None);
        }
    };
    if !wanted.everything && wanted.frames.is_empty() {
        return Ok(None);
    }
    let Outcome::OldestHeld { epoch, seq } = requests.ask(Op::OldestHeld).await? else {
        return Ok(None);
    };
    if !wanted.everything {
        forget(store, hardware, (epoch, seq)).await;
        wanted.frames.retain(|of, _| *of >= epoch && of.log_id() == epoch.log_id());
        if let Some(seqs) = wanted.frames.get_mut(&epoch) {
            *seqs = seqs.without(0, i64::from(seq) - 1);
        }
    }
    let cursor = if wanted.everything {
        Some(Cursor::new((epoch, seq)))
    } else {
        Cursor::through(&wanted.frames, oldest)
    };
    let Some(mut cursor) = cursor.filter(|cursor| cursor.next() < oldest) else {
        forget(store, hardware, oldest).await;
        return Ok(None);
    };
    for _ in 0..PASSED_AT_ONCE {
        let (epoch, seq) = cursor.next();
        if (epoch, seq) >= oldest {
            forget(store, hardware, oldest).await;
            return Ok(None);
        }
        match requests.ask(Op::ResendFrom { epoch, seq }).await? {
            Outcome::Ok => {
                tracing::warn!(
                    %hardware, %epoch, seq,
                    "frames that were here are lost; the wearable still holds them and sends them again"
                );
                return Ok(Some((Refetch { last: (epoch, seq), asked: None, asks: false }, cursor)));
            }
            Outcome::Refused(Refusal::NotInLog) => {
                tracing::debug!(%hardware, %epoch, seq, "lost here, and the wearable does not hold it either");
                cursor = behind(cursor, wanted.everything, requests).await?;
            }
            other => {
                tracing::debug!(%hardware, ?other, %epoch, seq, "what was lost here is not asked for now");
                return Ok(None);
            }
        }
    }
    Ok(Some((Refetch { last: cursor.next(), asked: None, asks: true }, cursor)))
}

/// The way on behind a frame that was refused. Who asks for everything asks where the log begins now: it may have turned
/// over since.
async fn behind(mut cursor: Cursor, everything: bool, requests: &mut Requests) -> Result<Cursor, RadioError> {
    if everything
        && let Outcome::OldestHeld { epoch, seq } = requests.ask(Op::OldestHeld).await?
        && (epoch, seq) > cursor.next()
    {
        return Ok(Cursor::new((epoch, seq)));
    }
    cursor.pass();
    Ok(cursor)
}

/// Nothing before this frame is wanted any more.
pub async fn forget(store: &Store, hardware: &HardwareId, before: Place) {
    if let Err(error) = store.no_longer_wanted(hardware.clone(), before).await {
        tracing::warn!(%hardware, %error, "what was lost here is asked for once more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_gone_only_when_the_log_came_from_there_once_more() {
        let at = |seq| (Epoch::new(1, 1), seq);
        let mut refetch = Refetch { last: at(0), asked: None, asks: false };
        refetch.came(at(8));
        assert!(!refetch.is_gone(at(7)), "nobody has asked for it again");
        refetch.came(at(9));
        assert!(!refetch.is_gone(at(7)), "this was sent before the wearable heard of it");
        refetch.came(at(8));
        assert!(!refetch.is_gone(at(5)), "another one");
        refetch.came(at(6));
        assert!(refetch.is_gone(at(5)));
    }
}
